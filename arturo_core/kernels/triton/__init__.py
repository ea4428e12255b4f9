"""The passes of the default form on an accelerator, as Triton kernels: one launch for all tensors of one kind.

A step reads and writes every tensor in place; what it needs besides is a few bytes for 8,192 elements. Nothing waits
for the device: gains, ``ok``, ℓ and f are read there.

Tensors of one batch that differ in dtype, or whose addresses are not multiples of 16, take a launch of their own;
besides, each pass has one more launch, which adds up (:mod:`.tables` says where tensors lie).

In a CUDA graph must hold what holds for every graph: weights, gradients and state stay where they were at the capture,
and one step was taken before it, in which Triton compiles the kernels and loads them.

The state may be float32 or bfloat16, weights and gradients float16, too. Nothing here imports Triton unless asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from arturo_core.kernels.triton import tables
from arturo_core.kernels.triton.availability import OPTIONS, available, kernels, why_not
from arturo_core.kernels.triton.tables import KINDS, Batch, Launch, on, outline, renewed

if TYPE_CHECKING:
    from arturo_core.step.chunks import Source

__all__ = [
    "KINDS",
    "Batch",
    "Launch",
    "apply",
    "available",
    "eligible",
    "observe",
    "outline",
    "renewed",
    "survey",
    "table",
    "why_not",
]

#: Programs whose sums are added up at a time.
ADDED = 1024

_STORED = (torch.float32, torch.bfloat16)
_PLAIN = (Tensor, torch.nn.Parameter)


def eligible(source: Source) -> bool:
    """Whether a parameter's tensors are where the kernels can run, of dtypes that they know, and alike and dense."""
    theta, grad, state = source.theta, source.grad, source.state
    if len(state) != 4 or theta.dtype not in KINDS or grad.dtype not in KINDS or state[0].dtype not in _STORED:
        return False
    shape, device, stored = theta.shape, theta.device, state[0].dtype
    tensors = (theta, grad, *state)
    contiguous = True
    for tensor in tensors:
        if type(tensor) not in _PLAIN or tensor.shape != shape or tensor.device != device:
            return False
        if tensor.layout != torch.strided or tensor.is_neg():
            return False
        contiguous = contiguous and tensor.is_contiguous()
    if theta.numel() == 0 or any(held.dtype != stored for held in state):
        return False
    return available(device) and (contiguous or _lie_alike(tensors))


def _lie_alike(tensors: Sequence[Tensor]) -> bool:
    """Whether all have the first one's strides, and leave no gaps; how a dimension of length 1 lies does not matter."""
    strides = [[step for step, size in zip(one.stride(), one.shape, strict=True) if size != 1] for one in tensors]
    sizes = [size for size in tensors[0].shape if size != 1]
    reach = 1
    for step, size in sorted(zip(strides[0], sizes, strict=True)):
        if step != reach:
            return False
        reach *= size
    return all(one == strides[0] for one in strides)


def table(sources: Sequence[Source] | Batch) -> Batch:
    """A batch of eligible parameters on one device. The passes of a step share it, which saves the host time."""
    return sources if isinstance(sources, Batch) else tables.batch_of(sources)


def _columns(batch: Batch, columns: int) -> Tensor:
    """For every program its sums, float64, one row a sum."""
    return torch.empty(columns, batch.programs, dtype=torch.float64, device=batch.device)


def _total(batch: Batch, sums: Tensor) -> Tensor:
    """The sums of every source, in the batch's order, one column a sum."""
    columns, rows = sums.shape
    out = torch.empty(len(batch.sources), columns, dtype=torch.float64, device=batch.device)
    kernels().total[(len(batch.sources), columns)](
        batch.table, sums, rows, out, columns, BLOCK=ADDED, SPAN=tables.SPAN, **OPTIONS
    )
    return out


def survey(sources: Sequence[Source] | Batch, squares: bool = True) -> tuple[Tensor, Tensor]:
    """Whether a gradient is unusable anywhere (NaN, infinite, or too large), and the weights' squares.

    Args:
        sources: one parameter at least; so for the other passes.
        squares: whether the squares are wanted; without them weights are not read.

    Returns:
        1.0 or 0.0, 0-dimensional, and Σθ² of each source (n,), NaN if not wanted; float64.
    """
    batch = table(sources)
    with on(batch.device):
        sums = _columns(batch, 1 + squares)
        for launch in batch.launches:
            kernels().survey[(launch.programs,)](
                batch.table,
                launch.low,
                launch.high,
                launch.first,
                sums,
                batch.programs,
                THETA=launch.theta,
                GRAD=launch.grad,
                ALIGNED=launch.aligned,
                SQUARES=squares,
                BLOCK=tables.BLOCK,
                SPAN=tables.SPAN,
                **OPTIONS,
            )
        total = _total(batch, sums)
        return (total[:, 0].amax() > 0.0).to(total), total[:, 1] if squares else torch.full_like(total[:, 0], torch.nan)


def observe(
    sources: Sequence[Source] | Batch,
    gains: Tensor,
    ok: Tensor,
    decay: Tensor | None,
    length: Tensor,
    maximize: bool,
    seeds: Tensor | None = None,
) -> Tensor:
    """Re-centre what is pending, decay the weights, update with a gradient, and sum what the dual needs.

    With ``ok`` = 0 nothing is written, and the sums are those of what is kept.

    Args:
        sources: all of one parameter group.
        gains: a row a source; its columns are the entries of :class:`arturo_core.algorithm.compact.Gains`.
        ok: 1, or 0 if the step is skipped; this and what follows on the device.
        decay: lr × weight decay, or None.
        length: ℓ (weight units).
        maximize: whether gradients are those of an objective that is to grow.
        seeds: with a bfloat16 state a key of 32 bits and the global index of the first element, for each source; int64.

    Returns:
        For each source Σu²sσℓ, Σsσ, Σσ, Σe²/S and Σu²ℓ²; float64, shape (n, 5).
    """
    batch = table(sources)
    with on(batch.device):
        sums = _columns(batch, 5)
        for launch in batch.launches:
            kernels().observe[(launch.programs,)](
                batch.table,
                launch.low,
                launch.high,
                launch.first,
                gains.contiguous(),
                ok,
                ok if decay is None else decay,
                length,
                _needed(seeds, batch, launch.state == "bfloat16"),
                sums,
                batch.programs,
                THETA=launch.theta,
                GRAD=launch.grad,
                STATE=launch.state,
                ALIGNED=launch.aligned,
                MAXIMIZE=maximize,
                DECAY=decay is not None,
                BLOCK=tables.BLOCK,
                SPAN=tables.SPAN,
                **OPTIONS,
            )
        changed = list(_states(batch))
        if decay is not None:
            changed += [source.theta for source in batch.sources]
        _changed(changed)
        return _total(batch, sums)


def apply(sources: Sequence[Source] | Batch, factor: Tensor, length: Tensor, seeds: Tensor | None = None) -> Tensor:
    """Take the step θ − fℓu. Narrow weights move as far as rounding lets them, and are re-centred at once.

    Args:
        sources: all of one parameter group.
        factor: f, on the device; nothing is written where it is 0.
        length: ℓ (weight units), on the device.
        seeds: as for :func:`observe`; needed if both weights and state are narrow.

    Returns:
        Σθ² of each source after it; float64, shape (n,).
    """
    batch = table(sources)
    with on(batch.device):
        sums = _columns(batch, 1)
        for launch in batch.launches:
            kernels().apply[(launch.programs,)](
                batch.table,
                launch.low,
                launch.high,
                launch.first,
                factor,
                length,
                _needed(seeds, batch, launch.state == "bfloat16" and launch.theta != "float32"),
                sums,
                batch.programs,
                THETA=launch.theta,
                STATE=launch.state,
                ALIGNED=launch.aligned,
                BLOCK=tables.BLOCK,
                SPAN=tables.SPAN,
                **OPTIONS,
            )
        changed = [source.theta for source in batch.sources]
        if any(launch.theta != "float32" for launch in batch.launches):
            changed += _states(batch)
        _changed(changed)
        return _total(batch, sums)[:, 0]


def _needed(seeds: Tensor | None, batch: Batch, rounds: bool) -> Tensor:
    """The seeds, or anything of their dtype where none are read."""
    if rounds and seeds is None:
        raise ValueError("Arturo: a bfloat16 state is rounded stochastically, and that needs seeds.")
    return batch.table if seeds is None or not rounds else seeds.contiguous()


def _states(batch: Batch) -> Iterator[Tensor]:
    return (held for source in batch.sources for held in source.state)


def _changed(tensors: Sequence[Tensor]) -> None:
    """Tell autograd, and whoever looks at the version of a tensor, that it was written to."""
    torch.autograd.graph.increment_version([tensor for tensor in tensors if not tensor.is_inference()])
