"""What a step works on, collected from the parameters: their parts on this rank, and what concerns all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from arturo_core import learning_rate, reductions, sharding, weight_scale
from arturo_core.contexts import is_readable
from arturo_core.kernels.chunks import Chunk, Source
from arturo_core.options import Options
from arturo_core.reductions import Reduction
from arturo_core.state import holds, table

Groups = Sequence[Mapping[str, Any]]
State = Mapping[Tensor, Mapping[str, Any]]


def gather(groups: Groups, state: State, moving: Sequence[int], reduction: Reduction, options: Options) -> list[Source]:
    """Every parameter of the groups that move that has a gradient: what of it, and of its state, is on this rank."""
    names = [row.name for row in table(options) if not row.scalar]
    scalars = [row.name for row in table(options) if row.scalar]
    found = []
    for index in moving:
        for param in groups[index]["params"]:
            if not holds(held := state.get(param), options):
                continue
            found += [
                Source(
                    theta=theta,
                    grad=grad,
                    state=tuple(statistics),
                    scalars={name: held[name] for name in scalars},
                    group=index,
                    layout=reduction.number[id(param)],
                )
                for theta, grad, *statistics in sharding.parts(param, [held[name] for name in names])
            ]
    return found


class Survey(NamedTuple):
    """What a step knows of all ranks before it begins; tensors are 0-dimensional and wide.

    Attributes:
        relative: the trust radius that the weights' size allows, infinite where lr is not in weight units. It is of all
            trainable weights: a loss that leaves some out for a step makes the others no smaller.
        ok: 1, or 0 if a gradient is not usable, no rank has any, or ranks differ in their learning rates.
        idle: whether no rank has a gradient, where that can be known without waiting for a device.
    """

    relative: Tensor
    ok: Tensor
    idle: bool


def survey(
    groups: Groups,
    state: State,
    moving: Sequence[int],
    chunks: Sequence[Chunk],
    reduction: Reduction,
    options: Options,
    home: torch.device,
) -> Survey:
    """Look at the weights, gradients and learning rates of all ranks, in one reduction.

    Raises:
        ValueError: on every rank, if ranks differ in their learning rates. Where scalars live on an accelerator the
            step is skipped instead: reading them would wait for it.
    """
    sized = options.noise == "adaptive" and options.trust_region == "rms"
    held = [[param for param in groups[index]["params"] if holds(state.get(param), options)] for index in moving]
    pace = [_pace(groups, home)] if reduction.distributed else []
    rows = []
    for number in range(len(reduction.layouts)):
        sums = [
            weight_scale.sums([param for param in params if reduction.number[id(param)] == number], home)
            for params in (held if sized else ())
        ]
        unusable = reductions.unusable([chunk.grad for chunk in chunks if chunk.layout == number], home)
        present = torch.full_like(unusable, any(chunk.layout == number for chunk in chunks))
        rows.append(torch.cat([torch.stack([unusable, present]), *sums, *pace]))
    found = reduction.sum(torch.stack(rows))
    ok = (found[0] == 0.0) & (found[1] > 0.0)
    if pace:
        count, total, squares = found[-3:].unbind()
        # Of ranks that agree, the variance is rounding; of a rate that is not finite it is no number, and not larger.
        differ = count * squares - total * total > 4096 * torch.finfo(found.dtype).eps * total * total
        if is_readable(differ) and bool(differ):
            raise ValueError(
                "Arturo: ranks that hold parts of one model differ in their learning rates. Give all of them the same, "
                "also where a scheduler follows a metric: reduce it over the ranks first."
            )
        ok = ok & ~differ
    relative = torch.full_like(found[0], torch.inf)
    if sized:
        rates = [learning_rate.scalar(groups[index]["lr"], home) for index in moving]
        relative = weight_scale.radius(found[2 : 2 + 2 * len(moving)].unflatten(0, (-1, 2)), rates)
    return Survey(relative, ok.to(found), is_readable(found) and not bool(found[1]))


def _pace(groups: Groups, home: torch.device) -> Tensor:
    """1, one number that follows from the learning rates of all groups, and its square; shape (3,), wide.

    Their sums over ranks tell whether the number is the same everywhere.
    """
    number = torch.stack([(1 + i) ** 0.5 * learning_rate.scalar(group["lr"], home) for i, group in enumerate(groups)])
    return torch.stack([torch.ones_like(number[0]), number.sum(), number.sum() ** 2])
