"""What the library reads of many tensors: addresses, element types and blocks, made once for all passes of a step."""

from __future__ import annotations

import ctypes
import functools
from array import array
from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

from arturo_core.kernels.cpu.library import loaded
from arturo_core.step.chunks import Source

#: Numbers of the element types in the library.
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

_dtype = attrgetter("dtype")

#: Bytes of a block's entry.
_ENTRY = 16


class Table:
    """Sources and their addresses; valid as long as no tensor of them gets other memory.

    Every function takes a table wherever it takes sources, and saves the time of making one.
    """

    __slots__ = ("addresses", "arguments", "kinds", "sources")

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        every: list[Tensor] = []
        typed: list[Tensor] = []
        for source in sources:
            theta, grad, state = source.theta, source.grad, source.state
            every += (theta, grad, *state)
            typed += (theta, grad, state[0])
        self.addresses = array("Q", list(map(Tensor.data_ptr, every)))
        self.kinds = bytes(map(KINDS.__getitem__, map(_dtype, typed)))
        blocks, count = _blocks(tuple(map(Tensor.numel, every[::6])))
        self.arguments = (self.addresses.buffer_info()[0], self.kinds, len(sources), blocks, count)


def outline(table: Table) -> Table:
    """A table without its sources, to be :func:`renewed` in a later step."""
    kept = Table.__new__(Table)
    kept.sources, kept.addresses, kept.kinds, kept.arguments = (), table.addresses, table.kinds, table.arguments
    return kept


def renewed(outline: Table, sources: Sequence[Source]) -> Table:
    """The table of the sources that an outline was made of, when only their gradients may have other memory."""
    found = Table.__new__(Table)
    found.sources, found.addresses, found.kinds, found.arguments = (
        sources,
        outline.addresses,
        outline.kinds,
        outline.arguments,
    )
    found.addresses[1::6] = array("Q", [source.grad.data_ptr() for source in sources])
    return found


def table(sources: Sequence[Source] | Table) -> Table:
    """The table of these sources, or the table itself."""
    return sources if isinstance(sources, Table) else Table(sources)


@functools.lru_cache(maxsize=64)
def _blocks(counts: tuple[int, ...]) -> tuple[bytes, int]:
    numbers = array("q", counts)
    address, sources = numbers.buffer_info()
    count = int(loaded().arturo_count_blocks(address, sources))
    entries = bytearray(count * _ENTRY + 1)
    held = (ctypes.c_char * len(entries)).from_buffer(entries)
    loaded().arturo_make_blocks(address, sources, held)
    return bytes(entries), count
