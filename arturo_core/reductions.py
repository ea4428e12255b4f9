"""Sums over all parameters: of every chunk, on every device, and over a process group where one is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from arturo_core.trust_region import wide_dtype

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: Gradients above this are treated as overflow: their squares would leave float32.
LARGEST_GRADIENT = 1e18


def totals(rows: Sequence[Sequence[Tensor]], columns: int, device: torch.device) -> Tensor:
    """Column sums of per-chunk scalars, shape (columns,), wide, in the order of the chunks; zeros without chunks."""
    if not rows:
        return torch.zeros(columns, dtype=wide_dtype(device), device=device)
    return torch.stack([torch.stack(tuple(row)).to(device, wide_dtype(device)) for row in rows]).sum(dim=0)


def across(total: Tensor, group: ProcessGroup | None) -> Tensor:
    """The sum over the ranks of a process group; every rank takes part, also one that holds no parameters."""
    return _all_reduce(total, group, "SUM")


def least(values: Sequence[Tensor], device: torch.device, group: ProcessGroup | None) -> Tensor:
    """Minimum of per-chunk scalars, 0-dimensional; +inf without chunks."""
    infinite = torch.full((), torch.inf, dtype=wide_dtype(device), device=device)
    smallest = torch.stack([infinite, *(value.to(infinite) for value in values)]).amin()
    return _all_reduce(smallest, group, "MIN")


def usable(grads: Sequence[Tensor], device: torch.device, group: ProcessGroup | None) -> Tensor:
    """1 if every gradient is finite and below :data:`LARGEST_GRADIENT` everywhere, else 0; 0-dimensional, wide."""
    extremes = [torch.stack(torch.aminmax(grad)).to(device=device, dtype=wide_dtype(device)) for grad in grads]
    if extremes:
        # A NaN survives amin, amax and abs, and fails the comparison.
        verdict = (torch.stack(extremes).abs() < LARGEST_GRADIENT).all().to(wide_dtype(device))
    else:
        verdict = torch.ones((), dtype=wide_dtype(device), device=device)
    return _all_reduce(verdict, group, "MIN")


def _all_reduce(value: Tensor, group: ProcessGroup | None, operation: str) -> Tensor:
    if group is not None:
        from torch import distributed

        distributed.all_reduce(value, op=getattr(distributed.ReduceOp, operation), group=group)
    return value
