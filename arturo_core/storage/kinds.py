"""How the statistics of a parameter are kept: as numbers that are wide enough to count with, as bfloat16, or in 8 bits.

Arithmetic is float32 (float64 where weights or ``state_dtype`` are) whatever is kept. Only the default form has narrow
storage. In 8 bits (:mod:`arturo_core.storage.codes`) names differ, so that a version that lacks them refuses the
checkpoint, and the scales are a tensor of (rows, elements of a row/32). What 32 consecutive elements of a row, or of a
shard's, do not divide is kept in bfloat16 instead: vectors, odd rows, flat shards.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from arturo_core.contexts import is_fake
from arturo_core.distributed import flat, fsdp1
from arturo_core.distributed.sharding import is_dtensor
from arturo_core.options import Options
from arturo_core.storage.choices import EIGHT_BITS
from arturo_core.storage.codes import BLOCK


class Kind(Enum):
    """How statistics are kept."""

    WIDE = "float32 or float64"
    NARROW = "bfloat16"
    CODED = "8 bits"


class Entry(NamedTuple):
    """A tensor of a parameter's state that keeps a row of the table, or a part of it.

    Attributes:
        name: in the state.
        row: of the table.
        dtype: of the tensor; None for that of the arithmetic.
        scale: whether it holds the scales of blocks instead of one number an element.
    """

    name: str
    row: str
    dtype: torch.dtype | None
    scale: bool = False


#: Rows of the default form in the order of a pass, and how they are kept in 8 bits.
ROWS = ("direction", "deviation", "curvature", "displacement")
_CODED = (
    Entry("direction_8bit", "direction", torch.int8),
    Entry("deviation", "deviation", torch.bfloat16),
    Entry("curvature_8bit", "curvature", torch.int8),
    Entry("displacement_8bit", "displacement", torch.int8),
    Entry("direction_scale", "direction", torch.bfloat16, scale=True),
    Entry("displacement_scale", "displacement", torch.bfloat16, scale=True),
)


def arithmetic(param: Tensor, options: Options) -> torch.dtype:
    """Dtype of all arithmetic on a parameter: float64 where it or the state is, else float32."""
    wide = param.dtype.to_real() == torch.float64 or options.state_dtype == torch.float64
    return torch.float64 if wide else torch.float32


def counted_in(stored: torch.dtype) -> torch.dtype:
    """Dtype of the arithmetic on what is kept in this dtype."""
    return torch.float64 if stored == torch.float64 else torch.float32


def kind(param: Tensor, options: Options) -> Kind:
    """How a parameter's statistics are kept that have yet to be allocated or loaded; the same on every rank."""
    if options.state_dtype in (torch.float32, torch.float64) or arithmetic(param, options) == torch.float64:
        return Kind.WIDE
    return Kind.CODED if options.state_dtype == EIGHT_BITS and divides(param) else Kind.NARROW


def check_storage(param: Tensor, which: str, options: Options) -> None:
    """Refuse codes for what is counted in float64; ``which`` names the parameter.

    Raises:
        ValueError: with what works instead.
    """
    if options.state_dtype == EIGHT_BITS and param.dtype.to_real() == torch.float64:
        raise ValueError(
            f'Arturo: state_dtype="8bit" has no float64 arithmetic, and parameter {which} is {param.dtype}. Leave '
            "state_dtype out, or train float32 weights."
        )


def kind_of(held: Mapping[str, Any]) -> Kind:
    """How statistics that are there are kept."""
    if _CODED[0].name in held:
        return Kind.CODED
    dtype = getattr(held.get(ROWS[0]), "dtype", None)
    return Kind.NARROW if dtype == torch.bfloat16 else Kind.WIDE


def entries(names: tuple[str, ...], kept: Kind) -> tuple[Entry, ...]:
    """The tensors that keep these rows of the table."""
    if kept is Kind.CODED:
        return _CODED
    dtype = torch.bfloat16 if kept is Kind.NARROW else None
    return tuple(Entry(name, name, dtype) for name in names)


def is_codes(dtype: torch.dtype) -> bool:
    """Whether statistics whose first tensor is of this dtype are kept in 8 bits."""
    return dtype == torch.int8


def is_narrow(dtype: torch.dtype) -> bool:
    """Whether statistics whose first tensor is of this dtype have to be unpacked before anything counts with them."""
    return dtype in (torch.int8, torch.bfloat16)


def divides(param: Any) -> bool:
    """Whether blocks of 32 divide the rows of a parameter, and no shard cuts one."""
    if param.dim() < 2 or fsdp1.is_shard(param) or flat.is_declared(param):
        return False
    # Of a DTensor the strides are the whole's, so that ranks with nothing agree with the others.
    if not param.numel() or not (is_fake(param) or param.is_contiguous()):
        return False
    if _row(param) % BLOCK:
        return False
    if not is_dtensor(param):
        return True
    columns = 1
    for dim, placement in enumerate(param.placements):
        if placement.is_replicate() or getattr(placement, "dim", None) == 0:
            continue
        if getattr(placement, "dim", None) != 1 or param.dim() != 2 or type(placement).__name__ != "Shard":
            return False
        columns *= param.device_mesh.size(dim)
    return _row(param) % (BLOCK * columns) == 0


def whole_shape(param: Tensor, entry: Entry) -> tuple[int, ...]:
    """Shape of an entry, of all ranks together."""
    if entry.scale:
        return param.shape[0], _row(param) // BLOCK
    return (*param.shape, 2) if param.is_complex() else tuple(param.shape)


def _row(param: Tensor) -> int:
    """Real elements of a row."""
    return param.numel() // param.shape[0] * (2 if param.is_complex() else 1)
