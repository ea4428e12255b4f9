"""A small network that every kind of parallelism can split, unevenly, and what training it yields."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from arturo_core import Arturo

BATCH = 12  # of 1, 2, 3 or 4 ranks each has the same share
STEPS = 7
#: One gradient of this step is not finite, on one rank only.
SPOILED = 3

#: Every form of the step; the first is bounded by lr at its lower rate, by the weights' size at its higher one.
MODES: dict[str, dict[str, Any]] = {
    "rms": {"lr": 3e-3, "weight_decay": 0.1},
    "rms, long steps": {"lr": 3.0},
    "kl": {"lr": 1e-2, "trust_region": "kl"},
    "fixed": {"lr": 1e-2, "noise": "fixed", "trust_region": "kl"},
    "fixed, rms": {"lr": 1e-2, "noise": "fixed", "weight_decay": 0.1},
}

NUMBERS = ("eta", "kl", "kl_bound", "kl_ratio", "innovation_ratio", "step_rms", "steps", "skipped_steps")


class Network(nn.Module):
    """Widths that leave uneven shards, and empty ones on three and four ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)
        self.head = nn.Linear(8, 3)
        self.unused = nn.Linear(2, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        return self.head(hidden + self.down(torch.tanh(self.up(self.norm(hidden)))))


def network(dtype: torch.dtype = torch.float64) -> Network:
    torch.manual_seed(0)
    return Network().to(dtype)


def _zero_gradients(module: nn.Module) -> None:
    for param in module.parameters():
        param.grad = torch.zeros_like(param)


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Two groups with different rates, as Trainer's weight decay groups are."""
    matrices = [param for name, param in model.named_parameters() if name.endswith("weight") and "norm" not in name]
    others = [param for name, param in model.named_parameters() if not (name.endswith("weight") and "norm" not in name)]
    return [{"params": matrices}, {"params": others, "weight_decay": 0.0}]


def batch(step: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(100 + step)
    inputs = torch.randn(BATCH, 4, 5, generator=source, dtype=torch.float64)
    targets = torch.randn(BATCH, 4, 3, generator=source, dtype=torch.float64)
    return inputs.to(dtype), targets.to(dtype)


@dataclass
class Parallel:
    """A split network on one rank.

    Attributes:
        model: called with this rank's share of a batch.
        optimizer: over its parameters.
        share: this rank's rows of a batch.
        whole: the full value of every parameter by name, given a function from parameter to what is wanted of it.
        spoil: makes one element of one gradient not finite.
    """

    model: nn.Module
    optimizer: Any
    share: slice
    whole: Callable[[], dict[str, Tensor]]
    spoil: Callable[[], None]


def train(run: Parallel, steps: range, lr: float, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Train with a warm-up from 0 and a decay; returns the weights and the numbers of every step."""
    numbers = []
    for step in steps:
        for group in run.optimizer.param_groups:
            group["lr"] = lr * (step / 2 if step < 2 else 1.0 - (step - 2) / 10)
        run.optimizer.zero_grad()
        inputs, targets = batch(step, dtype)
        (run.model(inputs[run.share]) - targets[run.share]).square().mean().backward()
        if step == SPOILED:
            run.spoil()
        run.optimizer.step()
        inner = getattr(run.optimizer, "optim", run.optimizer)
        assert isinstance(inner, Arturo)
        found = inner.diagnostics()
        numbers.append({key: found[key] for key in NUMBERS if key in found})
    return {"weights": run.whole(), "numbers": numbers}


def single(options: dict[str, Any], dtype: torch.dtype = torch.float64, unused_as_zero: bool = False) -> Parallel:
    """The network on one process; FSDP1 gives weights that took no part in a loss a gradient of zero."""
    model = network(dtype)
    if unused_as_zero:
        model.register_forward_pre_hook(lambda *_: _zero_gradients(model.unused))

    def spoil() -> None:
        model.up.weight.grad[0, 0] = torch.inf

    return Parallel(
        model,
        Arturo(groups(model), **options),
        slice(None),
        lambda: copy.deepcopy({name: param.detach() for name, param in model.named_parameters()}),
        spoil,
    )
