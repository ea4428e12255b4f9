"""One table of ranges: a run survives what is accepted, and what is beyond is refused with the range."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import Parameter

from arturo_core import Arturo
from arturo_core.options import ADAPTIVE, LARGEST_DECAY, LARGEST_LR, LEAST_KL_RTOL, PAPER, RANGES

ENDS = [
    (noise, trust_region, name, end)
    for noise, ranges in RANGES.items()
    for trust_region in LARGEST_LR
    for name in ranges
    for end in (0, 1)
]


def survives(ours: Arturo, params: list[Parameter], steps: int = 12) -> None:
    for step in range(steps):
        source = torch.Generator().manual_seed(step)
        for param in params:
            param.grad = param.detach().clamp(-10.0, 10.0) + 0.3 * torch.randn(param.shape, generator=source)
        ours.step()
    for param in params:
        assert torch.isfinite(param).all()
        for name, value in ours.state[param].items():
            assert torch.isfinite(value).all(), name
    numbers = ours.diagnostics()
    assert (numbers["steps"], numbers["skipped_steps"]) == (steps, 0)
    assert all(math.isfinite(value) for value in numbers.values()), numbers
    assert numbers["kl"] <= numbers["kl_bound"] * 1.001
    if numbers["bound_active"]:
        assert numbers["kl_ratio"] == pytest.approx(1.0, abs=1.1e-3)


def weights() -> list[Parameter]:
    torch.manual_seed(0)
    return [Parameter(torch.randn(6, 4)), Parameter(torch.zeros(5))]


def test_the_table_is_complete():
    assert RANGES["adaptive"].keys() == {*ADAPTIVE, "length_scale"}
    assert RANGES["fixed"].keys() == PAPER.keys()
    for defaults, ranges in ((ADAPTIVE, RANGES["adaptive"]), (PAPER, RANGES["fixed"])):
        for name, value in defaults.items():
            low, high = ranges[name]
            assert low <= value <= high


@pytest.mark.parametrize(("noise", "trust_region", "name", "end"), ENDS)
def test_ends_of_the_ranges(noise, trust_region, name, end):
    value = RANGES[noise][name][end]
    params = weights()
    survives(Arturo(params, noise=noise, trust_region=trust_region, **{name: value}), params)
    beyond = -1e-3 if value == 0.0 else (value / 1.1, value * 1.1)[end]
    with pytest.raises(ValueError, match=f"Arturo: {name}=") as caught:
        Arturo(params, noise=noise, trust_region=trust_region, **{name: beyond})
    for bound in RANGES[noise][name]:
        assert f"{bound:g}" in str(caught.value)


@pytest.mark.parametrize("noise", RANGES)
@pytest.mark.parametrize("trust_region", LARGEST_LR)
def test_the_largest_learning_rate(noise, trust_region):
    most = LARGEST_LR[trust_region]
    for lr in (most, torch.tensor(most), 1e-30, 1e-99):
        params = weights()
        survives(Arturo(params, lr, noise=noise, trust_region=trust_region, weight_decay=0.1), params)
    params = weights()
    ours = Arturo(params, 1e-300, noise=noise, trust_region=trust_region)
    for param in params:
        param.grad = torch.ones_like(param)
    ours.step()
    assert all(torch.equal(param, old) for param, old in zip(params, weights(), strict=True))
    assert ours.diagnostics()["skipped_steps"] == 0
    for lr in (1.1 * most, 1e30, torch.tensor(1e30)):
        with pytest.raises(ValueError, match=f"lr=.* at most {most:g}".replace("+", r"\+")):
            Arturo(weights(), lr, noise=noise, trust_region=trust_region)
    # A schedule that goes too far is stopped where it does, and nothing has moved.
    params = weights()
    ours = Arturo(params, noise=noise, trust_region=trust_region)
    survives(ours, params, steps=2)
    before = [param.detach().clone() for param in params]
    ours.param_groups[0]["lr"] = 1e30
    with pytest.raises(ValueError, match="at most"):
        ours.step()
    assert all(torch.equal(param, old) for param, old in zip(params, before, strict=True))


@pytest.mark.parametrize("noise", RANGES)
@pytest.mark.parametrize("trust_region", LARGEST_LR)
@pytest.mark.parametrize("decay", [1e-300, LARGEST_DECAY])
def test_weight_decay(noise, trust_region, decay):
    params = weights()
    survives(Arturo(params, noise=noise, trust_region=trust_region, weight_decay=decay), params)
    with pytest.raises(ValueError, match=r"weight_decay=.*at most 1e\+06"):
        Arturo(params, weight_decay=1.1 * LARGEST_DECAY)


@pytest.mark.parametrize("dtype", LEAST_KL_RTOL)
@pytest.mark.parametrize("trust_region", LARGEST_LR)
def test_the_finest_tolerance_is_met(dtype, trust_region):
    least = LEAST_KL_RTOL[dtype]
    params = [Parameter(param.detach().to(dtype)) for param in weights()]
    ours = Arturo(params, 1e-3, noise="fixed", trust_region=trust_region, kl_rtol=least)
    survives(ours, params)
    numbers = ours.diagnostics()
    assert numbers["bound_active"]
    assert abs(numbers["kl_ratio"] - 1.0) <= least
    with pytest.raises(ValueError, match=f"kl_rtol=.* at least {least:g}"):
        Arturo(params, kl_rtol=0.9 * least)
    Arturo(params, kl_rtol=1e-12, state_dtype=torch.float64)


@pytest.mark.parametrize(
    "options",
    [
        {"length_scale": 1e-30},
        {"init_covariance": 1e300},
        {"noise": "fixed", "init_covariance": 1e300},
        {"noise": "fixed", "init_variance": 1e300},
        {"noise": "fixed", "measurement_noise": 1e-300},
        {"temperature": 1e-300},
        {"temperature": 1e300},
        {"prior_precision": 1e300},
        {"process_noise": 1e300},
        {"lr": 1e30},
        {"lr": 1e300, "trust_region": "kl"},
        {"weight_decay": 1e300},
        {"kl_rtol": 1e-300},
    ],
    ids=str,
)
def test_values_that_no_run_survives(options):
    with pytest.raises(ValueError, match="Arturo: "):
        Arturo(weights(), **options)
