"""What rounding does to statistics over many steps: noise and curvature that are known, on a noisy quadratic.

Short training runs do not tell storages apart. Here σ would drift upwards by a third if it were rounded to the nearest,
since its changes are smaller than half the distance between its neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from arturo_core import Arturo
from arturo_core.kernels import select
from arturo_core.reporting import readings
from arturo_core.step import narrow

ROWS, COLUMNS, STEPS = 64, 64, 1500
LR = 1e-3


class Found(NamedTuple):
    """How far log σ is off the truth in the mean, how much it scatters, and how log s goes along with the truth."""

    bias: float
    scatter: float
    correlation: float


def learned(storage: str, steps: int = STEPS) -> Found:
    """After training on noise over four decades inside every block, with curvatures from .15 to 6."""
    source = torch.Generator().manual_seed(0)
    noise = torch.logspace(-2, 2, COLUMNS)[torch.randperm(COLUMNS, generator=source)].expand(ROWS, COLUMNS)
    relative = torch.exp(torch.randn(ROWS, COLUMNS, generator=source)).clamp(0.15, 6.0)
    param = Parameter(torch.zeros(ROWS, COLUMNS))
    ours = Arturo([param], lr=LR, state_dtype=storage)
    hessian = relative * noise / (8.0 * LR)
    levels: list[Tensor] = []
    held: dict[str, Tensor] = {}
    for step in range(steps):
        param.grad = hessian * param.detach() + noise * torch.randn(ROWS, COLUMNS, generator=source)
        ours.step()
        if step >= steps - 500 and step % 10 == 0:
            held = readings.statistics(ours.state[param], param, ours.options)
            levels.append(held["curvature"].log())
    off = (held["deviation"] / noise).log()
    both = torch.stack([torch.stack(levels).mean(dim=0).flatten(), relative.log().flatten()])
    return Found(float(off.mean()), float(off.std()), float(torch.corrcoef(both)[0, 1]))


@pytest.fixture(scope="module")
def wide() -> Found:
    return learned("float32")


@pytest.mark.parametrize("storage", ["bfloat16", "8bit"])
def test_nothing_drifts(storage: str, wide: Found) -> None:
    found = learned(storage)
    assert abs(found.bias - wide.bias) < 0.01
    assert found.scatter < wide.scatter + 0.02
    assert found.correlation > wide.correlation - 0.02


@pytest.mark.slow
def test_nothing_drifts_in_20_000_steps() -> None:
    wide = learned("float32", 20_000)
    for storage in ("bfloat16", "8bit"):
        found = learned(storage, 20_000)
        assert abs(found.bias - wide.bias) < 0.01, storage
        assert found.scatter < wide.scatter + 0.02, storage
        assert found.correlation > wide.correlation - 0.02, storage


@pytest.mark.parametrize("storage", ["bfloat16", "8bit"])
def test_rounding_to_the_nearest_would_drift(storage: str, wide: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same test fails for it: bits of a half everywhere."""
    monkeypatch.setattr(narrow, "random_bits", lambda key, index: torch.full_like(index, 0x80008080))
    monkeypatch.setattr(select, "kernel", lambda *arguments: None)
    assert learned(storage).bias - wide.bias > 0.1
