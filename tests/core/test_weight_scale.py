"""The relative part of the trust radius."""

from __future__ import annotations

import math

import pytest
import torch

from arturo_core import Arturo
from arturo_core.options import RADIUS_PER_SIGNAL
from arturo_core.weight_scale import INITIAL_SHARE, RADIUS_PER_WEIGHT, matrix_shape

#: RMS of ĝ/σ after one gradient, which agrees with itself: p = 1.03, ĝ = p/(1 + p)·g, σ² = g²/(1 + p).
FIRST_SIGNAL = 1.03 / math.sqrt(2.03)


def radius(optimizer: Arturo) -> float:
    """Trust radius of the last step, from its bound: ε = ½ Σ λ r²."""
    precision = sum(
        float(optimizer.precision(p).double().sum()) for group in optimizer.param_groups for p in group["params"]
    )
    return math.sqrt(2.0 * optimizer.diagnostics()["kl_bound"] / precision)


def expected(*params: torch.Tensor) -> float:
    """The docstring's formula, element by element."""
    terms = []
    for param in params:
        rows, columns = param.shape[0], math.prod(param.shape[1:])
        terms.append((param.detach().double().flatten() ** 2) / min(rows, columns) + INITIAL_SHARE / (rows * columns))
    return RADIUS_PER_WEIGHT * math.sqrt(float(torch.cat(terms).mean()))


def stepped(params: list[torch.nn.Parameter], lr: float, groups: bool = False) -> Arturo:
    optimizer = Arturo([{"params": [param]} for param in params] if groups else params, lr=lr)
    for param in params:
        param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(3)).to(param.dtype)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("groups", [False, True])
def test_a_large_lr_meets_the_relative_radius_and_a_small_one_does_not(dtype: torch.dtype, groups: bool) -> None:
    torch.manual_seed(0)
    shapes = [(30, 8), (12,), (6, 4, 3, 3)]
    params = [torch.nn.Parameter(0.05 * torch.randn(shape).to(dtype)) for shape in shapes]
    wanted = expected(params[0], params[2])  # the bias is no matrix
    assert radius(stepped([torch.nn.Parameter(p.detach().clone()) for p in params], 10.0, groups)) == pytest.approx(
        wanted, rel=1e-5
    )
    small = 0.1 * wanted
    assert radius(stepped([torch.nn.Parameter(p.detach().clone()) for p in params], small, groups)) == pytest.approx(
        max(0.35, RADIUS_PER_SIGNAL * FIRST_SIGNAL) * small, rel=1e-5
    )


def test_without_matrices_lr_alone_decides() -> None:
    assert radius(stepped([torch.nn.Parameter(torch.full((9,), 1e-6))], 10.0)) == pytest.approx(
        RADIUS_PER_SIGNAL * 10.0 * FIRST_SIGNAL, rel=1e-5
    )


def test_weights_that_start_at_zero_move() -> None:
    """A linear model from zero: the share of an initial weight's variance lets it leave at once."""
    torch.manual_seed(0)
    model = torch.nn.Linear(10, 3, bias=False)
    torch.nn.init.zeros_(model.weight)
    target = torch.randn(3, 10)
    optimizer = Arturo(model.parameters(), lr=0.03)
    losses = []
    for _ in range(300):
        inputs = torch.randn(32, 10)
        loss = (model(inputs) - inputs @ target.T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.05 * sum(losses[:10])


def test_a_group_that_stands_still_lends_no_size() -> None:
    """Frozen by lr = 0, a large matrix does not lengthen the steps of a small one."""
    torch.manual_seed(0)
    small, large = (torch.nn.Parameter(scale * torch.randn(8, 8)) for scale in (0.01, 10.0))
    wanted = expected(small)
    optimizer = Arturo([{"params": [small]}, {"params": [large], "lr": 0.0}], lr=10.0)
    small.grad, large.grad = torch.randn(8, 8), torch.randn(8, 8)
    optimizer.step()
    bound = optimizer.diagnostics()["kl_bound"]
    assert math.sqrt(2.0 * bound / float(optimizer.precision(small).double().sum())) == pytest.approx(wanted, rel=1e-5)


def test_learning_rates_an_order_apart_train_alike_above_the_radius() -> None:
    """What it is for: above the relative radius a larger lr does not mean longer steps."""
    moved = {}
    for lr in (1.0, 10.0):
        torch.manual_seed(0)
        param = torch.nn.Parameter(0.1 * torch.randn(20, 20))
        before = param.detach().clone()
        stepped([param], lr)
        moved[lr] = float((param.detach() - before).norm())
    assert moved[10.0] == pytest.approx(moved[1.0], rel=1e-4)


@pytest.mark.parametrize(
    ("shape", "found"), [((), None), ((5,), None), ((0, 3), None), ((4, 6), (4, 6)), ((4, 3, 2, 2), (4, 12))]
)
def test_what_counts_as_a_matrix(shape: tuple[int, ...], found: tuple[int, int] | None) -> None:
    assert matrix_shape(torch.zeros(shape)) == found
