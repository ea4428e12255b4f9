"""What float32 makes hard: gradients of every size, weights that decay fast, priors without gradients, subnormals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import MODES, every_noise, through
from torch import Tensor
from torch.nn import Parameter

from arturo_core import Arturo
from arturo_core.algorithm import trust_region
from arturo_core.kernels import eager, reference


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(options: dict[str, Any], scale: float, dtype: torch.dtype, shape: tuple[int, ...] = (300, 300), steps: int = 3):
    """An optimizer after some noisy steps, its weights, and those before the last step."""
    param = Parameter(normal(shape, 0).to(dtype))
    ours = Arturo([param], **options)
    before = param.detach().clone()
    for step in range(steps):
        before = param.detach().clone()
        param.grad = (scale * normal(shape, 1 + step).clamp(-1.0, 1.0)).to(dtype)
        ours.step()
    return ours, param.detach().double(), before.double()


SCALES = [1e-30, 1e-20, 1e-6, 1.0, 1e10, 1e16, 1e17, 9e17]


@pytest.mark.parametrize("passes", [eager, reference], ids=["eager", "reference"])
@pytest.mark.parametrize("scale", SCALES)
def test_the_published_form_takes_the_right_step_at_every_scale(scale, passes, monkeypatch):
    """In float32 as in float64, whose range is wide enough for every sum."""
    through(passes, monkeypatch)
    options = {"lr": 1e-3, "noise": "fixed", "trust_region": "kl"}
    found, weights, before = run(options, scale, torch.float32)
    wanted, expected, start = run(options, scale, torch.float64)
    numbers, others = found.diagnostics(), wanted.diagnostics()
    assert (numbers["steps"], numbers["skipped_steps"]) == (3, 0)
    assert numbers["bound_active"]
    assert numbers["kl_ratio"] == pytest.approx(1.0, abs=1e-3)
    assert numbers["innovation_ratio"] == pytest.approx(others["innovation_ratio"], rel=1e-4)
    assert numbers["step_rms"] == pytest.approx(float((expected - start).square().mean().sqrt()), rel=1e-3)
    step = expected - start
    rounding = 3e-7  # of float32 weights of up to 4
    torch.testing.assert_close(weights - before, step, rtol=1e-3, atol=2e-3 * float(step.abs().max()) + rounding)


def test_a_model_that_is_not_convex_at_every_scale():
    """Negative curvature makes η depend on the least of the scales: too small a slope must not vanish."""
    for scale in (1e-28, 1.0, 1e14):
        param = Parameter(torch.ones(4))
        ours = Arturo([param], 1e-3, noise="fixed", trust_region="kl", process_noise=0.0)
        param.grad = torch.zeros(4)
        ours.step()
        state = ours.state[param]
        state["hessian"].copy_(torch.tensor([-1.0, 1.0, 2.0, -0.5]))
        state["gradient"].copy_(scale * torch.tensor([1.0, -1.0, 1.0, 1.0]))
        for name in ("cov_gg", "cov_gh", "cov_hh"):
            state[name].mul_(1e-30)
        before, precision = param.detach().clone(), state["precision"].clone()
        param.grad = state["gradient"].clone()
        ours.step()
        spent = 0.5 * float((precision * (param.detach() - before).square()).sum())
        numbers = ours.diagnostics()
        assert numbers["bound_active"]
        assert spent == pytest.approx(1e-3, rel=2e-3)
        assert numbers["kl"] == pytest.approx(1e-3, rel=1e-3)


def test_a_saddle_without_gradient_is_a_step_of_length_zero():
    param = Parameter(torch.zeros(3))
    ours = Arturo.paper([param], prior_precision=0.0)
    param.grad = torch.zeros(3)
    ours.step()
    ours.state[param]["hessian"].fill_(-1.0)
    ours.step()
    numbers = ours.diagnostics()
    assert (numbers["steps"], numbers["skipped_steps"], numbers["step_rms"], numbers["kl"]) == (2, 0, 0.0, 0.0)
    assert not numbers["bound_active"]
    assert torch.equal(param.detach(), torch.zeros(3))


@every_noise
def test_a_multiplier_that_is_no_number_counts_as_skipped(options, monkeypatch):
    solver = "settle" if options["noise"] == "fixed" else "tied_multiplier"
    honest = getattr(trust_region, solver)

    def broken(*args: Any) -> Any:
        solved = honest(*args)
        if solver == "settle":
            return solved._replace(kl=solved.kl * math.nan)
        return solved[0]._replace(kl=solved[0].kl * math.nan), solved[1]

    param = Parameter(torch.ones(3))
    ours = Arturo([param], **options)
    param.grad = torch.ones(3)
    monkeypatch.setattr(trust_region, solver, broken)
    ours.step()
    numbers = ours.diagnostics()
    assert (numbers["steps"], numbers["skipped_steps"]) == (0, 1)
    assert torch.equal(param.detach(), torch.ones(3))
    assert float(ours.state[param]["step"]) == 0.0


@settings(max_examples=40, deadline=None)
@given(
    mode=st.sampled_from(sorted(MODES)),
    scales=st.tuples(st.floats(-30.0, 17.9), st.floats(-30.0, 17.9)),
    later=st.tuples(st.floats(-30.0, 17.9), st.floats(-30.0, 17.9)),
    size=st.floats(-3.0, 3.0),
    lr=st.floats(-6.0, 1.0),
    decay=st.sampled_from([0.0, 0.1, 10.0]),
    prior=st.sampled_from([0.0, 1e-3, 10.0]),
    seed=st.integers(0, 1000),
)
def test_nothing_overflows_for_gradients_below_the_limit(mode, scales, later, size, lr, decay, prior, seed):
    params = [Parameter((10.0**size * normal(shape, seed)).float()) for shape in ((12, 5), (7,))]
    options = {**MODES[mode], "lr": 10.0**lr, "weight_decay": decay, "prior_precision": prior}
    ours = Arturo(params, **options)
    for step in range(16):
        low, high = scales if step < 8 else later
        for index, param in enumerate(params):
            noise = normal((2, *param.shape), 1 + 2 * step + index)
            exponent = low + (high - low) * torch.special.ndtr(noise[1])
            param.grad = (noise[0].clamp(-1.0, 1.0) * 10.0**exponent).float()
        ours.step()
        numbers = ours.diagnostics()
        assert numbers["skipped_steps"] == 0
        assert all(math.isfinite(value) for value in numbers.values()), numbers
        for param in params:
            assert torch.isfinite(param).all()
            for name, value in ours.state[param].items():
                assert torch.isfinite(value).all(), name
        assert numbers["kl"] <= numbers["kl_bound"] * 1.001
        if numbers["bound_active"]:
            assert numbers["kl_ratio"] == pytest.approx(1.0, abs=1.1e-3)
        if mode == "fixed-rms":
            assert numbers["step_rms"] <= 0.35 * options["lr"] * 1.001


# -- the plain length of a step ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0, 100.0, 1e4, 1e8])
def test_the_published_filter_with_a_learning_rate_moves_weights_no_farther_than_it_says(scale):
    """Of a noisy quadratic, whose precisions spread over decades; in weight units: RMS ≤ 0.35·lr."""
    param = Parameter(normal((40, 50), 0).float())
    ours = Arturo([param], lr=1e-3, noise="fixed")
    limited = 0
    for step in range(60):
        before = param.detach().clone()
        precision = ours.state[param]["precision"].clone() if step else torch.full_like(before, 100.0)
        param.grad = scale * (before + 0.3 * normal((40, 50), 1 + step).float())
        ours.step()
        numbers = ours.diagnostics()
        moved = (param.detach() - before).double()
        rms = float(moved.square().mean().sqrt())
        spent = 0.5 * float((precision.double() * moved.square()).sum())
        most = 0.5 * (0.35e-3) ** 2 * float(precision.double().sum())
        assert rms <= 0.35e-3 * 1.001
        assert spent <= most * 1.002
        # Weights of order one are rounded to 1e-7 and less, which is 1e-3 of most of the steps.
        assert numbers["step_rms"] == pytest.approx(rms, rel=1e-2)
        assert numbers["kl_bound"] <= most * (1.0 + 1e-4)
        if numbers["bound_active"]:
            assert numbers["kl_ratio"] == pytest.approx(1.0, abs=1e-3)
            assert max(rms / 0.35e-3, spent / most) == pytest.approx(1.0, rel=1e-2)
        limited += numbers["kl_bound"] < most * 0.999
    assert limited > 0 or scale < 1.0


@pytest.mark.parametrize("lr", [1e-5, 1e-3, 0.1])
@pytest.mark.parametrize("noise", ["adaptive", "fixed"])
def test_a_prior_without_gradients_pulls_no_farther_than_lr_says(noise, lr):
    start = normal((40, 20), 0).float()
    param = Parameter(start.clone())
    ours = Arturo([param], lr=lr, noise=noise, prior_precision=1.0)
    for _ in range(4):
        before = param.detach().clone()
        param.grad = torch.zeros_like(param)
        ours.step()
        assert float((param.detach() - before).square().mean().sqrt()) <= 0.35 * lr * 1.001
    # It does pull, as far as it may or a third of the way to zero.
    moved = start - param.detach()
    assert (moved.sign() == start.sign())[moved != 0.0].all()
    assert ours.diagnostics()["step_rms"] == pytest.approx(0.35 * lr, rel=0.5)


@pytest.mark.parametrize("lr", [1e-4, 1e-2])
def test_a_prior_on_weights_without_gradients_beside_others_with_some(lr):
    """Known weights have most of the divergence to spend; it is not spent on moving the unknown ones far."""
    param = Parameter(normal((400,), 0).float())
    ours = Arturo([param], lr=lr, prior_precision=1e-3)
    with_gradient = torch.arange(400) % 2 == 0
    for step in range(30):
        before = param.detach().clone()
        param.grad = torch.where(with_gradient, 100.0 * normal((400,), 1 + step), 0.0).float()
        ours.step()
        # White noise agrees little with itself: the radius is that of lr, or little more.
        assert float((param.detach() - before).square().mean().sqrt()) <= 1.5 * lr


def test_the_prior_of_a_group_that_barely_moves():
    """Groups move in proportion to their own lr also where plain length bounds them."""
    params = [Parameter(torch.ones(50)), Parameter(torch.ones(50))]
    ours = Arturo([{"params": params[:1], "lr": 1e-3}, {"params": params[1:], "lr": 1e-3}], prior_precision=1.0)
    for step in range(3):
        if step == 2:
            ours.param_groups[1]["lr"] = 1e-4
        before = [param.detach().clone() for param in params]
        for param in params:
            param.grad = torch.zeros(50)
        ours.step()
    lengths = [float((param.detach() - old).norm()) for param, old in zip(params, before, strict=True)]
    assert lengths[1] / lengths[0] == pytest.approx(0.1, rel=1e-2)
    radii = 50 * ((0.35e-3) ** 2 + (0.35e-4) ** 2)
    assert lengths[0] ** 2 + lengths[1] ** 2 == pytest.approx(radii, rel=1e-2)


def test_a_prior_that_is_next_to_none_changes_nothing():
    results = []
    for prior in (0.0, 1e-9):
        param = Parameter(normal((20, 10), 0))
        ours = Arturo([param], lr=1e-2, prior_precision=prior)
        for step in range(30):
            param.grad = param.detach() + 0.3 * normal((20, 10), 1 + step)
            ours.step()
        results.append(param.detach())
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-8)


# -- weight decay and the noise estimate -------------------------------------------------------------------------------

DECAYED = {
    "kl, gradients over 20 decades": ({"lr": 0.1, "trust_region": "kl", "weight_decay": 0.1}, 1.0, -20.0),
    "kl, fast": ({"lr": 1.0, "trust_region": "kl", "weight_decay": 1.0}, 1.0, -20.0),
    "rms, large weights": ({"lr": 1e-3, "weight_decay": 0.1}, 100.0, 0.0),
    "rms, fast": ({"lr": 1e-3, "weight_decay": 10.0}, 10.0, 0.0),
    "rms, beyond the whole weight": ({"lr": 1.0, "weight_decay": 100.0}, 1.0, -3.0),
    "rms, no process noise": ({"lr": 1e-3, "weight_decay": 1.0, "process_noise": 0.0}, 100.0, 0.0),
}


@pytest.mark.parametrize("passes", [eager, reference], ids=["eager", "reference"])
@pytest.mark.parametrize("case", DECAYED)
def test_weight_decay_does_not_enlarge_the_noise_estimate(case, passes, monkeypatch):
    """Gradients are white noise: R is their variance, whatever decay does to the weights."""
    through(passes, monkeypatch)
    options, size, lowest = DECAYED[case]
    param = Parameter(size * normal((400,), 0).float())
    ours = Arturo([param], **options)
    sigma = torch.logspace(max(lowest, -15.0), 0, 400)
    for step in range(150):
        param.grad = sigma * normal((400,), 1 + step).float()
        ours.step()
    relative = (ours.state[param]["deviation"] / sigma) ** 2
    assert 0.6 < float(relative.median()) < 1.6
    assert float(relative.max()) < 4.0
    assert torch.isfinite(param).all()
    assert ours.diagnostics()["skipped_steps"] == 0


def test_decay_takes_no_more_than_the_whole_weight():
    for options in MODES.values():
        param = Parameter(torch.tensor([2.0, -3.0]))
        ours = Arturo([param], **{**options, "lr": 1e-3, "weight_decay": 1e5})
        param.grad = torch.zeros(2)
        ours.step()
        assert float(param.detach().abs().max()) < 1e-3


# -- subnormal numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passes", [eager, reference], ids=["eager", "reference"])
@pytest.mark.parametrize("mode", MODES)
def test_no_statistic_becomes_subnormal_where_gradients_vanish(mode, passes, monkeypatch):
    through(passes, monkeypatch)
    params = [Parameter(normal((6,), index).float()) for index in range(3)]
    ours = Arturo(params, **MODES[mode])
    for step in range(400):
        for index, scale in enumerate((1e-18, 1e-6, 1e3)):
            params[index].grad = (scale * normal((6,), step) if step < 20 else torch.zeros(6)).float()
        ours.step()
    tiny = torch.finfo(torch.float32).tiny
    for param in params:
        for name, value in ours.state[param].items():
            assert not ((value != 0.0) & (value.abs() < tiny)).any(), name
    if "deviation" in ours.state[params[0]]:
        assert float(ours.state[params[0]]["deviation"].max()) == pytest.approx(1e-18)  # the floor
        assert float(ours.state[params[2]]["direction"].abs().max()) == 0.0
