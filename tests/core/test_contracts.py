"""The promises an optimizer of this kind makes to those who train with it; each test is one of them."""

from __future__ import annotations

import math

import pytest
import torch
from problems import (
    EXPECTED,
    MODES,
    STATE_KEYS,
    assert_identical,
    build,
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
    for group in before["groups"]:  # numbers are kept as floats
        group["lr"] = zero if torch.is_tensor(zero) else 0.0
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


@every_mode
def test_a_skipped_spike_of_the_lr_is_forgotten(options):
    """A schedule's peak counts where a step was taken."""
    results = []
    for spike in (False, True):
        params, optimizer = trained(options)
        if spike:
            optimizer.param_groups[0]["lr"] = 1e3 * options["lr"]
            params[0].grad = torch.full_like(params[0], math.nan)
            optimizer.step()
            optimizer.param_groups[0]["lr"] = options["lr"]
        train(optimizer, params, range(5, 8))
        results.append(without_counters(snapshot(optimizer)))
    assert_identical(results[1], results[0])


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
    monkeypatch.setattr("arturo_core.step.learning_rate.known", lambda lr: not isinstance(lr, torch.Tensor))
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
    monkeypatch.setattr("arturo_core.step.learning_rate.known", lambda lr: not isinstance(lr, torch.Tensor))
    params = parameters()
    groups = [{"params": params[:1], "lr": torch.tensor(1e-2)}, {"params": params[1:], "lr": torch.tensor(0.0)}]
    optimizer = Arturo(groups, noise=options["noise"], weight_decay=0.1)
    before = [param.detach().clone() for param in params]
    train(optimizer, params, range(4))
    assert not torch.equal(params[0], before[0])
    for param, start in zip(params[1:], before[1:], strict=True):
        assert torch.equal(param, start)
        assert float(optimizer.state[param]["step"]) == 0.0
        assert float(optimizer.state[param][EXPECTED[options["noise"]]].abs().max()) == float(
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
                assert (state["deviation"] > 0.0).all()
    numbers = optimizer.diagnostics()
    assert numbers["skipped_steps"] == 0
    assert numbers["kl"] <= numbers["kl_bound"] * (1.0 + 1e-3)
