"""What narrow storage makes of the filter over many steps: small changes must add up, and nothing may drift.

A noisy quadratic whose noise spans four decades and whose curvature is known. The estimate of the noise moves by
thousandths a step, less than half of what tells neighbouring bfloat16 numbers apart: rounded to nearest it stands
still, or drifts.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import pytest
import torch
from torch.nn import Parameter

from arturo_core import Arturo
from arturo_core.reporting import readings
from arturo_core.step import narrow

STEPS, SIDE, LR = 1500, 48, 1e-3

#: Random bits that stand for none: halves, as nearest has it.
HALVES = 0x80008080


class Learned(NamedTuple):
    """Of log σ the mean error and its deviation; of log s the correlation with the truth."""

    bias: float
    deviation: float
    correlation: float


@functools.cache
def learned(storage: str, fused: bool | None = None) -> Learned:
    """What a run with this storage has learned at its end; without a kernel where ``fused`` is False."""
    source = torch.Generator().manual_seed(0)
    noise = 10.0 ** (4.0 * torch.rand(SIDE, SIDE * 2 // 3, generator=source) - 6.0)
    curvature = 10.0 ** (torch.rand(noise.shape, generator=source) - 0.5)
    param = Parameter(0.05 * torch.randn(noise.shape, generator=source))
    ours = Arturo([param], lr=LR, state_dtype=storage, fused=fused)
    hessian = curvature * noise / (8.0 * LR)
    for step in range(STEPS):
        ours.param_groups[0]["lr"] = LR * min(1.0, 2.02 - 2.0 * step / STEPS)
        param.grad = hessian * param.detach() + noise * torch.randn(noise.shape, generator=source)
        ours.step()
    found = readings.belief(ours.state[param])
    error = 0.5 * torch.log(found.noise / noise.square())
    pair = torch.stack([torch.log(found.curvature).flatten(), torch.log(curvature).flatten()])
    return Learned(float(error.mean()), float(error.std()), float(torch.corrcoef(pair)[0, 1]))


def check(found: Learned) -> None:
    assert abs(found.bias) < 0.02
    assert found.deviation < 0.06
    assert abs(found.correlation - learned("float32").correlation) < 0.02


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "8bit"])
def test_nothing_drifts(storage: str) -> None:
    check(learned(storage))


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["float32", "bfloat16", "8bit"])
def test_nothing_drifts_in_the_eager_passes(storage: str) -> None:
    check(learned(storage, False))


@pytest.mark.parametrize("storage", ["bfloat16", pytest.param("8bit", marks=pytest.mark.slow)])
def test_rounded_to_nearest_it_would(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bounds, all three of them, fail without random bits."""
    monkeypatch.setattr(narrow, "random_bits", lambda key, index: torch.full_like(index, HALVES))
    found = learned.__wrapped__(storage, False)
    assert abs(found.bias) > 0.1
    assert found.deviation > 0.12
    assert found.correlation < learned("float32").correlation - 0.1
