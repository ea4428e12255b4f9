"""Parameters in the middle of a run, and their updates by the CPU kernel and by the pure functions."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import arturo_core.kernels.cpu as cpu
from arturo_core.algorithm.compact import Gains, Kept
from arturo_core.kernels import reference
from arturo_core.kernels.cpu import library
from arturo_core.kernels.passes import GroupTerms
from arturo_core.step.chunks import Source

needs_the_library = pytest.mark.skipif(not cpu.available(), reason=cpu.why_not())

LEVELS = library.levels() if cpu.available() else ("plain",)
LENGTH = 0.01
#: k, α, v, p, level, f0, f0ℓ0.
ORDINARY = (0.15, 0.003, 0.8, 0.18, 0.1, 0.2, 0.002)
FIRST = (0.5, 1.0, 0.8, 1.03, 0.0, 0.0, 0.0)
LEVELLED = (0.15, 0.02, 0.8, 0.18, 2.2, 0.0, 0.0)
BFLOAT16, FLOAT16, FLOAT32, FLOAT64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


def source(
    shape: tuple[int, ...] | int,
    seed: int = 0,
    theta: torch.dtype = FLOAT32,
    grad: torch.dtype = FLOAT32,
    state: torch.dtype = FLOAT32,
    extreme: bool = False,
) -> Source:
    """A parameter in the middle of a run; ``extreme``: of all magnitudes that its state and gradients may have."""
    generator = torch.Generator().manual_seed(seed)
    shape = (shape,) if isinstance(shape, int) else shape

    def normal() -> Tensor:
        return torch.randn(shape, generator=generator)

    def spread(least: float, most: float) -> Tensor:
        low, high = math.log(least), math.log(most)
        return torch.exp(low + (high - low) * torch.rand(shape, generator=generator))

    gradient, deviation, direction = normal() * 0.1, spread(0.01, 1.0), normal()
    displacement = normal() * 0.3 * LENGTH
    curvature = spread(0.1, 10.0)
    if extreme:
        gradient = spread(1e-30, 9e17) * normal().sign()
        deviation = spread(1e-18, 1e18)
        direction = (spread(1e-30, 9e17) * normal().sign() / (curvature * deviation)).clamp(-1e30, 1e30)
        displacement = spread(1e-29, 1e20) * normal().sign()
    kept = (direction, deviation, curvature, displacement)
    return Source(normal().to(theta), gradient.to(grad), tuple(one.to(state) for one in kept), {}, 0)


def copy(original: Source, dtype: torch.dtype | None = None) -> Source:
    tensors = (original.theta, original.grad, *original.state)
    theta, grad, *state = (one.clone(memory_format=torch.preserve_format).to(dtype or one.dtype) for one in tensors)
    return Source(theta, grad, tuple(state), {}, 0)


def gains(rows: list[tuple[float, ...]]) -> Tensor:
    return torch.tensor(rows, dtype=FLOAT64)


def observe(
    sources: list[Source], rows: list[tuple[float, ...]], ok: float = 1.0, decay: float = 0.0, **options: Any
) -> Tensor:
    length, maximize = options.pop("length", LENGTH), options.pop("maximize", False)
    shrink = torch.tensor(decay, dtype=FLOAT64) if decay else None
    return cpu.observe(
        sources, gains(rows), torch.tensor(ok), shrink, torch.tensor(length, dtype=FLOAT64), maximize, **options
    )


def by_reference(
    one: Source, row: tuple[float, ...], decay: float = 0.0, length: float = LENGTH, maximize: bool = False
) -> Tensor:
    wide = one.state[0].dtype
    k, alpha, v, p, level, pending, moved = (torch.tensor(value, dtype=wide) for value in row)
    terms = GroupTerms(
        torch.ones((), dtype=wide),
        torch.tensor(decay, dtype=wide) if decay else None,
        torch.tensor(length, dtype=wide),
        torch.ones((), dtype=wide),
    )
    found = reference.compact_observe(
        one.theta,
        one.grad,
        Kept(*one.state),
        Gains(k, alpha, v, p, level, pending, moved),
        terms,
        SimpleNamespace(prior=0.0),  # type: ignore[arg-type]
        maximize,
    )
    sums = (found.decrement, found.stiffness, found.deviation, found.surprise, found.squared)
    return torch.stack([value.double() for value in sums])


def apply_by_reference(one: Source, factor: float, length: float = LENGTH) -> None:
    terms = GroupTerms(torch.ones(()), None, torch.tensor(length), torch.ones(()))
    reference.compact_apply(
        one.theta,
        Kept(*one.state),
        torch.tensor(factor),
        terms,
        SimpleNamespace(prior=0.0),  # type: ignore[arg-type]
    )


def agrees(found: Source, given: Source, row: tuple[float, ...], decay: float = 0.0, **options: Any) -> None:
    """The numbers are those of float64 to a few roundings of float32, in units of what cancels in each of them."""
    exact = copy(given, FLOAT64)
    by_reference(exact, row, decay, **options)
    direction, deviation, curvature, displacement = (one.double().abs() for one in given.state)
    predicted, gradient = direction * deviation * curvature, given.grad.double().abs()
    noise = exact.state[1] + math.sqrt(row[1]) * (gradient + predicted)
    newton = (predicted + row[0] * gradient + (0.6 * row[0] * deviation if decay else 0.0)) / exact.state[1]
    # Of exp(−level) the error is that of the level.
    growth = noise / exact.state[1] + 2.0 * abs(row[4])
    units = (
        (newton / exact.state[2] + exact.state[0].abs()) * growth,
        noise,
        exact.state[2] * growth,
        displacement + row[6] * direction + decay * given.theta.double().abs(),
    )
    for name, mine, truth, unit in zip(Kept._fields, found.state, exact.state, units, strict=True):
        assert torch.isfinite(mine).all(), name
        assert float(((mine - truth).abs() / (unit + 1e-30)).max()) < 8 * torch.finfo(FLOAT32).eps, name


def cut(whole: Source, cuts: list[int], scales: list[int] | None = None) -> list[Source]:
    """The same parameter in parts of these lengths; ``scales`` are those of the scales of a state in 8 bits."""
    tensors = (whole.theta, whole.grad, *whole.state)
    lengths = [cuts] * 6 + [scales or []] * (len(tensors) - 6)
    pieces = (tensor.split(length) for tensor, length in zip(tensors, lengths, strict=True))
    return [
        Source(theta.clone(), grad.clone(), tuple(one.clone() for one in state), {}, 0)
        for theta, grad, *state in zip(*pieces, strict=True)
    ]
