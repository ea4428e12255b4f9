"""The optimizers whose steps are counted, built over a split network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Muon

from arturo_core import Arturo
from recipes.benchmarks.joined import Joined
from recipes.benchmarks.scaling.layouts import Split

Groups = list[dict[str, Any]]


def decay_groups(named: Iterable[tuple[str, nn.Parameter]]) -> Groups:
    """Matrices with weight decay, the rest without: two groups, as trainers make them.

    By name: FSDP1's shards of matrices are vectors.
    """
    decaying: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, param in named:
        (others if name.endswith("bias") or ".norm." in name else decaying).append(param)
    return [{"params": decaying, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]


def kinds_apart(groups: Groups) -> Groups:
    """Plain tensors and DTensors in groups of their own: torch's fused and foreach steps refuse mixed lists."""
    found = []
    for group in groups:
        for kind in (True, False):
            params = [param for param in group["params"] if isinstance(param, DTensor) == kind]
            if params:
                found.append({**group, "params": params})
    return found


def muon(split: Split) -> Joined:
    """The blocks' matrices by Muon, the rest by AdamW, as Muon is meant to be used."""
    named = list(split.model.named_parameters())
    hidden = {name: param for name, param in named if name.endswith(("up.weight", "down.weight"))}
    rest = decay_groups((name, param) for name, param in named if name not in hidden)
    return Joined(Muon(hidden.values(), lr=1e-3), AdamW(kinds_apart(rest), lr=1e-3, fused=True))


def adamw(split: Split, fused: bool) -> AdamW:
    groups = kinds_apart(decay_groups(split.model.named_parameters()))
    return AdamW(groups, lr=1e-3, fused=fused, foreach=not fused)


OPTIMIZERS: dict[str, Callable[[Split], Any]] = {
    "adamw": lambda split: adamw(split, fused=True),
    "adamw foreach": lambda split: adamw(split, fused=False),
    "arturo": lambda split: Arturo(decay_groups(split.model.named_parameters()), lr=1e-3, process_group=split.group),
    "arturo paper": lambda split: Arturo.paper(decay_groups(split.model.named_parameters()), process_group=split.group),
    "muon": muon,
}
