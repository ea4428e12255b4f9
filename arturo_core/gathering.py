"""What a step works on, collected from the parameters: their parts on this rank, and what concerns all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from arturo_core import learning_rate, reductions, sharding, weight_scale
from arturo_core.kernels.chunks import Chunk, Source
from arturo_core.options import Options
from arturo_core.reductions import Reduction
from arturo_core.state import table

Groups = Sequence[Mapping[str, Any]]
State = Mapping[Tensor, Mapping[str, Any]]


def gather(groups: Groups, state: State, moving: Sequence[int], reduction: Reduction, options: Options) -> list[Source]:
    """Every parameter of the groups that move that has a gradient: what of it, and of its state, is on this rank."""
    names = [row.name for row in table(options) if not row.scalar]
    scalars = [row.name for row in table(options) if row.scalar]
    found = []
    for index in moving:
        for param in groups[index]["params"]:
            held = state.get(param) or {}
            found += [
                Source(
                    theta=theta,
                    grad=grad,
                    state=tuple(statistics),
                    scalars={name: held[name] for name in scalars},
                    group=index,
                    layout=reduction.number[id(param)],
                )
                for theta, grad, *statistics in sharding.parts(param, [held[name] for name in names if held])
            ]
    return found


def survey(
    groups: Groups,
    state: State,
    moving: Sequence[int],
    chunks: Sequence[Chunk],
    reduction: Reduction,
    options: Options,
    home: torch.device,
) -> tuple[Tensor, Tensor]:
    """What a step must know of all ranks before it begins, in one reduction.

    Returns:
        The trust radius that the weights' size allows, infinite where lr is not in weight units; and 1, or 0 if a
        gradient is not usable or no rank has any. Both 0-dimensional, wide. The radius is of all trainable weights: a
        loss that leaves some out for a step makes the others no smaller.
    """
    sized = options.noise == "adaptive" and options.trust_region == "rms"
    held = [[param for param in groups[index]["params"] if state.get(param)] for index in moving] if sized else []
    rows = []
    for number in range(len(reduction.layouts)):
        sums = [
            weight_scale.sums([param for param in params if reduction.number[id(param)] == number], home)
            for params in held
        ]
        unusable = reductions.unusable([chunk.grad for chunk in chunks if chunk.layout == number], home)
        present = torch.full_like(unusable, any(chunk.layout == number for chunk in chunks))
        rows.append(torch.cat([torch.stack([unusable, present]), *sums]))
    found = reduction.sum(torch.stack(rows))
    ok = ((found[0] == 0.0) & (found[1] > 0.0)).to(found)
    if not sized:
        return torch.full_like(ok, torch.inf), ok
    rates = [learning_rate.scalar(groups[index]["lr"], home) for index in moving]
    return weight_scale.radius(found[2:].unflatten(0, (-1, 2)), rates), ok
