"""What a form of the algorithm is made of, and what a step of it leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from arturo_core.numerics import wide_dtype
from arturo_core.options import Options


@dataclass(frozen=True)
class StateTensor:
    """One row of the table.

    Attributes:
        name: key in ``optimizer.state[p]``.
        meaning: what it is, with symbol and unit, as the documentation prints it.
        init: value before the first gradient, from the (real) parameter θ in the state's dtype.
        scalar: 0-dimensional float32 instead of parameter-shaped.
        wide: 0-dimensional and float64, where the device has it.
        least: the smallest value that a step can leave.
        most: the largest; values are finite in any case.
    """

    name: str
    meaning: str
    init: Callable[[Tensor, Options], Tensor]
    scalar: bool = False
    wide: bool = False
    least: float = -math.inf
    most: float = math.inf


@dataclass(frozen=True)
class Form:
    """One form of the algorithm.

    Attributes:
        rows: the table of its state.
        defaults: of the hyper-parameters that have a meaning in it.
        sized: whether the weights' own size bounds a step where lr is in weight units.
        tied: whether λ follows from the curvature, and is the same after a step as before it.
        least_curvature: end of the range of the relative curvature.
        precision: λ of weights (1/weight², a new tensor), from their state, ℓ of their group and the options.
        curvature: of weights relative to its prior, from their state and the options.
        upgraded: a saved state of an older version, as it is kept now.
    """

    rows: tuple[StateTensor, ...]
    defaults: Mapping[str, float]
    sized: bool
    tied: bool
    least_curvature: float
    precision: Callable[[Mapping[str, Tensor], float, Options], Tensor]
    curvature: Callable[[Mapping[str, Tensor], Options], Tensor]
    upgraded: Callable[[Mapping[str, Any]], Mapping[str, Any]]

    @cached_property
    def names(self) -> frozenset[str]:
        """Of the parameter-shaped rows."""
        return frozenset(row.name for row in self.rows if not row.scalar)


def constant(attribute: str) -> Callable[[Tensor, Options], Tensor]:
    """A row that begins with one of the options."""
    return lambda theta, options: torch.full_like(theta, getattr(options, attribute))


def zeros(theta: Tensor, options: Options) -> Tensor:
    return torch.zeros_like(theta)


def ones(theta: Tensor, options: Options) -> Tensor:
    return torch.ones_like(theta)


def scalar_dtype(row: StateTensor, device: torch.device) -> torch.dtype:
    """Dtype of a 0-dimensional row."""
    return wide_dtype(device) if row.wide else torch.float32


STEP = StateTensor("step", "steps that updated this parameter", zeros, scalar=True, least=0.0, most=2.0**53)
