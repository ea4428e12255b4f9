"""The trust region holds: KL ≤ ε in every step, and what is reported of it is true."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from problems import (
    MODES,
    adaptive_bound,
    classifier,
    every_mode,
    train,
    trained,
)
from torch.nn import Parameter

from arturo_core import Arturo
from arturo_core.options import DAMPING


def _classifier(options: dict[str, Any], dtype: torch.dtype = torch.float32):
    model, loss = classifier(dtype)
    optimizer = Arturo(model.parameters(), **options)

    def step(index: int) -> tuple[float, dict[str, Any]]:
        optimizer.zero_grad()
        value = loss(index)
        value.backward()
        optimizer.step()
        return value.item(), optimizer.diagnostics()

    return optimizer, step


#: Bounds that decide every step of a run, and bounds that decide some of them or none.
BOUNDS = {
    "adaptive-rms": {"lr": 3e-3},
    "adaptive-kl": {"lr": 0.0005},
    "fixed-rms": {"lr": 1e-2},
    "fixed-kl": {"lr": 3e-3},
    "adaptive-rms, loose": {"lr": 3e-3, "length_scale": 1e-3},
    "adaptive-kl, loose": {"lr": 0.01},
    "fixed-rms, loose": {"lr": 0.2, "temperature": 2.0, "prior_precision": 0.1},
    "fixed-kl, loose": {"lr": 2.0, "temperature": 2.0, "prior_precision": 0.1},
    "fixed-kl, tight tolerance": {"lr": 3e-3, "kl_rtol": 1e-6},
}


@pytest.mark.parametrize("name", BOUNDS)
def test_honest_bound_in_training(name):
    options = {**MODES[name.split(",")[0]], **BOUNDS[name]}
    optimizer, step = _classifier(options)
    least = DAMPING if options["noise"] == "adaptive" else 0.0
    losses, active = [], 0
    for index in range(200):
        loss, numbers = step(index)
        losses.append(loss)
        if numbers["bound_active"]:
            active += 1
            assert abs(numbers["kl"] / numbers["kl_bound"] - 1.0) <= options.get("kl_rtol", 1e-3)
            assert numbers["eta"] > least
        else:
            assert numbers["eta"] == least
            assert numbers["kl"] <= numbers["kl_bound"]
        assert numbers["kl_ratio"] == pytest.approx(numbers["kl"] / numbers["kl_bound"])
        if options["trust_region"] == "kl":
            assert numbers["kl_bound"] == pytest.approx(options["lr"])
    assert numbers["steps"] == 200
    assert numbers["skipped_steps"] == 0
    if "loose" in name:
        assert active < 150
    else:
        assert active > 50
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])
    for param in optimizer.param_groups[0]["params"]:
        assert (optimizer.precision(param) > 0.0).all()


@pytest.mark.parametrize("shrink", [0.0, 0.01], ids=["plain", "decayed"])
@pytest.mark.parametrize("name", BOUNDS)
def test_the_reported_divergence_is_that_of_the_step(name, shrink):
    """KL recomputed from the weights and the precision alone: what is reported was really spent."""
    options = {**MODES[name.split(",")[0]], **BOUNDS[name]}
    options["weight_decay"] = shrink / options["lr"]
    optimizer, step = _classifier(options, torch.float64)
    params = optimizer.param_groups[0]["params"]
    for index in range(25):
        before = [param.detach().clone() for param in params]
        precision = []
        if options["noise"] == "fixed" and index:
            # Its precision is updated by the step, so the step was bounded with the one before.
            precision = [optimizer.state[param]["precision"].clone() for param in params]
        _, numbers = step(index)
        if options["noise"] == "adaptive":
            # There it is a function of the statistics the step has just updated, and bounded with.
            precision = [optimizer.precision(param) for param in params]
        elif not index:
            precision = [torch.full_like(param, 100.0) for param in params]
        shrunk = [start * (1.0 - shrink) for start in before]
        spent = sum(
            0.5 * (lam * (param.detach() - start).square()).sum().item()
            for lam, param, start in zip(precision, params, shrunk, strict=True)
        )
        assert numbers["kl"] == pytest.approx(spent, rel=1e-6)
        total = sum(lam.sum().item() for lam in precision)
        bound = 0.5 * (0.35 * options["lr"]) ** 2 * total
        if options["trust_region"] == "kl":
            bound = options["lr"]
        elif options["noise"] == "adaptive":
            steps = [param.detach() - start for param, start in zip(params, shrunk, strict=True)]
            bound = adaptive_bound(optimizer, before, steps)
        elif numbers["kl_bound"] < bound * (1.0 - 1e-6):
            # Weights of small precision would move far: the plain RMS decides.
            assert numbers["step_rms"] == pytest.approx(0.35 * options["lr"], rel=1e-6)
            bound = spent
        assert numbers["kl_bound"] == pytest.approx(bound, rel=1e-6)
        assert spent <= bound * (1.0 + options.get("kl_rtol", 1e-3))
        moved = sum((param.detach() - start).square().sum() for param, start in zip(params, shrunk, strict=True))
        count = sum(param.numel() for param in params)
        assert numbers["step_rms"] == pytest.approx(math.sqrt(moved.item() / count), rel=1e-5)


@pytest.mark.parametrize("lr", [1e-6, 1e-3, 1.0])
def test_honest_bound_over_many_decades(lr):
    """Coordinates that differ by 12 decades are what the search for the multiplier finds hardest."""
    params = [Parameter(torch.logspace(-6, 6, 400, dtype=torch.float64))]
    options = {"measurement_noise": 1e-3, "process_noise": 1e-2, "init_covariance": 1.0, "precision_momentum": 0.1}
    optimizer = Arturo(params, lr, noise="fixed", trust_region="kl", **options)
    source = torch.Generator().manual_seed(0)
    active = 0
    for _ in range(40):
        before = params[0].detach().clone()
        precision = optimizer.precision(params[0]) if optimizer.state else torch.full_like(before, 100.0)
        noise = torch.randn(400, generator=source, dtype=torch.float64)
        params[0].grad = torch.logspace(6, -6, 400, dtype=torch.float64) * noise
        optimizer.step()
        numbers = optimizer.diagnostics()
        spent = 0.5 * (precision * (params[0].detach() - before).square()).sum().item()
        assert spent <= lr * (1.0 + 1e-3)
        if numbers["bound_active"]:
            active += 1
            assert spent == pytest.approx(lr, rel=1.001e-3)
            assert numbers["kl"] == pytest.approx(spent, rel=1e-4)
    assert active > 0


def grouped(noise):
    """Four groups of different lr, and for each of 30 steps: λ, the displacements, and what was reported."""
    rates = [1e-2, 3e-3, 1e-3, 3e-3]
    torch.manual_seed(1)
    params = [Parameter(torch.randn(30, dtype=torch.float64)) for _ in rates]
    optimizer = Arturo([{"params": [p], "lr": lr} for p, lr in zip(params, rates, strict=True)], noise=noise)
    for index in range(30):
        before = [param.detach().clone() for param in params]
        precision = [optimizer.precision(param) if index else torch.full_like(param, 100.0) for param in params]
        train(optimizer, params, [index])
        if noise == "adaptive":
            precision = [optimizer.precision(param) for param in params]
        moved = [param.detach() - start for param, start in zip(params, before, strict=True)]
        numbers = optimizer.diagnostics()
        if noise == "adaptive":
            numbers["expected"] = adaptive_bound(optimizer, before, moved)
        yield rates, precision, moved, numbers


def total(*columns):
    return sum(float(math.prod(row).sum()) for row in zip(*columns, strict=True))


def test_groups_scale_the_metric_of_the_full_form():
    """Σ over groups of λ(δ/lr)² is at most 0.35² Σ λ, Σ (δ/lr)² at most 0.35² n; where active, one is equal."""
    active = 0
    for rates, precision, moved, numbers in grouped("fixed"):
        relative = [(step / lr) ** 2 for step, lr in zip(moved, rates, strict=True)]
        spent = total(precision, relative)
        bound = 0.35**2 * total(precision)
        assert spent <= bound * (1.0 + 1e-3)
        plain = sum(float(squares.mean()) for squares in relative) / len(rates)
        assert plain <= 0.35**2 * (1.0 + 1e-6)
        if numbers["kl_bound"] < 0.5 * bound * 1e-2**2 * (1.0 - 1e-6):
            assert plain == pytest.approx(0.35**2, rel=1e-6)
            bound = spent
        # In units of the largest lr these are twice the divergence used and its bound.
        assert numbers["kl"] == pytest.approx(0.5 * spent * 1e-2**2, rel=1e-6)
        assert numbers["kl_bound"] == pytest.approx(0.5 * bound * 1e-2**2, rel=1e-6)
        if numbers["bound_active"]:
            active += 1
            assert spent == pytest.approx(bound, rel=1e-3)
    assert active >= 10


def test_groups_of_the_adaptive_form_share_the_divergence_of_their_radii():
    """½ Σ λδ² is at most ½ Σ λr² with the radius of every group's own lr, and groups move in proportion to it."""
    active, lengths = 0, []
    for rates, precision, moved, numbers in grouped("adaptive"):
        spent = 0.5 * total(precision, [step**2 for step in moved])
        bound = numbers["expected"]
        assert bound >= 0.5 * total(precision, [(0.35 * lr) ** 2 for lr in rates]) * (1.0 - 1e-9)
        assert spent <= bound * (1.0 + 1e-3)
        assert numbers["kl"] == pytest.approx(spent, rel=1e-6)
        assert numbers["kl_bound"] == pytest.approx(bound, rel=1e-6)
        active += numbers["bound_active"]
        lengths.append([float(step.norm()) / lr for step, lr in zip(moved, rates, strict=True)])
    assert active >= 10
    relative = torch.tensor(lengths).mean(dim=0)
    assert relative.max() / relative.min() < 1.5


@every_mode
def test_the_bound_follows_the_schedule(options):
    """A smaller bound takes effect at once, not after steps of recovery."""
    _, optimizer = trained(options, steps=20, dtype=torch.float64)
    params = optimizer.param_groups[0]["params"]
    for factor in (1.0, 0.006, 0.006**2, 1.0):
        optimizer.param_groups[0]["lr"] = options["lr"] * factor
        train(optimizer, params, [20])
        numbers = optimizer.diagnostics()
        assert numbers["kl"] <= numbers["kl_bound"] * (1.0 + 1e-3)
        if options["trust_region"] == "kl":
            assert numbers["kl_bound"] == pytest.approx(options["lr"] * factor)
