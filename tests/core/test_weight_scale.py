"""The relative part of the trust radius."""

from __future__ import annotations

import math

import pytest
import torch
from problems import adaptive_bound
from torch._subclasses.fake_tensor import FakeTensorMode

from arturo_core import Arturo
from arturo_core.distributed.sharding import matrices
from arturo_core.options import RADIUS_PER_SIGNAL
from arturo_core.step import learning_rate
from arturo_core.step.weight_scale import INITIAL_SHARE, RADIUS_PER_WEIGHT, sums

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


def step_in_units_of_the_bound(optimizer: Arturo, param: torch.Tensor, moved: torch.Tensor, bound: float) -> float:
    """RMS of a step in the metric of λ over the relative radius."""
    precision = optimizer.precision(param).double()
    return math.sqrt(float((precision * moved.double() ** 2).sum() / precision.sum())) / bound


@pytest.mark.parametrize("lrs", [(10.0, 10.0), (10.0, 1e-3), (10.0, 1e-4), (0.05, 0.02)])
def test_a_small_lr_lends_other_groups_no_divergence(lrs: tuple[float, float]) -> None:
    """Its short ℓ makes its precisions large: limiting their sum, and not each group, allowed twice ρ and more."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(0.05 * torch.randn(30, 30)) for _ in lrs]
    optimizer = Arturo([{"params": [param], "lr": lr} for param, lr in zip(params, lrs, strict=True)])
    for _ in range(6):
        weight = [lr**2 / sum(lr**2 for lr in lrs) for lr in lrs]
        bound = math.sqrt(sum(w * expected(param) ** 2 for w, param in zip(weight, params, strict=True)))
        before = [param.detach().clone() for param in params]
        for param in params:
            param.grad = param.detach() + 0.1 * torch.randn_like(param)
        optimizer.step()
        for param, start in zip(params, before, strict=True):
            # The groups share the sum: one takes a little more where another takes less.
            assert step_in_units_of_the_bound(optimizer, param, param.detach() - start, bound) < 1.25
        wanted = adaptive_bound(
            optimizer, before, [p.detach() - start for p, start in zip(params, before, strict=True)]
        )
        assert optimizer.diagnostics()["kl_bound"] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("lr", [1e-9, 1e-30, torch.tensor(0.0), torch.tensor(1e-9)], ids=str)
def test_a_group_that_hardly_moves_lends_hardly_any_size(lr: float | torch.Tensor, monkeypatch) -> None:
    """No jump between lr = 0 and next to nothing, whether the host knows lr or not."""
    monkeypatch.setattr(learning_rate, "known", lambda value: not isinstance(value, torch.Tensor))
    moved = {}
    for other in (lr, 0.0):
        torch.manual_seed(0)
        small, large = (torch.nn.Parameter(scale * torch.randn(8, 8)) for scale in (0.01, 10.0))
        before = small.detach().clone()
        optimizer = Arturo([{"params": [small]}, {"params": [large], "lr": other}], lr=10.0)
        small.grad, large.grad = torch.randn(8, 8), torch.randn(8, 8)
        optimizer.step()
        moved[other] = float((small.detach() - before).norm())
    assert moved[lr] == pytest.approx(moved[0.0], rel=1e-4)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, 1e20], ids=str)
def test_a_weight_without_a_size_leaves_the_bound_to_the_others(bad: float) -> None:
    """A mask of −inf, or a square that overflows, does not free everything else."""
    torch.manual_seed(0)
    mask, weight = torch.nn.Parameter(torch.full((4, 4), bad)), torch.nn.Parameter(0.05 * torch.randn(8, 8))
    wanted, before = expected(weight), weight.detach().clone()
    optimizer = Arturo([mask, weight], lr=3.0)
    mask.grad, weight.grad = torch.zeros(4, 4), torch.randn(8, 8)
    optimizer.step()
    assert step_in_units_of_the_bound(optimizer, weight, weight.detach() - before, wanted) <= 1.0 + 1e-4
    assert float(optimizer.param_groups[0]["length"]) == pytest.approx(8.0 * wanted / 0.35, rel=1e-5)


def test_a_step_without_a_matrix_is_bounded_by_all_matrices() -> None:
    """Some losses reach a part of the model: the size of the rest is not forgotten."""
    torch.manual_seed(0)
    weight, bias = torch.nn.Parameter(0.05 * torch.randn(30, 30)), torch.nn.Parameter(torch.zeros(30))
    wanted = expected(weight)
    optimizer = Arturo([weight, bias], lr=1.0)
    bias.grad = torch.randn(30)
    optimizer.step()
    assert step_in_units_of_the_bound(optimizer, bias, bias.detach(), wanted) <= 1.0 + 1e-4
    assert float(optimizer.param_groups[0]["length"]) == pytest.approx(8.0 * wanted / 0.35, rel=1e-5)


def test_matrices_that_are_unfrozen_bring_their_size() -> None:
    """ℓ from the lr alone, as long as there are no matrices, does not stay."""
    torch.manual_seed(0)
    weight, bias = (
        torch.nn.Parameter(0.05 * torch.randn(30, 30), requires_grad=False),
        torch.nn.Parameter(torch.zeros(30)),
    )
    optimizer = Arturo([weight, bias], lr=1.0)
    bias.grad = torch.randn(30)
    optimizer.step()
    weight.requires_grad_(True)
    weight.grad = torch.randn(30, 30)
    wanted = expected(weight)
    optimizer.step()
    assert float(optimizer.param_groups[0]["length"]) == pytest.approx(8.0 * wanted / 0.35, rel=1e-5)


def test_a_checkpoint_without_lengths_gets_them_from_the_weights() -> None:
    torch.manual_seed(0)
    param = torch.nn.Parameter(0.05 * torch.randn(30, 30))
    saved = stepped([param], 10.0).state_dict()
    del saved["param_groups"][0]["length"]
    optimizer = Arturo([param], lr=10.0)
    optimizer.load_state_dict(saved)
    wanted = expected(param)
    optimizer.step()
    assert float(optimizer.param_groups[0]["length"]) == pytest.approx(8.0 * wanted / 0.35, rel=1e-5)


def test_a_long_sum_of_squares_keeps_its_digits() -> None:
    """Summed in one go, 3e7 float32 squares are off in the fourth digit."""
    param = torch.rand((4096, 8192), generator=torch.Generator().manual_seed(0))
    total = sums([param], torch.device("cpu"))
    square = float(param.double().square().sum())
    assert float(total[0]) == pytest.approx(square / 4096 + INITIAL_SHARE, rel=1e-6)
    assert float(total[1]) == param.numel()


@pytest.mark.parametrize(
    ("shape", "found"), [((), None), ((5,), None), ((0, 3), None), ((4, 6), (4, 6)), ((4, 3, 2, 2), (4, 12))]
)
def test_what_counts_as_a_matrix(shape: tuple[int, ...], found: tuple[int, int] | None) -> None:
    assert [shape for _, shape in matrices(torch.zeros(shape))] == ([found] if found else [])


def test_a_rehearsal_with_fake_tensors_leaves_nothing_behind() -> None:
    """Memory estimates step a model of fake tensors; what they leave in a cache, no real step could use."""
    shape = (37, 11)  # of no other test
    for _ in range(2):
        with FakeTensorMode():
            assert sums([torch.ones(shape)], torch.device("cpu")).shape == (2,)
    assert float(sums([torch.ones(shape)], torch.device("cpu"))[1]) == 37 * 11
