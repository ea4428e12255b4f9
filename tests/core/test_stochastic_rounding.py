"""bfloat16 weights that are rounded at random: short steps add up, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from arturo_core import Arturo

STEPS = 60


def train(dtype: torch.dtype, steps: int = STEPS, **options: object) -> tuple[Parameter, Arturo]:
    """Weights near 1, whose neighbours in bfloat16 are .0078 away, pushed by a steady gradient at lr 1e-5."""
    param = Parameter(torch.full((64, 64), 1.0).to(dtype))
    ours = Arturo([param], lr=1e-5, **options)  # type: ignore[arg-type]
    go_on(param, ours, range(steps))
    return param, ours


def go_on(param: Parameter, ours: Arturo, steps: range) -> None:
    for step in steps:
        source = torch.Generator().manual_seed(step)
        param.grad = (1.0 + 0.5 * torch.randn(64, 64, generator=source)).to(param.dtype)
        ours.step()


def mean_moved(param: Tensor) -> float:
    return float(param.detach().double().mean() - 1.0)


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "8bit"])
def test_short_steps_add_up(storage: str) -> None:
    expected = mean_moved(train(torch.float32)[0])
    lost = mean_moved(train(torch.bfloat16, state_dtype=storage)[0])
    found = mean_moved(train(torch.bfloat16, state_dtype=storage, stochastic_rounding=True)[0])
    assert expected < -0.0003
    assert lost == 0.0  # rounded to the nearest, no weight ever moves
    assert found == pytest.approx(expected, rel=0.15)


def test_weight_decay_adds_up() -> None:
    """1e-4 of a weight a step is a twentieth of what rounding to the nearest takes note of."""

    def decayed(dtype: torch.dtype, **options: bool) -> float:
        param = Parameter(torch.ones(64, 64, dtype=dtype))
        ours = Arturo([param], lr=1e-4, weight_decay=1.0, **options)  # type: ignore[arg-type]
        for step in range(200):
            source = torch.Generator().manual_seed(step)
            param.grad = torch.randn(64, 64, generator=source).to(dtype)
            ours.step()
        return mean_moved(param)

    expected = decayed(torch.float32)
    assert expected < -0.01
    assert decayed(torch.bfloat16) == 0.0
    assert decayed(torch.bfloat16, stochastic_rounding=True) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("storage", ["float32", "8bit"])
def test_a_run_that_is_resumed_is_the_same_to_the_bit(storage: str) -> None:
    param, ours = train(torch.bfloat16, 5, state_dtype=storage, stochastic_rounding=True, weight_decay=0.1)
    before = torch.get_rng_state()
    other = Parameter(param.detach().clone())
    resumed = Arturo([other], lr=1e-3, state_dtype=storage, stochastic_rounding=True, weight_decay=0.1)
    resumed.load_state_dict(copy.deepcopy(ours.state_dict()))
    go_on(param, ours, range(5, 9))
    go_on(other, resumed, range(5, 9))
    assert torch.equal(param, other)
    assert all(torch.equal(one, resumed.state[other][name]) for name, one in ours.state[param].items())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_skipped_step_changes_no_bit() -> None:
    param, ours = train(torch.bfloat16, 3, stochastic_rounding=True, weight_decay=0.1)
    before = [param.detach().clone(), *(value.clone() for value in ours.state[param].values())]
    param.grad = torch.full_like(param, torch.nan)
    ours.step()
    after = [param.detach(), *ours.state[param].values()]
    assert all(torch.equal(one, old) for one, old in zip(after, before, strict=True))


def test_other_weights_are_not_rounded() -> None:
    one, _ = train(torch.float32, 10, stochastic_rounding=True)
    other, _ = train(torch.float32, 10)
    assert torch.equal(one, other)


def test_what_it_cannot_do_is_refused() -> None:
    weights = [Parameter(torch.ones(4, 4, dtype=torch.bfloat16))]
    with pytest.raises(ValueError, match="none that rounds bfloat16 weights at random"):
        Arturo(weights, fused=True, stochastic_rounding=True)
    with pytest.raises(ValueError, match='no meaning with noise="fixed"'):
        Arturo(weights, noise="fixed", stochastic_rounding=True)
    with pytest.raises(TypeError, match="must be True or False"):
        Arturo(weights, stochastic_rounding="yes")  # type: ignore[arg-type]
