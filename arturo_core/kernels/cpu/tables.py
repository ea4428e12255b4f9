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

#: Numbers of the element types of weights and gradients in the library.
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

#: Numbers of the storages of a state, by the type of its first tensor; int8: see :mod:`arturo_core.storage.codes`.
STORAGES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 3}

#: Addresses of a source: weights, gradient, four tensors of state, and two of scales, which codes alone have.
ADDRESSES = 8

#: What stands for the addresses of scales in other storages.
_NO_SCALES = (0, 0)

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
        every: list[int] = []
        thetas = [source.theta for source in sources]
        kinds = bytearray(3 * len(sources))
        kinds[::3] = bytes(map(KINDS.__getitem__, map(_dtype, thetas)))
        kinds[1::3] = bytes([KINDS[source.grad.dtype] for source in sources])
        kinds[2::3] = bytes([STORAGES[source.state[0].dtype] for source in sources])
        for source in sources:
            state = source.state
            every += map(Tensor.data_ptr, (source.theta, source.grad, *state))
            if len(state) == 4:
                every += _NO_SCALES
        self.addresses = array("Q", every)
        self.kinds = bytes(kinds)
        blocks, count = _blocks(tuple(map(Tensor.numel, thetas)))
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
    found.addresses[1::ADDRESSES] = array("Q", [source.grad.data_ptr() for source in sources])
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
