"""The dual: honest in every regime, in a fixed number of evaluations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from arturo_core import Arturo
from arturo_core.algorithm import trust_region


def solve(
    slope: torch.Tensor, curvature: torch.Tensor, precision: torch.Tensor, bound: float, rtol: float = 1e-3
) -> tuple[trust_region.Multiplier, torch.Tensor]:
    """The search as a step of the full form runs it, and the step it leads to."""
    budget = torch.tensor(2.0 * bound, dtype=torch.float64)
    terms = trust_region.spectrum(slope, curvature, precision)
    least = terms.curvature.amin().double()
    eta_min, convex = (-least).clamp(min=0.0), least > 0
    newton = trust_region.secular_sums(terms, 0.0, 0.0)
    value = torch.where(convex, newton.value, torch.full_like(newton.value, torch.inf))
    newton = newton._replace(value=value)
    total = trust_region.wide_sum(terms.slope * terms.slope)
    bracket = trust_region.start(budget, total, newton, convex)
    for _ in range(trust_region.EVALUATIONS):
        sums = trust_region.secular_sums(terms, eta_min, bracket.t)
        bracket = trust_region.advance(bracket, sums, budget)
    multiplier = trust_region.settle(bracket, newton.value, eta_min, budget, rtol)
    step = multiplier.scale * trust_region.primal(terms, precision, multiplier.eta_min, multiplier.t)
    return multiplier, step


def spent(step: torch.Tensor, precision: torch.Tensor) -> float:
    return float(0.5 * (precision.double() * step.double() ** 2).sum())


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(1, 3000),
    gradient_scale=st.floats(-12, 6),
    curvature_scale=st.floats(-6, 6),
    precision_scale=st.floats(-3, 6),
    spread=st.floats(0, 3),
    bound=st.floats(-8, 2),
    negative=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_bound_holds_to_tolerance_in_every_regime(
    seed: int,
    count: int,
    gradient_scale: float,
    curvature_scale: float,
    precision_scale: float,
    spread: float,
    bound: float,
    negative: bool,
    dtype: torch.dtype,
) -> None:
    rng = np.random.default_rng(seed)
    slope = 10**gradient_scale * rng.normal(size=count) * np.exp(spread * rng.normal(size=count))
    curvature = 10**curvature_scale * np.exp(spread * rng.normal(size=count))
    if negative:
        curvature *= np.where(rng.random(count) < 0.2, -1.0, 1.0)
    precision = 10**precision_scale * np.exp(spread * rng.normal(size=count))
    tensors = [torch.from_numpy(array).to(dtype) for array in (slope, curvature, precision)]
    epsilon = 10**bound
    multiplier, step = solve(*tensors, epsilon)
    used = spent(step, tensors[2])
    assert torch.isfinite(step).all()
    assert used <= epsilon * 1.001
    # What is reported is what is spent.
    assert float(multiplier.kl) == pytest.approx(used, rel=1e-4, abs=1e-12 * epsilon)
    if multiplier.active:
        assert used == pytest.approx(epsilon, rel=1e-3)
    else:
        assert float(multiplier.eta_min + multiplier.t) == 0.0 or negative


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("negative", [False, True])
def test_multiplier_is_the_root_of_the_secular_equation(spread: float, negative: bool) -> None:
    """Against scipy's Brent in float64: the fixed evaluations suffice also for spectra over several decades."""
    rng = np.random.default_rng(3)
    errors = []
    for _ in range(40):
        count = int(10 ** rng.uniform(0, 3.5))
        slope = rng.normal(size=count) * np.exp(spread * rng.normal(size=count))
        curvature = np.exp(spread * rng.normal(size=count))
        if negative:
            curvature[rng.random(count) < 0.2] *= -1
        precision = np.exp(spread * rng.normal(size=count))
        floor = max(0.0, float((-curvature / precision).max()))

        def kl(eta: float, a=slope, b=curvature, lam=precision) -> float:
            return float(0.5 * np.sum(lam * (a / (b + eta * lam)) ** 2))

        chosen = floor + np.exp(rng.normal(0, 1 + spread))
        epsilon = kl(chosen)
        multiplier, _ = solve(*(torch.from_numpy(array) for array in (slope, curvature, precision)), epsilon, rtol=0.5)
        exact = brentq(lambda eta, e=epsilon, f=kl: f(eta) / e - 1.0, floor + 1e-9 * chosen, 2 * chosen, xtol=1e-14)
        errors.append(abs(float(multiplier.eta_min + multiplier.t) - exact) / (exact - floor))
        assert multiplier.active
    assert np.median(errors) < 1e-6
    assert np.quantile(errors, 0.9) < (1e-4 if spread <= 1 else 0.05)


def test_equal_curvature_needs_one_evaluation() -> None:
    """c equal everywhere: the fitted power is 2, and the second point is exact (Moré and Sorensen)."""
    slope = torch.randn(100, dtype=torch.float64)
    terms = trust_region.spectrum(slope, torch.full_like(slope, 0.3), torch.full_like(slope, 7.0))
    budget = torch.tensor(0.02, dtype=torch.float64)
    newton = trust_region.secular_sums(terms, 0.0, 0.0)
    bracket = trust_region.start(budget, trust_region.wide_sum(terms.slope**2), newton, torch.tensor(True))
    bracket = trust_region.advance(bracket, trust_region.secular_sums(terms, 0.0, bracket.t), budget)
    value = trust_region.secular_sums(terms, 0.0, bracket.t).value
    assert float(value) == pytest.approx(0.02, rel=1e-12)


def test_no_gradient_means_no_step() -> None:
    slope = torch.zeros(5)
    multiplier, step = solve(slope, torch.ones(5), torch.ones(5), 1e-3)
    assert not multiplier.active
    assert float(multiplier.kl) == 0.0
    assert torch.equal(step, torch.zeros(5))


@pytest.mark.slow
def test_one_hundred_million_parameters_meet_the_bound() -> None:
    param = torch.nn.Parameter(torch.zeros(100_000_000))
    optimizer = Arturo.paper([param])
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        param.grad = torch.randn(param.numel(), generator=generator) * 1e-6
        before, precision = param.detach().clone(), optimizer.state[param].get("precision")
        precision = None if precision is None else precision.clone()
        optimizer.step()
    assert precision is not None
    numbers = optimizer.diagnostics()
    used = sum(
        float((0.5 * lam.double() * (new.double() - old.double()) ** 2).sum())
        for lam, new, old in zip(precision.chunk(100), param.detach().chunk(100), before.chunk(100), strict=True)
    )
    if numbers["bound_active"]:
        assert used == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-3)
    assert used == pytest.approx(numbers["kl"], rel=1e-3)


@settings(max_examples=200, deadline=None)
@given(
    decrement=st.floats(-20, 6),
    bound=st.floats(-10, 1),
    kappa=st.floats(-2, 1),
    damping=st.one_of(st.just(0.0), st.floats(0, 10)),
)
def test_tied_form_meets_the_bound(decrement: float, bound: float, kappa: float, damping: float) -> None:
    """With λ = b/κ the step is f times Newton's: KL = ½ f² Σ(a²/b)/κ, and 1/f = 1 + η/κ with η at least κ·damping."""
    newton, temperature, epsilon = 10.0**decrement, 10.0**kappa, 10.0**bound
    multiplier, factor = trust_region.tied_multiplier(
        torch.tensor(newton, dtype=torch.float64), torch.tensor(2 * epsilon, dtype=torch.float64), temperature, damping
    )
    used = 0.5 * float(factor) ** 2 * newton / temperature
    assert float(multiplier.kl) == pytest.approx(used, rel=1e-9)
    eta = float(multiplier.eta_min + multiplier.t)
    assert float(factor) == pytest.approx(1 / (1 + eta / temperature), rel=1e-12)
    if 0.5 * newton / temperature / (1 + damping) ** 2 > epsilon:
        assert multiplier.active
        assert used == pytest.approx(epsilon, rel=1e-9)
        assert eta >= damping * temperature
    else:
        assert not multiplier.active
        assert float(factor) == pytest.approx(1 / (1 + damping), rel=1e-12)
        assert used <= epsilon * (1 + 1e-9)
