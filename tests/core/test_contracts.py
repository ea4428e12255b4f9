"""The promises an optimizer of this kind makes to those who train with it; each test is one of them."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from problems import (
    MODES,
    STATE_KEYS,
    adaptive_bound,
    assert_identical,
    build,
    classifier,
    every_mode,
    every_noise,
    gradients,
    parameters,
    snapshot,
    train,
    trained,
    weights,
    without_counters,
)
from torch.nn import Parameter
from torch.optim import lr_scheduler

from arturo_core import Arturo
from arturo_core.options import DAMPING

# -- inert at zero -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero", [0.0, 0, torch.tensor(0.0), torch.zeros(1)], ids=["float", "int", "0-dim", "1-dim"])
@pytest.mark.parametrize("trained_before", [False, True], ids=["fresh", "trained"])
@every_mode
def test_inert_where_every_lr_is_zero(options, zero, trained_before):
    params = parameters()
    unused = Parameter(torch.ones(2))
    optimizer = Arturo([{"params": params[:2]}, {"params": [params[2], unused]}], weight_decay=0.1, **options)
    if trained_before:
        train(optimizer, params, range(3))
    for group in optimizer.param_groups:
        group["lr"] = zero
    before = snapshot(optimizer)
    numbers = optimizer.diagnostics()
    for step in range(3):
        train(optimizer, params, [step])
    after = snapshot(optimizer)
    assert_identical(after["weights"], before["weights"])
    assert_identical(after["groups"], before["groups"])
    if trained_before:
        assert_identical(after["state"], before["state"])
        assert optimizer.diagnostics() == numbers
    for param in (*params, unused):
        assert set(optimizer.state[param]) == STATE_KEYS[options["noise"]]
    assert optimizer.diagnostics()["steps"] == (3 if trained_before else 0)
    assert optimizer.diagnostics()["skipped_steps"] == 0


@every_mode
def test_inert_steps_leave_no_trace(options):
    """Zero lr between two steps, whatever the gradients then, changes nothing of what follows."""
    params, optimizer = build({**options, "weight_decay": 0.01})
    reference_params, reference = build({**options, "weight_decay": 0.01})
    for step in range(6):
        train(reference, reference_params, [step])
        optimizer.param_groups[0]["lr"] = 0.0
        train(optimizer, params, [100 + step])
        for param in params:
            param.grad = torch.full_like(param, torch.nan)
        optimizer.step()
        optimizer.param_groups[0]["lr"] = options["lr"]
        train(optimizer, params, [step])
    assert_identical(snapshot(optimizer), snapshot(reference))


@every_noise
def test_a_frozen_group_does_not_move_while_others_do(options):
    params = parameters()
    options = {**options, "trust_region": "rms", "weight_decay": 0.1}
    optimizer = Arturo([{"params": params[:1], "lr": 0.0}, {"params": params[1:]}], **options)
    alone = parameters()[1:]
    reference = Arturo(alone, **options)
    start = params[0].detach().clone()
    for step in range(5):
        train(optimizer, params, [step])
        for param, twin in zip(params[1:], alone, strict=True):
            twin.grad = param.grad.clone()
        reference.step()
    assert torch.equal(params[0], start)
    fresh_params, fresh = build({**options, "lr": 0.0})
    train(fresh, fresh_params, [0])
    assert_identical(dict(optimizer.state[params[0]]), dict(fresh.state[fresh_params[0]]))
    for param, twin in zip(params[1:], alone, strict=True):
        assert torch.equal(param, twin)
        assert not torch.equal(param, torch.zeros_like(param))
    # Thawed, it starts to learn.
    optimizer.param_groups[0]["lr"] = 1e-2
    train(optimizer, params, [5])
    assert not torch.equal(params[0], start)


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float lr", "tensor lr"])
@every_mode
def test_warm_up_from_zero(options, tensor_lr):
    """The first step of every linear warm-up has lr 0; it must be as if it had not been."""
    rates = [0.0, *(options["lr"] * step / 4 for step in (1, 2, 3, 4, 4, 4))]
    params = parameters()
    lr = torch.tensor(options["lr"]) if tensor_lr else options["lr"]
    optimizer = Arturo(params, **{**options, "lr": lr}, weight_decay=0.1)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: min(step, 4) / 4)
    reference_params, reference = build({**options, "weight_decay": 0.1})
    start = [param.detach().clone() for param in params]
    for step, rate in enumerate(rates):
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(rate)
        train(optimizer, params, [step])
        scheduler.step()
        if step == 0:
            assert_identical([param.detach() for param in params], start)
            continue
        reference.param_groups[0]["lr"] = rate
        train(reference, reference_params, [step])
        assert all(torch.isfinite(param).all() for param in params)
        for param, twin in zip(params, reference_params, strict=True):
            torch.testing.assert_close(param, twin, rtol=1e-5, atol=1e-6)
    assert optimizer.diagnostics()["steps"] == len(rates) - 1
    assert optimizer.diagnostics()["skipped_steps"] == 0


# -- a bad gradient ----------------------------------------------------------------------------------------------------

BAD = {"nan": math.nan, "+inf": math.inf, "-inf": -math.inf, "huge": 1e30, "-huge": -1e30}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("where", [0, 1, 2], ids=["matrix", "vector", "scalar"])
@pytest.mark.parametrize("when", [0, 3], ids=["first", "later"])
@every_mode
def test_a_bad_gradient_skips_the_whole_step(options, bad, where, when):
    options = {**options, "weight_decay": 0.1}
    params, optimizer = build(options)
    reference_params, reference = build(options)
    for step in range(6):
        if step == when:
            before = snapshot(optimizer)
            for param, grad in zip(params, gradients(params, 50), strict=True):
                param.grad = grad
            params[where].grad.view(-1)[-1] = bad
            optimizer.step()
            after = snapshot(optimizer)
            assert_identical(after["weights"], before["weights"])
            if when:
                assert_identical(without_counters(after), without_counters(before))
            numbers = optimizer.diagnostics()
            assert (numbers["steps"], numbers["skipped_steps"]) == (when, 1)
            assert numbers["kl"] == 0.0
            assert not numbers["bound_active"]
        train(optimizer, params, [step])
        train(reference, reference_params, [step])
    assert_identical(without_counters(snapshot(optimizer)), without_counters(snapshot(reference)))
    numbers = optimizer.diagnostics()
    assert (numbers["steps"], numbers["skipped_steps"]) == (6, 1)
    assert reference.diagnostics()["skipped_steps"] == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64], ids=str)
@every_noise
def test_a_bad_gradient_in_other_dtypes(options, dtype):
    params = [Parameter(torch.linspace(-1, 1, 6).to(dtype)), Parameter(torch.linspace(1, 2, 6))]
    optimizer = Arturo(params, **options)
    for value in (1.0, -0.5):
        for param in params:
            param.grad = torch.full_like(param, value)
        optimizer.step()
    before = snapshot(optimizer)
    params[0].grad[2] = complex(0.0, math.inf) if dtype.is_complex else math.inf
    optimizer.step()
    assert_identical(without_counters(snapshot(optimizer)), without_counters(before))
    assert optimizer.diagnostics()["skipped_steps"] == 1


@every_noise
def test_a_bad_gradient_in_a_large_tensor(options):
    """Large tensors go through other code than small ones: slices of them are worked on in place."""
    torch.manual_seed(0)
    params = [Parameter(torch.randn(300, 300)), Parameter(torch.randn(7))]
    optimizer = Arturo(params, **options, weight_decay=0.1)
    train(optimizer, params, range(2))
    before = snapshot(optimizer)
    for param, grad in zip(params, gradients(params, 2), strict=True):
        param.grad = grad
    params[0].grad[299, 299] = math.nan
    optimizer.step()
    assert_identical(without_counters(snapshot(optimizer)), without_counters(before))
    assert optimizer.diagnostics()["skipped_steps"] == 1


@every_noise
def test_a_bad_gradient_with_large_weights(options):
    """Nothing changes by rounding either: at |θ| ≫ 1 intercept and slope of the model are nearly one direction."""
    params = [Parameter(torch.tensor([3e3, -2e4, 1.0, 0.0]))]
    optimizer = Arturo(params, **options, weight_decay=0.1)
    for warm in range(3):
        if warm:
            train(optimizer, params, [warm])
        else:
            optimizer.param_groups[0]["lr"] = 0.0
            train(optimizer, params, [warm])
            optimizer.param_groups[0]["lr"] = options["lr"]
        before = snapshot(optimizer)
        params[0].grad = torch.tensor([1.0, math.nan, 1.0, 1.0])
        optimizer.step()
        assert_identical(without_counters(snapshot(optimizer)), without_counters(before))


@every_noise
def test_only_bad_gradients_count_as_skipped(options):
    """Parameters that take turns in having a gradient are no reason to report trouble."""
    params, optimizer = build(options)
    for step in range(8):
        for index, (param, grad) in enumerate(zip(params, gradients(params, step), strict=True)):
            param.grad = grad if index == step % 3 else None
        optimizer.step()
    assert optimizer.diagnostics()["skipped_steps"] == 0


BAD_RATES = [math.nan, math.inf, -1e-3]


@pytest.mark.parametrize("lr", [*BAD_RATES, *map(torch.tensor, BAD_RATES), "0.1", None], ids=str)
@pytest.mark.parametrize("steps", [0, 3])
@every_mode
def test_a_lr_that_cannot_be_is_refused_before_anything_changes(options, steps, lr):
    """A scheduler that went wrong must not destroy the weights."""
    params, optimizer = trained({**options, "weight_decay": 0.1}, steps=steps)
    optimizer.param_groups[0]["lr"] = lr
    before = snapshot(optimizer)
    with pytest.raises((ValueError, TypeError), match="lr"):
        train(optimizer, params, [3])
    after = snapshot(optimizer)
    assert_identical(after["weights"], before["weights"])
    assert_identical(after["state"], before["state"])
    optimizer.param_groups[0]["lr"] = options["lr"]
    train(optimizer, params, [4])
    assert all(torch.isfinite(weight).all() for weight in weights(optimizer))
    assert not torch.equal(weights(optimizer)[0], before["weights"][0])


@pytest.mark.parametrize("lr", [*BAD_RATES, 0.0], ids=str)
@pytest.mark.parametrize("steps", [0, 3])
@every_mode
def test_a_lr_that_only_the_device_knows_skips_the_step(options, steps, lr, monkeypatch):
    """On an accelerator the host does not look at a tensor lr; the step itself has to be harmless."""
    params, optimizer = trained({**options, "weight_decay": 0.1}, steps=steps)
    monkeypatch.setattr("arturo_core.learning_rate.known", lambda lr: not isinstance(lr, torch.Tensor))
    optimizer.param_groups[0]["lr"] = torch.tensor(lr)
    before = weights(optimizer)
    before = [weight.clone() for weight in before]
    train(optimizer, params, [3])
    for weight, start in zip(weights(optimizer), before, strict=True):
        assert torch.equal(weight, start)
    assert optimizer.diagnostics()["steps"] == steps
    optimizer.param_groups[0]["lr"] = torch.tensor(options["lr"])
    train(optimizer, params, [4])
    assert all(torch.isfinite(weight).all() for weight in weights(optimizer))
    assert not torch.equal(weights(optimizer)[0], before[0])


@every_noise
def test_a_group_whose_zero_lr_only_the_device_knows_stands_still(options, monkeypatch):
    monkeypatch.setattr("arturo_core.learning_rate.known", lambda lr: not isinstance(lr, torch.Tensor))
    params = parameters()
    groups = [{"params": params[:1], "lr": torch.tensor(1e-2)}, {"params": params[1:], "lr": torch.tensor(0.0)}]
    optimizer = Arturo(groups, noise=options["noise"], weight_decay=0.1)
    before = [param.detach().clone() for param in params]
    train(optimizer, params, range(4))
    assert not torch.equal(params[0], before[0])
    for param, start in zip(params[1:], before[1:], strict=True):
        assert torch.equal(param, start)
        assert float(optimizer.state[param]["step"]) == 0.0
        assert float(optimizer.state[param]["gradient"].abs().max()) == float(
            (0.1 * start).abs().max() if options["noise"] == "fixed" else 0.0
        )


def test_a_group_follows_its_own_lr_when_schedules_differ():
    """The adaptive form: after a group's lr falls, so do its steps, in proportion."""
    torch.manual_seed(0)
    one, two = Parameter(torch.randn(200)), Parameter(torch.randn(200))
    optimizer = Arturo([{"params": [one]}, {"params": [two]}], lr=1e-3)
    for step in range(60):
        if step == 30:
            optimizer.param_groups[1]["lr"] = 1e-6
        before = one.detach().clone(), two.detach().clone()
        one.grad, two.grad = torch.randn(200), torch.randn(200)
        optimizer.step()
    ratio = float((two.detach() - before[1]).norm() / (one.detach() - before[0]).norm())
    assert ratio == pytest.approx(1e-3, rel=0.5)


def test_coordinates_that_sleep_keep_their_curvature():
    """Rows of an embedding that no batch has shown are not made loose by what others learn."""
    torch.manual_seed(0)
    param = Parameter(torch.zeros(1000))
    optimizer = Arturo([param], lr=1e-3)
    for _ in range(400):
        param.grad = torch.randn(1000)
        param.grad[:5] = 0.0
        optimizer.step()
    assert torch.equal(optimizer.state[param]["curvature"][:5], torch.ones(5))
    param.grad = torch.randn(1000)
    before = param.detach().clone()
    optimizer.step()
    moved = (param.detach() - before).abs() / 1e-3
    assert moved[:5].max() < 10.0


# -- honest bound ------------------------------------------------------------------------------------------------------


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
    """Σ over groups of λ(δ/lr)² is at most 0.35² Σ λ, and equal to it where the bound is active."""
    active = 0
    for rates, precision, moved, numbers in grouped("fixed"):
        spent = total(precision, [(step / lr) ** 2 for step, lr in zip(moved, rates, strict=True)])
        bound = 0.35**2 * total(precision)
        assert spent <= bound * (1.0 + 1e-3)
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


# -- invariances -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("trust_region", ["rms", "kl"])
def test_the_scale_of_the_loss_does_not_matter(trust_region, scale):
    """Of the adaptive form. With "kl" the bound is in nats of a precision that has the scale: bound × scale."""
    results = []
    for factor in (1.0, scale):
        lr = 1e-2 * (factor if trust_region == "kl" else 1.0)
        params, optimizer = build({"trust_region": trust_region, "lr": lr}, torch.float64)
        train(optimizer, params, range(30), scale=factor)
        results.append((weights(optimizer), optimizer.diagnostics()))
    (plain, numbers), (scaled, scaled_numbers) = results
    for one, other, start in zip(plain, scaled, parameters(torch.float64), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        assert not torch.equal(one, start)
    assert scaled_numbers["innovation_ratio"] == pytest.approx(numbers["innovation_ratio"], rel=1e-6)


PARTITIONS = {
    "halves": [[12], [12]],
    "elements": [[1] * 24],
    "uneven tensors": [[1, 5, 0, 18]],
    "groups": [[7], [1, 10], [6]],
    "groups and an empty one": [[20], [], [4]],
}


@pytest.mark.parametrize("partition", PARTITIONS.values(), ids=PARTITIONS.keys())
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@every_mode
def test_how_weights_are_split_does_not_matter(options, partition, weight_decay):
    options = {**options, "weight_decay": weight_decay}
    torch.manual_seed(0)
    whole = Parameter(torch.randn(24, dtype=torch.float64))
    sizes = list(itertools.chain.from_iterable(partition))
    parts = [Parameter(part.clone()) for part in whole.detach().split(sizes)]
    iterator = iter(parts)
    split = Arturo([{"params": [next(iterator) for _ in sizes]} for sizes in partition], **options)
    joint = Arturo([whole], **options)
    for step in range(12):
        train(joint, [whole], [step])
        for part, grad in zip(parts, whole.grad.split(sizes), strict=True):
            part.grad = grad.clone()
        split.step()
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-9, atol=1e-12)
        assert split.diagnostics()["eta"] == pytest.approx(joint.diagnostics()["eta"], rel=1e-6)


@every_noise
def test_how_large_weights_are_split_does_not_matter(options):
    torch.manual_seed(0)
    whole = Parameter(torch.randn(100_000, dtype=torch.float64))
    sizes = [70_000, 3, 20_000, 9_997]
    parts = [Parameter(part.clone()) for part in whole.detach().split(sizes)]
    joint, split = Arturo([whole], **options), Arturo(parts, **options)
    for step in range(3):
        train(joint, [whole], [step])
        for part, grad in zip(parts, whole.grad.split(sizes), strict=True):
            part.grad = grad.clone()
        split.step()
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-8, atol=1e-11)


@every_mode
def test_the_same_run_twice_is_bitwise_the_same(options):
    assert_identical(snapshot(trained(options, steps=10)[1]), snapshot(trained(options, steps=10)[1]))


@every_mode
def test_reading_changes_nothing(options):
    params, optimizer = trained(options)
    expected = copy.deepcopy(optimizer)
    before = snapshot(optimizer)
    for _ in range(2):
        optimizer.diagnostics()
        for param in params:
            optimizer.precision(param).zero_()
        optimizer.state_dict()
        repr(optimizer)
    assert_identical(snapshot(optimizer), before)
    train(optimizer, params, [5])
    train(expected, expected.param_groups[0]["params"], [5])
    assert_identical(snapshot(optimizer)["weights"], snapshot(expected)["weights"])


@every_mode
def test_diagnostics_are_plain_numbers(options):
    _, optimizer = trained(options)
    numbers = optimizer.diagnostics()
    for key in ("eta", "kl", "kl_bound", "kl_ratio", "bound_active", "step_rms", "innovation_ratio", "skipped_steps"):
        assert type(numbers[key]) in (float, int, bool), key
    assert all(type(value) in (float, int, bool) for value in numbers.values())
    assert numbers["precision_q05"] <= numbers["precision_q50"] <= numbers["precision_q95"]
    assert numbers["curvature_q05"] <= numbers["curvature_q50"] <= numbers["curvature_q95"]
    precision = torch.cat([optimizer.precision(param).reshape(-1) for param in optimizer.param_groups[0]["params"]])
    assert numbers["precision_q50"] == pytest.approx(precision.median().item(), rel=0.2)


# -- belief ------------------------------------------------------------------------------------------------------------


#: A filter that believes every gradient, so that curvature estimates go negative and the covariance nearly singular.
SENSITIVE = {
    **MODES["fixed-kl"],
    "lr": 100.0,
    "measurement_noise": 1e-3,
    "process_noise": 1e-3,
    "init_covariance": 1.0,
    "precision_momentum": 0.1,
}


@pytest.mark.parametrize("pattern", ["noise", "negative curvature", "constant", "zero", "huge", "tiny", "alternating"])
@pytest.mark.parametrize("options", [*MODES.values(), SENSITIVE], ids=[*MODES, "sensitive"])
def test_precision_and_covariance_stay_positive(options, pattern):
    params = parameters(scale=3.0)
    optimizer = Arturo(params, **options)
    source = torch.Generator().manual_seed(0)
    for step in range(60):
        for param in params:
            noise = torch.randn(param.shape, generator=source)
            param.grad = {
                "noise": noise,
                "negative curvature": -2.0 * param.detach() + 0.1 * noise,
                "constant": torch.ones_like(param),
                "zero": torch.zeros_like(param),
                "huge": 1e8 * noise,
                "tiny": 1e-12 * noise,
                "alternating": torch.full_like(param, (-1.0) ** step),
            }[pattern]
        optimizer.step()
        for param in params:
            state = optimizer.state[param]
            assert torch.isfinite(param).all()
            assert all(torch.isfinite(value).all() for value in state.values())
            assert (optimizer.precision(param) > 0.0).all()
            if options["noise"] == "fixed":
                assert (state["cov_gg"] > 0.0).all()
                assert (state["cov_hh"] > 0.0).all()
                assert (state["cov_gg"].double() * state["cov_hh"].double() > state["cov_gh"].double() ** 2).all()
            else:
                assert (state["noise"] >= 0.0).all()
    numbers = optimizer.diagnostics()
    assert numbers["skipped_steps"] == 0
    assert numbers["kl"] <= numbers["kl_bound"] * (1.0 + 1e-3)
