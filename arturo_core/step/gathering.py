"""What a step works on, collected from the parameters: their parts on this rank, and what concerns all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor

from arturo_core.algorithm.forms import form_of
from arturo_core.contexts import is_readable
from arturo_core.distributed import reductions, sharding
from arturo_core.distributed.places import places
from arturo_core.distributed.reductions import Reduction
from arturo_core.numerics import wide_dtype
from arturo_core.options import Options
from arturo_core.state import holds, table
from arturo_core.step import learning_rate, weight_scale
from arturo_core.step.chunks import Chunk, Source
from arturo_core.storage.kinds import Kind, entries, kind_of

Groups = Sequence[Mapping[str, Any]]
State = Mapping[Tensor, Mapping[str, Any]]


def gather(groups: Groups, state: State, moving: Sequence[int], reduction: Reduction, options: Options) -> list[Source]:
    """Every parameter of the groups that move that has a gradient: what of it, and of its state, is on this rank.

    What one parameter raises is raised after the last: gradients that are sums over ranks need all ranks of a mesh.
    """
    rows = tuple(row.name for row in table(options) if not row.scalar)
    number = {id(param): index for index, param in enumerate(param for group in groups for param in group["params"])}
    scalars = [row.name for row in table(options) if row.scalar]
    found: list[Source] = []
    refusal: Exception | None = None
    for index in moving:
        for param in groups[index]["params"]:
            if not holds(held := state.get(param), options):
                continue
            kept = kind_of(held)
            names = [entry.name for entry in entries(rows, kept)]
            try:
                parts = sharding.parts(param, [held[name] for name in names])
                # Nothing of a wide state is rounded at random, and to know where its elements are would cost time.
                where = repeat(0) if kept is Kind.WIDE else places(param)
                found += [
                    Source(
                        theta=theta,
                        grad=grad,
                        state=tuple(statistics),
                        scalars={name: held[name] for name in scalars},
                        group=index,
                        layout=reduction.number[id(param)],
                        param=param if sharding.is_plain(param) else None,
                        number=number[id(param)],
                        place=place,
                    )
                    for (theta, grad, *statistics), place in zip(parts, where, strict=False)
                ]
            except Exception as error:
                refusal = refusal or error
    if refusal is not None:
        raise refusal
    return found


class Survey(NamedTuple):
    """What a step knows of all ranks before it begins, the same on all of them; tensors are 0-dimensional and wide.

    Attributes:
        relative: the trust radius that the weights' size allows, infinite where lr is not in weight units. It is of all
            trainable weights: a loss that leaves some out for a step makes the others no smaller.
        ok: 1, or 0 if a gradient is not usable, no rank has any, one refuses, or ranks differ in their learning rates.
        idle: whether no rank has a gradient, where that can be known without waiting for a device.
    """

    relative: Tensor
    ok: Tensor
    idle: bool


def sizes(
    groups: Groups,
    state: State,
    moving: Sequence[int],
    chunks: Sequence[Chunk],
    reduction: Reduction,
    options: Options,
    home: torch.device,
    squares: weight_scale.Squares,
) -> Tensor:
    """Of every layout and group on this rank what :func:`arturo_core.step.weight_scale.sums` says, wide.

    Args:
        groups: of the optimizer.
        state: of the optimizer.
        moving: indices of the groups that move here.
        chunks: what of parameters with a gradient is on this rank.
        reduction: over the ranks.
        options: of the optimizer.
        home: where scalars live.
        squares: of the weights that kernels work on, as the last step has left them.

    Returns:
        (layouts, groups, 2); (layouts, 0, 2) where a step's length does not depend on the weights' size.
    """
    sized = is_sized(options)
    known: dict[int, Tensor] = {}
    for chunk in chunks if sized else ():
        if chunk.kernel is not None:
            known |= squares.of([source.param for source in chunk.sources], chunk.squares)
    # As long on every rank, also where a learning rate of 0 on one of them alone leaves a group out there.
    shape = (len(reduction.layouts), len(groups) if sized else 0, 2)
    found = torch.zeros(shape, dtype=wide_dtype(home), device=home)
    for index in moving if sized else ():
        held = [param for param in groups[index]["params"] if holds(state.get(param), options)]
        for number in range(len(reduction.layouts)):
            here = [param for param in held if reduction.number[id(param)] == number]
            found[number, index] = weight_scale.sums(here, home, known)
    return found


def is_sized(options: Options) -> bool:
    """Whether a step's length depends on the weights' size."""
    return form_of(options).sized and options.trust_region == "rms"


def survey(
    groups: Groups,
    moving: Sequence[int],
    chunks: Sequence[Chunk],
    sizes: Tensor,
    reduction: Reduction,
    home: torch.device,
    refusal: Exception | None = None,
) -> Survey:
    """Look at the weights, gradients and learning rates of all ranks, replicas too, in one reduction.

    Args:
        groups: of the optimizer.
        moving: indices of the groups that move here; ranks may differ in it, and then learn that their rates differ.
        chunks: what of parameters with a gradient is on this rank.
        sizes: :func:`sizes`.
        reduction: over the ranks.
        home: where scalars live.
        refusal: why this rank cannot take the step (:func:`arturo_core.distributed.agreement.refusal`).

    Raises:
        Exception: the refusal of this rank.
        ValueError: on every rank, if ranks differ in their learning rates.
        RuntimeError: on every other rank, if one refuses.

    Where scalars live on an accelerator nothing is raised, for reading them would wait for it: the step is skipped on
    every rank, and whoever has refused raises after it.
    """
    unusable = reductions.unusable([chunk.grad for chunk in chunks if chunk.kernel is None], home)
    for chunk in chunks:
        if chunk.kernel is not None:
            unusable = torch.maximum(unusable, chunk.kernel.survey(chunk.table, squares=False)[0].to(unusable))
    present, refused = torch.full_like(unusable, bool(chunks)), torch.full_like(unusable, refusal is not None)
    pace = [_pace(groups, home, refusal)] if reduction.distributed else []
    sums, notes = reduction.sum_and_tell(sizes, torch.cat([torch.stack([unusable, present, refused]), *pace]))
    unusable, present, refused = notes[:3].unbind()
    differ = _differ(*notes[3:].unbind()) if pace else torch.zeros_like(unusable, dtype=torch.bool)
    if reduction.distributed and is_readable(notes):
        _raise(refusal, bool(differ), bool(refused))
    ok = (unusable == 0.0) & (present > 0.0) & (refused == 0.0) & ~differ
    relative = torch.full_like(unusable, torch.inf)
    if sizes.numel() and moving:
        rates = [learning_rate.scalar(groups[index]["lr"] if refusal is None else torch.inf, home) for index in moving]
        relative = weight_scale.radius(torch.stack([sums[index] for index in moving]), rates)
    return Survey(relative, ok.to(sums), is_readable(present) and not bool(present))


def _raise(refusal: Exception | None, differ: bool, refused: bool) -> None:
    """On every rank, if there is something to raise."""
    if refusal is not None:
        raise refusal
    if differ:
        raise ValueError(
            "Arturo: ranks that hold parts of one model differ in their learning rates. Give all of them the same, "
            "also where a scheduler follows a metric: reduce it over the ranks first."
        )
    if refused:
        raise RuntimeError(
            "Arturo: another rank that holds a part of this model cannot take the step; its own error says why. No "
            "rank has taken it."
        )


def _pace(groups: Groups, home: torch.device, refusal: Exception | None) -> Tensor:
    """1, one number that follows from the learning rates of all groups, and its square; shape (3,), wide.

    Their sums over ranks tell whether the number is the same everywhere. A learning rate that its own rank refuses
    counts as -1, unlike all that are allowed.
    """
    rates = [
        learning_rate.scalar(-1.0 if refusal is not None and learning_rate.is_none(group["lr"]) else group["lr"], home)
        for group in groups
    ]
    number = torch.stack([(1 + index) ** 0.5 * rate for index, rate in enumerate(rates)]).sum()
    return torch.stack([torch.ones_like(number), number, number**2])


def _differ(count: Tensor, total: Tensor, squares: Tensor) -> Tensor:
    """Whether ranks differ in the number of :func:`_pace`, given the sums of the three over them."""
    # Of ranks that agree, the variance is rounding; of a rate that is not finite it is no number, and not larger.
    return count * squares - total * total > 4096 * torch.finfo(total.dtype).eps * total * total
