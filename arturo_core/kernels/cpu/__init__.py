"""The default form's passes on a CPU, over many tensors at once: a compiled library, called by ctypes.

:mod:`arturo_core.algorithm.compact` defines what these functions compute, with ``prior_precision=0``; they agree with
it to a few roundings of float32. Sums are float32 within 512 elements, then float64. Results do not depend on the
number of threads, which is torch's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from arturo_core.kernels.cpu.library import available, level, loaded, why_not
from arturo_core.kernels.cpu.tables import KINDS, Table, outline, renewed, table
from arturo_core.step.chunks import Source
from arturo_core.storage.codes import BLOCK, log_values, signed_values

__all__ = [
    "KINDS",
    "Table",
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

#: Columns of gains: k, α, v, p, level, f0, f0ℓ0. Columns of what is observed: Σu²sσℓ, Σsσ, Σσ, Σe²/S, Σu²ℓ².
GAINS, SUMS = 7, 5

_WIDE, _NARROW, _CODES = torch.float32, torch.bfloat16, torch.int8
_PLAIN = (Tensor, torch.nn.Parameter)

_REASONS = {
    1: "a tensor has no memory",
    2: "there is no memory left",
    3: f"the first element of a state in 8 bits is amid {BLOCK} that share a scale",
}


def eligible(source: Source) -> bool:
    """Whether these functions can work on a parameter: element types, plain CPU memory, one dense order of elements."""
    theta, grad, state = source.theta, source.grad, source.state
    if len(state) not in (4, 6) or theta.dtype not in KINDS or grad.dtype not in KINDS:
        return False
    first, second, third, fourth = state[:4]
    kind = first.dtype
    if kind is _CODES:
        if not _coded(source):
            return False
    elif kind not in (_WIDE, _NARROW) or second.dtype is not kind or len(state) != 4:
        return False
    if third.dtype is not kind or fourth.dtype is not kind:
        return False
    # What the state is, its owner has made; weights and gradients come from anywhere.
    if type(theta) not in _PLAIN or type(grad) not in _PLAIN or theta.is_neg() or grad.is_neg():
        return False
    if not (theta.is_cpu and grad.is_cpu and first.is_cpu and second.is_cpu and third.is_cpu and fourth.is_cpu):
        return False
    count = theta.numel()
    if not count or not (count == grad.numel() == first.numel() == second.numel() == third.numel() == fourth.numel()):
        return False
    contiguous = theta.is_contiguous() and grad.is_contiguous() and first.is_contiguous()
    if contiguous and second.is_contiguous() and third.is_contiguous() and fourth.is_contiguous():
        return True
    # Scales are those of elements in a row, whatever the order in memory.
    return kind is not _CODES and _alike((theta, grad, *state))


def _coded(source: Source) -> bool:
    """Whether deviations and scales are such as belong to a state in 8 bits."""
    state, count = source.state, source.theta.numel()
    if len(state) != 6 or count % BLOCK or state[1].dtype is not _NARROW:
        return False
    return all(
        one.dtype is _NARROW and one.is_cpu and one.numel() * BLOCK == count and one.is_contiguous()
        for one in state[4:]
    )


def _alike(tensors: Sequence[Tensor]) -> bool:
    """Whether the tensors are dense in one order of dimensions, such as channels_last."""
    first = tensors[0]
    if any(tensor.layout is not torch.strided or tensor.shape != first.shape for tensor in tensors):
        return False
    order = sorted(range(first.dim()), key=first.stride, reverse=True)
    return all(tensor.permute(order).is_contiguous() for tensor in tensors)


def survey(sources: Sequence[Source] | Table, squares: bool = True) -> tuple[Tensor, Tensor]:
    """Whether gradients can be used, and how large weights are, before anything is written.

    Args:
        sources: all :func:`eligible`.
        squares: whether to sum the weights' squares, too; without, they are NaN and no weight is read.

    Returns:
        float64: 1 if any gradient has an element that is NaN, infinite or of LARGEST_GRADIENT or more, else 0; and Σθ²
        of each source.
    """
    tables = table(sources)
    count = len(tables.sources)
    unusable = torch.empty(count, dtype=torch.float64, device="cpu")
    _call("arturo_survey", tables, unusable.data_ptr())
    found = (unusable.sum() > 0.0).to(torch.float64)
    return found, _squares(tables) if squares else unusable.fill_(torch.nan)


def observe(
    sources: Sequence[Source] | Table,
    gains: Tensor,
    ok: Tensor,
    decay: Tensor | None,
    length: Tensor,
    maximize: bool,
    seeds: Tensor | None = None,
) -> Tensor:
    """Re-centre what is pending, decay the weights, update with the gradients, and sum what the dual needs.

    Args:
        sources: of one parameter group, all :func:`eligible`.
        gains: one row a source: k (of ĝ), α (of the noise), v, p, level, f0 and f0ℓ0; (sources, 7).
        ok: 1, or 0 to write nothing.
        decay: lr × weight decay.
        length: ℓ.
        maximize: whether gradients are those of an objective to maximise.
        seeds: for a state in bfloat16 or 8 bits, int64 (sources, 2): a 32-bit key and the global index of the first
            element, see :mod:`arturo_core.storage.random_bits`. With 8 bits that is the first of a scale.

    Returns:
        One row a source, float64, of what is kept: Σu²sσℓ, Σsσ, Σσ, Σe²/S, Σu²ℓ².
    """
    tables = table(sources)
    if not float(ok) > 0.0:
        return _kept_sums(tables.sources, float(length))
    count = len(tables.sources)
    given = _matrix(gains, (count, GAINS), torch.float64)
    keys = _seeds(tables, seeds)
    shrink = 0.0 if decay is None else float(decay)
    sums = torch.empty(count, SUMS, dtype=torch.float64, device="cpu")
    _call(
        "arturo_observe",
        tables,
        given.data_ptr(),
        None if keys is None else keys.data_ptr(),
        float(length),
        shrink,
        maximize,
        sums.data_ptr(),
    )
    if shrink:
        increment_version([source.theta for source in tables.sources])
    return sums


def apply(sources: Sequence[Source] | Table, factor: Tensor, length: Tensor, seeds: Tensor | None = None) -> Tensor:
    """Take the step θ ← θ − fℓu. Narrow weights are re-centred by what rounding leaves of it, others in the next step.

    Args:
        sources: all :func:`eligible`.
        factor: f; with 0 nothing is written.
        length: ℓ.
        seeds: those of :func:`observe`, for a state in bfloat16 or 8 bits under narrow weights.

    Returns:
        Σθ² of each source after the step, float64.
    """
    tables = table(sources)
    step = float(factor) * float(length)
    if step == 0.0:
        return _squares(tables)
    keys = _seeds(tables, seeds)
    squares = torch.empty(len(tables.sources), dtype=torch.float64, device="cpu")
    _call(
        "arturo_apply",
        tables,
        None if keys is None else keys.data_ptr(),
        step,
        float(length),
        squares.data_ptr(),
    )
    increment_version([source.theta for source in tables.sources])
    return squares


def _squares(tables: Table) -> Tensor:
    squares = torch.empty(len(tables.sources), dtype=torch.float64, device="cpu")
    _call("arturo_squares", tables, squares.data_ptr())
    return squares


def _kept_sums(sources: Sequence[Source], length: float) -> Tensor:
    """What :func:`observe` returns where it is told to write nothing."""
    rows = []
    for source in sources:
        direction, deviation, curvature = _kept(source.state)
        stiffness = curvature * deviation
        newton = direction * length
        terms = (newton * (direction * stiffness), stiffness, deviation, torch.zeros_like(newton), newton * newton)
        rows.append(torch.stack([term.sum(dtype=torch.float64) for term in terms]))
    return torch.stack(rows) if rows else torch.empty(0, SUMS, dtype=torch.float64, device="cpu")


def _kept(state: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """u, σ and s, float32."""
    first, deviation, third = state[0].flatten(), state[1].flatten().float(), state[2].flatten()
    if first.dtype is _CODES:
        return signed_values(first, state[4].flatten()), deviation, log_values(third)
    return first.float(), deviation, third.float()


def _matrix(given: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    if tuple(given.shape) != shape:
        raise ValueError(f"Arturo: the CPU kernel was given a tensor of shape {tuple(given.shape)} instead of {shape}.")
    return given.detach().to("cpu", dtype).contiguous()


def _seeds(tables: Table, seeds: Tensor | None) -> Tensor | None:
    if seeds is not None:
        return _matrix(seeds, (len(tables.sources), 2), torch.int64)
    if any(tables.kinds[2::3]):
        raise ValueError("Arturo: the CPU kernel needs seeds to round a state in bfloat16 or 8 bits.")
    return None


def _call(name: str, tables: Table, *arguments: object) -> None:
    failed = getattr(loaded(), name)(*tables.arguments, level(), torch.get_num_threads(), *arguments)
    if failed:
        reason = _REASONS[failed]
        raise RuntimeError(f"Arturo: the CPU kernel has written nothing, since {reason}.")
