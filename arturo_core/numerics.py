"""Sums that are wide enough, values too small to keep, and weights that are displaced as far as rounding lets them.

Rounding to bfloat16 makes less or more of a step. The displacement that counts is learned by reading a weight back. A
compiler that fuses the write and the read keeps the number in a register, unrounded, and counts movement that never
happened; so for compiled code this is an operator that no compiler looks into.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Below this ĝ, h and D count as zero: they decay for ever, and on many processors subnormal numbers are far slower.
NEGLIGIBLE = 1e-30


def move(theta: Tensor, displacement: Tensor) -> Tensor:
    """Displace the weights in place; returns by how much they moved.

    Args:
        theta: weights, any floating-point dtype.
        displacement: in the dtype of the state; the same tensor is returned where nothing more is rounded.
    """
    if theta.dtype == displacement.dtype:
        theta.add_(displacement)
        return displacement
    if torch.compiler.is_compiling():
        moved: Tensor = _opaque(theta, displacement)
        return moved
    return _read_back(theta, displacement)


def _read_back(theta: Tensor, displacement: Tensor) -> Tensor:
    before = theta.to(displacement.dtype)
    theta.add_(displacement)
    return theta.to(displacement.dtype) - before


@torch.library.custom_op("arturo::move", mutates_args=("theta",))
def _opaque(theta: Tensor, displacement: Tensor) -> Tensor:
    return _read_back(theta, displacement)


@_opaque.register_fake
def _(theta: Tensor, displacement: Tensor) -> Tensor:
    return torch.empty_like(displacement)


def flushed(values: Tensor, least: float = NEGLIGIBLE) -> Tensor:
    """The values, zero where they are negligible."""
    return torch.where(values.abs() <= least, 0.0, values)


def wide_sum(values: Tensor) -> Tensor:
    """Sum in float64, so that 1 and 1e8 parameters are summed alike (float32 on devices that have no float64)."""
    return torch.sum(values, dtype=wide_dtype(values.device))


def wide_dtype(device: torch.device) -> torch.dtype:
    """Dtype of sums and of the dual on this device."""
    return torch.float32 if device.type == "mps" else torch.float64
