"""Parameters for the Triton kernels, and what the reference passes make of them.

The interpreter of Triton has to be chosen before Triton is imported. ``test_triton_kernel.py`` starts a process that
does so, and in which tests that are parametrized ``on_device`` take tensors on the CPU. Elsewhere they are marked gpu.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from arturo_core.algorithm.compact import DECAY_REACH, Gains, Kept
from arturo_core.kernels import reference
from arturo_core.kernels import triton as triton_kernel
from arturo_core.kernels.passes import GroupTerms
from arturo_core.kernels.triton import tables
from arturo_core.step.chunks import Source

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NEEDS_TRITON = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (it comes with CUDA builds of torch)"
)
CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
)
on_device = pytest.mark.parametrize("device", ["cpu"] if INTERPRETED else [CUDA])

#: Of a pass without prior.
OPTIONS: Any = SimpleNamespace(prior=0.0)

#: Filters, a scalar, a block and less, and several programs.
SHAPES = [(4, 3, 5, 5), (), (7,), (64,), (60, 11), (1, 65)]

#: Gains of ordinary steps: k, α, v, p, log of the mean of s, f and fℓ of the last step.
ORDINARY = (0.17, 0.02, 0.8, 0.2, 0.03, 0.3, 1.5e-3)

LENGTH = 5e-3


def drawn(shape: Sequence[int], generator: torch.Generator, decades: float = 0.0) -> Tensor:
    """Normal numbers times ten to powers that are alike often in ±decades."""
    powers = decades * (2.0 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1.0)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0**powers


def sources(
    device: str,
    weights: torch.dtype = torch.float32,
    gradients: torch.dtype = torch.float32,
    state: torch.dtype = torch.float32,
    shapes: Sequence[Sequence[int]] = SHAPES,
    seed: int = 0,
) -> list[Source]:
    """Parameters after some steps; the first is in channels-last order, the last begins off the grain of 16 bytes."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number, shape in enumerate(shapes):
        # A gradient in float16 goes to 65,504 only.
        deviation = drawn(shape, generator, 2.0).abs().clamp(1e-4, 1e3) + 1e-4
        values = (
            (drawn(shape, generator, 1.0) * 0.1, weights),
            (deviation * drawn(shape, generator), gradients),
            (drawn(shape, generator, 1.0), state),
            (deviation, state),
            (drawn(shape, generator).exp().clamp(0.1, 10.0), state),
            (drawn(shape, generator, 2.0) * LENGTH, state),
        )
        tensors = [placed(value.to(dtype), device, number == len(shapes) - 1) for value, dtype in values]
        theta, grad, *held = tensors
        found.append(Source(theta, grad, tuple(held), {}, 0))
    return found


def placed(value: Tensor, device: str, off: bool = False) -> Tensor:
    if value.dim() == 4:
        return value.to(device).clone(memory_format=torch.channels_last)
    if not off:
        return value.to(device).clone(memory_format=torch.contiguous_format)
    room = torch.empty(value.numel() + 1, dtype=value.dtype, device=device)
    return room[1:].view(value.shape).copy_(value)


def gains(rows: Sequence[Sequence[float]], device: str) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64, device=device)


def scalar(value: float, device: str, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(value, dtype=dtype, device=device)


def copied(given: Sequence[Source]) -> list[Source]:
    return [
        Source(_cloned(source.theta), _cloned(source.grad), tuple(map(_cloned, source.state)), {}, source.group)
        for source in given
    ]


def _cloned(tensor: Tensor) -> Tensor:
    return placed(tensor, str(tensor.device), tensor.storage_offset() > 0)


def bits(tensor: Tensor) -> Tensor:
    return tensor.cpu().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def same_bits(one: Sequence[Source], other: Sequence[Source]) -> bool:
    pairs = [
        pair
        for left, right in zip(one, other, strict=True)
        for pair in zip((left.theta, *left.state), (right.theta, *right.state), strict=True)
    ]
    return all(torch.equal(bits(left), bits(right)) for left, right in pairs)


class Expected:
    """What the reference passes make of parameters, on the CPU in float32, and how large the terms were.

    A difference of two large numbers is as good as they are: ``scales`` of u, σ, s and D are what rounding is held to.
    """

    def __init__(self, given: Sequence[Source]) -> None:
        self.given = given
        self.theta = [source.theta.cpu().clone() for source in given]
        self.kept = [Kept(*(held.cpu().float().clone() for held in source.state)) for source in given]
        self.scales: list[Kept] = []

    def observe(
        self, rows: Sequence[Sequence[float]], ok: float, decay: float | None, length: float, maximize: bool
    ) -> Tensor:
        terms = self._terms(ok, decay, length)
        self.scales = []
        sums = []
        for source, theta, kept, row in zip(self.given, self.theta, self.kept, rows, strict=True):
            gain = Gains(*(torch.tensor(value, dtype=torch.float32) for value in row))
            before, weights = Kept(*(held.clone() for held in kept)), theta.double()
            grad = source.grad.cpu()
            found = reference.compact_observe(theta, grad, kept, gain, terms, OPTIONS, maximize)
            sums.append([found.decrement, found.stiffness, found.deviation, found.surprise, found.squared])
            self.scales.append(_scales(before, kept, weights, grad, row, decay))
        return torch.tensor([[float(value) for value in row] for row in sums], dtype=torch.float64)

    def apply(self, factor: float, length: float) -> Tensor:
        for theta, kept in zip(self.theta, self.kept, strict=True):
            reference.compact_apply(theta, kept, torch.tensor(factor), self._terms(1.0, None, length), OPTIONS)
        return torch.stack([theta.double().square().sum() for theta in self.theta])

    @staticmethod
    def _terms(ok: float, decay: float | None, length: float) -> GroupTerms:
        one = torch.ones(())
        return GroupTerms(torch.tensor(ok), None if decay is None else torch.tensor(decay), torch.tensor(length), one)


def _scales(before: Kept, after: Kept, theta: Tensor, grad: Tensor, row: Sequence[float], decay: float | None) -> Kept:
    gain, moved = row[0], row[6]
    wide = [held.double() for held in before]
    pulled = (wide[0] * wide[2] * wide[1]).abs() + gain * grad.double().abs() + DECAY_REACH * gain * wide[1]
    moves = wide[3].abs() + abs(moved) * wide[0].abs() + (decay or 0.0) * theta.abs()
    return Kept(pulled / (after.curvature.double() * after.deviation.double()), after.deviation, after.curvature, moves)


def close(found: Tensor, wanted: Tensor, scale: Tensor, roundings: float, what: str) -> None:
    """Finite, and equal to some roundings of float32 of the terms that it is made of."""
    left, right = found.detach().cpu().double(), wanted.detach().double()
    assert torch.isfinite(left).all(), what
    off = (left - right).abs() - roundings * 2.0**-24 * scale.detach().double().abs()
    worst = int(off.argmax())
    assert float(off.amax()) <= 0.0, f"{what}: {left.reshape(-1)[worst]} for {right.reshape(-1)[worst]}"


def seeds(given: list[Source], device: str) -> Tensor:
    """Keys of 32 bits, and first elements on both sides of 2³²."""
    rows = [[(0xDEADBEEF * (number + 1)) % 2**32, (number % 2) * 2**33 + 5] for number in range(len(given))]
    return torch.tensor(rows, dtype=torch.int64, device=device)


def observe(
    given: list[Source],
    rows: list[tuple[float, ...]],
    ok: float = 1.0,
    decay: float | None = None,
    length: float = LENGTH,
    maximize: bool = False,
    seeds: Tensor | None = None,
) -> Tensor:
    device = str(given[0].theta.device)
    amount = None if decay is None else scalar(decay, device)
    one, unit = scalar(ok, device), scalar(length, device)
    return triton_kernel.observe(given, gains(rows, device), one, amount, unit, maximize, seeds)


def apply(given: list[Source], factor: float, length: float = LENGTH, seeds: Tensor | None = None) -> Tensor:
    device = str(given[0].theta.device)
    return triton_kernel.apply(given, scalar(factor, device), scalar(length, device), seeds)


def check(given: list[Source], expected: Expected, roundings: float = 16.0) -> None:
    for number, (source, kept, scales) in enumerate(zip(given, expected.kept, expected.scales, strict=True)):
        for name, found, wanted, scale in zip(kept._fields, source.state, kept, scales, strict=True):
            # Roundings of x, r and S meet in growth, and the rest of D in x.
            more = 20.0 if name == "curvature" else 1.0
            close(found, wanted, scale, more * roundings, f"{name} of {number}")


def check_sums(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-5, atol=1e-30)


@pytest.fixture(autouse=True)
def small_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks a program and several programs a tensor, although tensors are small."""
    if INTERPRETED:
        monkeypatch.setattr(tables, "BLOCK", 128)
        monkeypatch.setattr(tables, "SPAN", 256)
        monkeypatch.setattr(triton_kernel, "ADDED", 8)
