"""What the kernels read of many tensors: where they are, and which launches a pass takes. Made once a step.

Where tensors lie is told to the kernels by a table on the device. It is copied from pinned memory, without waiting, and
again only when an address has changed. In a CUDA graph it is written by launches whose arguments are its numbers, so
that it is part of the graph, and nothing of the host is read when the graph is replayed. Under capture nothing is kept
for later steps, because the table's memory is the graph's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from arturo_core.contexts import is_capturing, lasting
from arturo_core.kernels.triton.availability import OPTIONS, kernels

if TYPE_CHECKING:
    from arturo_core.step.chunks import Source

#: Elements that a program works on at a time, and in all.
BLOCK, SPAN = 512, 8192

#: Numbers of a tensor in the table: addresses, elements, its first program, its place among the sources.
ROW = 9

#: Bytes that are read at once, if all addresses are multiples of them.
GRAIN = 16

#: Tables that are kept for the next step.
KEPT = 64

#: Names of the element types in the kernels.
KINDS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


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
        numbers: what the table is made of.
    """

    sources: Sequence[Source]
    device: torch.device
    table: Tensor
    launches: Sequence[Launch]
    numbers: Sequence[int] = ()

    @property
    def programs(self) -> int:
        return self.launches[-1].first + self.launches[-1].programs


class Outline(NamedTuple):
    """A batch without its tensors."""

    device: torch.device
    launches: Sequence[Launch]
    numbers: Sequence[int]


def batch_of(sources: Sequence[Source]) -> Batch:
    """A batch of eligible parameters on one device."""
    device = sources[0].theta.device
    kinds: dict[tuple[str, str, str, bool], list[tuple[int, list[int], int]]] = {}
    for number, source in enumerate(sources):
        places = [source.theta.data_ptr(), source.grad.data_ptr(), *(held.data_ptr() for held in source.state)]
        dtypes = (KINDS[source.theta.dtype], KINDS[source.grad.dtype], KINDS[source.state[0].dtype])
        aligned = not any(place % GRAIN for place in places)
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
    return Batch(sources, device, _table(numbers, device), launches, numbers)


def outline(batch: Batch) -> Outline:
    """A batch without its tensors, to be :func:`renewed` in a later step."""
    return Outline(batch.device, batch.launches, batch.numbers)


def renewed(outline: Outline, sources: Sequence[Source]) -> Batch:
    """The batch of the sources that an outline was made of, when only their gradients may have other memory."""
    before, order = outline.numbers[1::ROW], outline.numbers[ROW - 1 :: ROW]
    places = [sources[number].grad.data_ptr() for number in order]
    if [place % GRAIN for place in places] != [place % GRAIN for place in before]:
        return batch_of(sources)
    numbers = list(outline.numbers)
    numbers[1::ROW] = places
    return Batch(sources, outline.device, _table(numbers, outline.device), outline.launches, numbers)


#: The table of the last step for each set of parameters; by device, stream, and what begins the table.
_tables: dict[tuple[Any, ...], tuple[list[int], Tensor]] = {}


def _table(numbers: list[int], device: torch.device) -> Tensor:
    if is_capturing(device):
        return written(numbers, device)
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


def written(numbers: list[int], device: torch.device) -> Tensor:
    """A table whose numbers are arguments of launches."""
    size = kernels().WRITTEN
    table = torch.empty(-(-len(numbers) // size) * size, dtype=torch.int64, device=device)
    with on(device):
        for start in range(0, len(numbers), size):
            part = numbers[start : start + size]
            _write(table[start : start + size], part + [0] * (size - len(part)))
    return table


def _write(table: Tensor, numbers: list[int]) -> None:
    coded = tuple((number << 4) + 1 + kernels().LARGE for number in numbers)
    kernels().write[(1,)](table, coded, **OPTIONS)


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    if device.type == "cpu":
        return nullcontext()
    context: AbstractContextManager[Any] = torch.get_device_module(device).device(device)
    return context
