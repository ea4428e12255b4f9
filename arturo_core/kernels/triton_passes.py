"""The passes of the default form on an accelerator, as Triton kernels: one launch for all tensors of one kind.

A step reads and writes every tensor in place; what it needs besides is a few bytes for 8,192 elements. Nothing waits
for the device: gains, ``ok``, ℓ and f are read there.

Tensors of one batch that differ in dtype, or whose addresses are not multiples of 16, take a launch of their own;
besides, each pass has one more launch, which adds up. Where tensors lie is told to the kernels by a table on the
device. It is copied from pinned memory, without waiting, and again only when an address has changed.

In a CUDA graph the table is written by launches whose arguments are its numbers, so that it is part of the graph, and
nothing of the host is read when the graph is replayed. What must hold then is what holds for every graph: weights,
gradients and state stay where they were at the capture, and one step was taken before it, in which Triton compiles the
kernels and loads them. Under capture nothing is kept for later steps, because the table's memory is the graph's.

The state may be float32 or bfloat16, weights and gradients float16, too. Nothing here imports Triton unless asked.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from arturo_core.contexts import fake_mode_is_active, lasting

if TYPE_CHECKING:
    from arturo_core.step.chunks import Source

#: Elements that a program works on at a time, and in all.
BLOCK, SPAN = 512, 8192

#: Programs whose sums are added up at a time.
ADDED = 1024

#: Tables that are kept for the next step.
KEPT = 64

#: Of the compiler. Products and sums are not fused, so that its versions agree.
OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}

_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_STORED = (torch.float32, torch.bfloat16)
_PLAIN = (Tensor, torch.nn.Parameter)


class Launch(NamedTuple):
    """Tensors of a batch that one launch takes: rows ``low`` to ``high`` of the table, programs from ``first`` on."""

    theta: str
    grad: str
    state: str
    aligned: bool
    low: int
    high: int
    first: int
    programs: int


@dataclass(frozen=True)
class Batch:
    """Tensors of one device, and the table that tells the kernels where they are, for the passes of one step.

    Attributes:
        sources: the tensors; one at least.
        device: theirs.
        table: on the device.
        launches: that a pass takes.
    """

    sources: Sequence[Source]
    device: torch.device
    table: Tensor
    launches: Sequence[Launch]

    @property
    def programs(self) -> int:
        return self.launches[-1].first + self.launches[-1].programs


@functools.cache
def kernels() -> ModuleType:
    from arturo_core.kernels import triton_kernels

    return triton_kernels


#: By device: why not.
_reasons: dict[torch.device, str] = {}


def available(device: torch.device) -> bool:
    """Whether these passes can run on a device."""
    return not why_not(device)


def why_not(device: torch.device) -> str:
    """Why these passes cannot run on a device; empty if they can.

    Asked for the first time it compiles and launches a small kernel. Under Triton's interpreter they run on the CPU.
    """
    known = _reasons.get(device)
    if known is None:
        if _capturing(device):
            return "a step has to be taken before a graph is captured"
        if fake_mode_is_active():
            return "tensors hold no numbers"
        known = _reasons[device] = _reason(device)
    return known


def _reason(device: torch.device) -> str:
    if device.type not in ("cpu", "cuda", "xpu"):
        return f"there are no Triton kernels for {device.type!r}"
    try:
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        if (device.type == "cpu") != kernels().INTERPRETED:
            return f"Triton has no kernels for {device.type!r} now (its interpreter has them for the CPU)"
        if device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device) < (8, 0):
            return "Triton needs compute capability 8.0 or more"
        if device.type == "xpu" and not torch.xpu.get_device_properties(device).has_fp64:
            return "the device has no float64"
        _load(device)
    except Exception as error:  # of the compiler, the driver, or a broken installation
        return f"Triton does not work here ({_first_line(error)})"
    return ""


def _load(device: torch.device) -> None:
    with _on(device):
        _write(torch.zeros(kernels().WRITTEN, dtype=torch.int64, device=device), [0] * kernels().WRITTEN)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def eligible(source: Source) -> bool:
    """Whether a parameter's tensors are where the kernels can run, of dtypes that they know, and alike and dense."""
    theta, grad, state = source.theta, source.grad, source.state
    if len(state) != 4 or theta.dtype not in _NAMES or grad.dtype not in _NAMES or state[0].dtype not in _STORED:
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


def prepare(sources: Sequence[Source] | Batch) -> Batch:
    """A batch of eligible parameters on one device. The passes of a step may share it, which saves the host time."""
    if isinstance(sources, Batch):
        return sources
    device = sources[0].theta.device
    kinds: dict[tuple[str, str, str, bool], list[tuple[int, list[int], int]]] = {}
    for number, source in enumerate(sources):
        places = [source.theta.data_ptr(), source.grad.data_ptr(), *(held.data_ptr() for held in source.state)]
        dtypes = (_NAMES[source.theta.dtype], _NAMES[source.grad.dtype], _NAMES[source.state[0].dtype])
        aligned = not any(place % 16 for place in places)
        kinds.setdefault((*dtypes, aligned), []).append((number, places, source.theta.numel()))
    numbers: list[int] = []
    launches = []
    low = first = 0
    for kind, members in kinds.items():
        begun = first
        for number, places, elements in members:
            numbers += [*places, elements, first, number]
            first += -(-elements // SPAN)
        launches.append(Launch(*kind, low, low + len(members), begun, first - begun))
        low += len(members)
    return Batch(sources, device, _table(numbers, device), launches)


#: The table of the last step for each set of parameters; by device, stream, and what begins the table.
_tables: dict[tuple[Any, ...], tuple[list[int], Tensor]] = {}


def _table(numbers: list[int], device: torch.device) -> Tensor:
    if _capturing(device):
        return _written(numbers, device)
    # Where several streams share a device, one must not read what the copy in another has not brought yet.
    stream = None if device.type == "cpu" else torch.accelerator.current_stream(device).stream_id
    key = (device, stream, len(numbers), numbers[0])
    known = _tables.get(key)
    if known is not None and known[0] == numbers:
        return known[1]
    with lasting():
        here = torch.tensor(numbers, dtype=torch.int64, device="cpu", pin_memory=device.type != "cpu")
        table = here.to(device, non_blocking=True)
    if len(_tables) >= KEPT:
        _tables.clear()
    _tables[key] = (numbers, table)
    return table


def _written(numbers: list[int], device: torch.device) -> Tensor:
    """A table whose numbers are arguments of launches."""
    size = kernels().WRITTEN
    table = torch.empty(-(-len(numbers) // size) * size, dtype=torch.int64, device=device)
    with _on(device):
        for start in range(0, len(numbers), size):
            part = numbers[start : start + size]
            _write(table[start : start + size], part + [0] * (size - len(part)))
    return table


def _write(table: Tensor, numbers: list[int]) -> None:
    coded = tuple((number << 4) + 1 + kernels().LARGE for number in numbers)
    kernels().write[(1,)](table, coded, **OPTIONS)


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    if device.type == "cpu":
        return nullcontext()
    context: AbstractContextManager[Any] = torch.get_device_module(device).device(device)
    return context


def _columns(batch: Batch, columns: int) -> Tensor:
    """For every program its sums, float64, one row a sum."""
    return torch.empty(columns, batch.programs, dtype=torch.float64, device=batch.device)


def _total(batch: Batch, sums: Tensor) -> Tensor:
    """The sums of every source, in the batch's order, one column a sum."""
    columns, rows = sums.shape
    out = torch.empty(len(batch.sources), columns, dtype=torch.float64, device=batch.device)
    kernels().total[(len(batch.sources), columns)](
        batch.table, sums, rows, out, columns, BLOCK=ADDED, SPAN=SPAN, **OPTIONS
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
    batch = prepare(sources)
    with _on(batch.device):
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
                BLOCK=BLOCK,
                SPAN=SPAN,
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
    batch = prepare(sources)
    with _on(batch.device):
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
                BLOCK=BLOCK,
                SPAN=SPAN,
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
    batch = prepare(sources)
    with _on(batch.device):
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
                BLOCK=BLOCK,
                SPAN=SPAN,
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
