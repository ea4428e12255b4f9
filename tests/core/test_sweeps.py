"""Learning-rate range tests are recognised by how lr rises, and warm-up is not taken for one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import nn

from arturo_core import Arturo
from arturo_core.reporting.advice import Advisor, ArturoAdvice
from arturo_core.reporting.sweeps import Rise

SAID = "as in a learning-rate range test"


def told(rates: Iterable[float], **options: str) -> list[str]:
    """What is said while an optimizer takes a step at each rate."""
    weight = nn.Parameter(torch.randn(4, 4))
    optimizer = Arturo([weight], **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for lr in rates:
            optimizer.param_groups[0]["lr"] = lr
            weight.grad = torch.randn(4, 4)
            optimizer.step()
    return [str(one.message) for one in caught if one.category is ArturoAdvice]


def exponential(start: float, end: float, steps: int) -> list[float]:
    return [start * (end / start) ** (step / (steps - 1)) for step in range(steps)]


SWEEPS = {
    "Lightning's": exponential(1e-8, 1.0, 100),
    "fastai's": exponential(1e-7, 10.0, 100),
    "short": exponential(1e-5, 1.0, 10),
    "by decades": [1e-4, 1e-3, 1e-2, 1e-1, 1.0],
    "by decades, ten steps each": [lr for lr in (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0) for _ in range(10)],
    "after training": [1e-3] * 20 + exponential(1e-6, 1.0, 50),
    "from zero": [0.0, *exponential(1e-7, 1.0, 40)],
}


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_is_seen_once(name: str) -> None:
    (text,) = told(SWEEPS[name])
    assert SAID in text
    assert "Begin with AdamW's lr" in text
    assert "build a new optimizer" in text


def ramp(start: float, peak: float, steps: int) -> list[float]:
    return [start + (peak - start) * step / steps for step in range(steps + 1)]


ORDINARY = {
    "warm-up from 0": ramp(0.0, 1e-3, 100),
    "warm-up from 1e-7": ramp(1e-7, 1e-3, 100),
    "warm-up to SGD's rate": ramp(0.0, 0.5, 100),
    "warm-up from 1e-7 to SGD's rate": ramp(1e-7, 0.5, 100),
    "three steps": ramp(1e-7, 0.1, 3),
    "half a cosine": [0.25 * (1 - math.cos(math.pi * step / 200)) + 1e-8 for step in range(201)],
    "geometric warm-up": exponential(1e-7, 1e-2, 50),
    "geometric warm-up to SGD's rate": exponential(1e-4, 0.1, 100) + [0.1] * 5,
    "longer geometric warm-up to SGD's rate": exponential(1e-5, 0.1, 200),
    "geometric warm-up to a large rate": exponential(1e-6, 0.5, 60),
    "geometric warm-up, an epoch a rate": [lr for lr in exponential(1e-5, 0.1, 5) for _ in range(20)],
    "a jump": [1e-7, 0.5, 0.5, 0.5],
    "two jumps": [1e-7, 1e-3, 0.5],
    "cycles": (ramp(1e-6, 0.1, 10) + ramp(0.1, 1e-6, 10)) * 3,
    "decay": exponential(0.5, 1e-6, 60),
    "restarts": exponential(0.5, 1e-4, 20) * 4,
}


@pytest.mark.parametrize("name", ORDINARY)
def test_schedules_are_no_sweeps(name: str) -> None:
    assert told(ORDINARY[name]) == []


@pytest.mark.parametrize("steps", [200, 2000, 50_000])
def test_how_long_a_rise_lasts_makes_no_difference(steps: int) -> None:
    """Rates alone, without steps."""

    def seen(rates: list[float]) -> int:
        rise = Rise()
        return sum(rise.see(lr) and steps - index < 300 and rise.is_sweep(0.05) for index, lr in enumerate(rates))

    assert seen(exponential(1e-8, 1.0, steps)) > 0
    assert seen(ramp(0.0, 0.5, steps)) == 0
    assert seen(ramp(1e-7, 0.5, steps)) == 0


def test_bounds_in_nats_are_larger() -> None:
    assert told(exponential(1e-5, 0.09, 50), trust_region="kl") == []
    assert len(told(exponential(1e-5, 10.0, 50), trust_region="kl")) == 1


def test_a_tensor_is_followed_too() -> None:
    assert len(told(map(torch.tensor, exponential(1e-7, 1.0, 60)))) == 1


def advised(first: float) -> Callable[[float], list[str]]:
    """Takes a step at an lr, and gives the advice after it."""
    weight = nn.Parameter(torch.randn(4, 4))
    optimizer = Arturo([weight], lr=first)
    advisor = Advisor(optimizer)

    def advice(lr: float) -> list[str]:
        optimizer.param_groups[0]["lr"] = lr
        weight.grad = torch.randn(4, 4)
        optimizer.step()
        return advisor.check(optimizer.diagnostics())

    return advice


def test_a_sweep_is_not_taken_for_a_setting() -> None:
    """Neither while it lasts nor by the peak that it leaves; a rate that was taken from it is."""
    advice = advised(1e-7)
    with pytest.warns(ArturoAdvice, match=SAID):
        swept = [text for lr in exponential(1e-7, 1.0, 40) for text in advice(lr)]
    assert swept == []
    assert [text for _ in range(5) for text in advice(1e-3)] == []
    assert "lr=0.3 looks like" in advice(0.3)[0]


@pytest.mark.parametrize("later", [1e-3, 0.1])
def test_what_may_be_a_sweep_is_no_setting_until_it_is_kept(later: float) -> None:
    """A rise that ends at 0.1 is a sweep or a warm-up: what the run goes on with is the setting."""
    advice = advised(1e-5)
    assert [text for lr in exponential(1e-5, 0.1, 40) for text in advice(lr)] == []
    kept = [text for _ in range(20) for text in advice(later)]
    assert [text.partition(" looks like")[0] for text in kept] == (["lr=0.1"] if later == 0.1 else [])


def test_no_training_ends_where_warnings_are_errors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ArturoAdvice)
        weight = nn.Parameter(torch.ones(2, 2))
        optimizer = Arturo([weight])
        for lr in (1e-5, 1e-4, 1e-3, 1e-2, 0.1):
            optimizer.param_groups[0]["lr"] = lr
            weight.grad = torch.ones(2, 2)
            optimizer.step()
    assert optimizer.diagnostics()["steps"] == 5
