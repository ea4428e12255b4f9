"""What torch asks of its own optimizers, after pytorch's ``test_optim.py``.

Where a step goes, learning rates, groups, missing gradients, closures.
"""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from problems import (
    assert_identical,
    every_mode,
    every_noise,
    parameters,
    snapshot,
    train,
    trained,
)
from torch.nn import Parameter
from torch.optim import lr_scheduler
from torch_inputs import (
    GROUP_OPTIONS,
    INFO,
    INPUTS,
    SCHEDULED,
    every_input,
    inputs_that,
    regression,
    squares,
    went_right,
)

from arturo_core import Arturo

# -- the step goes the right way ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "strided"])
@every_input
def test_forloop_goes_right_direction(kwargs, contiguous):
    weight, bias, data = regression(contiguous)
    optimizer = Arturo([weight, bias], **kwargs)
    closure = functools.partial(squares, weight, bias, data, optimizer)
    start = closure().item()
    for _ in range(10):
        assert isinstance(optimizer.step(closure), torch.Tensor)
    assert went_right(start, closure().item(), kwargs)


def step_with(optimizer, closure, schedulers):
    for _ in range(10):
        loss = optimizer.step(closure)
        for scheduler in schedulers:
            scheduler.step(*([loss] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))


@pytest.mark.parametrize("schedulers", INFO.scheduler_inputs, ids=["step", "linear", "plateau", "chain"])
@pytest.mark.parametrize("kwargs", [INPUTS[key] for key in SCHEDULED], ids=SCHEDULED)
def test_forloop_goes_right_direction_with_schedulers(kwargs, schedulers):
    weight, bias, data = regression()
    kwargs = copy.deepcopy(kwargs)
    optimizer = Arturo([weight, bias], **kwargs)
    built = [make(optimizer) for make in schedulers]
    closure = functools.partial(squares, weight, bias, data, optimizer)
    start = closure().item()
    step_with(optimizer, closure, built)
    assert went_right(start, closure().item(), kwargs)


@pytest.mark.parametrize("schedulers", INFO.scheduler_inputs, ids=["step", "linear", "plateau", "chain"])
def test_param_groups_with_schedulers(schedulers):
    weight, bias, data = regression()
    optimizer = Arturo([{"params": [weight]}, {"params": [bias], "lr": 0.01}], lr=1e-3)
    built = [make(optimizer) for make in schedulers]
    closure = functools.partial(squares, weight, bias, data, optimizer)
    start = closure().item()
    step_with(optimizer, closure, built)
    assert closure().item() < start


@every_mode
def test_reaches_the_minimum_of_a_convex_problem(options):
    torch.manual_seed(2)
    data, truth = torch.randn(64, 6), torch.randn(6)
    target = data @ truth
    weight = Parameter(torch.zeros(6))
    # Lengths of the size of the problem: steps of 0.35·lr, or those that half a nat allows.
    sizes = {"lr": 0.3} if options["trust_region"] == "rms" else {"lr": 0.5}
    if options["trust_region"] == "kl" and options["noise"] == "adaptive":
        sizes["length_scale"] = 1.0
    optimizer = Arturo([weight], **{**options, **sizes})
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 150)

    def closure():
        optimizer.zero_grad()
        loss = (data @ weight - target).square().mean()
        loss.backward()
        return loss

    start = closure().item()
    for _ in range(150):
        optimizer.step(closure)
        scheduler.step()
    assert closure().item() < 0.02 * start


# -- learning rates and groups -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,)], ids=["0-dim", "1-dim"])
@every_input
def test_tensor_lr_equals_float_lr(kwargs, shape):
    options = {key: value for key, value in kwargs.items() if key != "lr"}
    lr = float(kwargs.get("lr", 1e-3))
    runs = []
    for rate in (lr, torch.full(shape, lr, dtype=torch.float64)):
        params = [Parameter(torch.linspace(-1, 1, 12).view(4, 3)), Parameter(torch.tensor(0.5))]
        optimizer = Arturo(params, rate, **options)
        schedulers = [lr_scheduler.ExponentialLR(optimizer, 0.9)]
        for step in range(5):
            train(optimizer, params, [step])
            schedulers[0].step()
        assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor) == isinstance(rate, torch.Tensor)
        runs.append((params, optimizer))
    (params_f, opt_f), (params_t, opt_t) = runs
    for one, other in zip(params_f, params_t, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0.0)
    assert opt_t.diagnostics()["kl_bound"] == pytest.approx(opt_f.diagnostics()["kl_bound"], rel=1e-6)


@pytest.mark.parametrize("shape", [(), (1,)], ids=["0-dim", "1-dim"])
@every_mode
def test_precision_with_tensor_lr(options, shape):
    runs = []
    for rate in (options["lr"], torch.full(shape, options["lr"], dtype=torch.float64)):
        params = parameters()
        optimizer = Arturo(params, **{**options, "lr": rate})
        train(optimizer, params, range(2))
        runs.append([optimizer.precision(param) for param in params])
    for param, one, other in zip(params, *runs, strict=True):
        assert one.shape == other.shape == param.shape
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-5, atol=0.0)


@every_noise
def test_equal_tensor_lrs_of_two_groups_are_one_value(options):
    """With "kl" lr must be one VALUE for all groups; two tensors of that value are what a checkpoint restores."""
    results = []
    for rates in ((0.01, 0.01), (torch.tensor(0.01), torch.tensor(0.01))):
        params = [Parameter(torch.linspace(-1, 1, 4)), Parameter(torch.linspace(1, 2, 4))]
        groups = [{"params": [param], "lr": lr} for param, lr in zip(params, rates, strict=True)]
        train(Arturo(groups, noise=options["noise"], trust_region="kl"), params, range(3))
        results.append([param.detach() for param in params])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@every_input
def test_param_group_with_weight_decay_shrinks(kwargs):
    own = {key: value for key, value in kwargs.items() if key in GROUP_OPTIONS - {"weight_decay"}}
    if "lr" in own and kwargs.get("trust_region") == "kl":
        own.pop("lr")
    shared = {key: value for key, value in kwargs.items() if key not in GROUP_OPTIONS}
    lr = kwargs.get("lr", 1e-3)
    weight, bias = Parameter(torch.full((10, 5), 3.0)), Parameter(torch.randn(10))
    optimizer = Arturo([{"params": [weight], "weight_decay": 0.9, **own}, {"params": [bias], **own}], lr, **shared)
    plain = [Parameter(weight.detach().clone()), Parameter(bias.detach().clone())]
    undecayed = Arturo([{"params": [plain[0]], **own}, {"params": [plain[1]], **own}], lr, **shared)
    for _ in range(10):
        for params, which in (([weight, bias], optimizer), (plain, undecayed)):
            for param in params:
                param.grad = torch.zeros_like(param)
            which.step()
    assert weight.norm() < plain[0].norm()
    torch.testing.assert_close(bias, plain[1], rtol=1e-2, atol=1e-4)


@inputs_that(lambda kwargs: kwargs.get("trust_region") != "kl")  # where lr is one bound for all groups
def test_param_group_with_vanishing_lr_stays(kwargs):
    own = {"lr": 1e-2, **{key: value for key, value in kwargs.items() if key in GROUP_OPTIONS}}
    shared = {key: value for key, value in kwargs.items() if key not in GROUP_OPTIONS}
    weight, bias, data = regression()
    irrelevant = Parameter(torch.randn(2))
    before = irrelevant.detach().clone()
    optimizer = Arturo([{"params": [weight, bias], **own}, {"params": [irrelevant]}], lr=1e-28, **shared)
    start = squares(weight, bias, data, optimizer).item()
    for _ in range(10):
        squares(weight, bias, data, optimizer)
        irrelevant.grad = torch.rand_like(irrelevant)
        optimizer.step()
    assert went_right(start, squares(weight, bias, data, optimizer).item(), own)
    assert torch.equal(irrelevant, before)


def test_maximize_is_the_mirror_of_minimize():
    for options in ({}, {"noise": "fixed"}):
        up, down = Parameter(torch.linspace(-1, 1, 6)), Parameter(torch.linspace(-1, 1, 6))
        ascend, descend = Arturo([up], maximize=True, **options), Arturo([down], **options)
        for step in range(5):
            grad = torch.randn(6, generator=torch.Generator().manual_seed(step))
            up.grad, down.grad = -grad, grad
            ascend.step()
            descend.step()
        assert torch.equal(up, down)
        assert not torch.equal(down, torch.linspace(-1, 1, 6))


# -- gradients that are missing, zero, frozen, late --------------------------------------------------------------------


@every_input
def test_step_without_any_grad_does_nothing(kwargs):
    weight = Parameter(torch.randn(5, 1))
    before = weight.detach().clone()
    optimizer = Arturo([weight], **kwargs)
    assert optimizer.step(lambda: torch.ones(1)) == 1
    assert torch.equal(weight, before)
    assert optimizer.diagnostics()["skipped_steps"] == 0


# Weight decay and the published prior pull without a gradient.
@inputs_that(lambda kwargs: not kwargs.get("weight_decay") and kwargs.get("noise") != "fixed")
def test_step_with_zero_grads_does_nothing(kwargs):
    weight = Parameter(torch.randn(5, 1))
    before = weight.detach().clone()
    optimizer = Arturo([weight], **kwargs)
    for _ in range(3):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    assert torch.equal(weight, before)


@every_input
def test_empty_parameters_and_groups(kwargs):
    empty, weight = Parameter(torch.empty(0, 5)), Parameter(torch.randn(5))
    optimizer = Arturo([{"params": [empty]}, {"params": []}, {"params": [weight]}], **kwargs)
    alone = Parameter(weight.detach().clone())
    reference = Arturo([alone], **kwargs)
    for step in range(3):
        empty.grad = torch.zeros_like(empty)
        train(optimizer, [weight], [step])
        train(reference, [alone], [step])
    assert torch.equal(weight, alone)
    assert optimizer.diagnostics()["skipped_steps"] == 0
    only = Arturo([Parameter(torch.empty(0))], **kwargs)
    only.param_groups[0]["params"][0].grad = torch.empty(0)
    only.step()
    only.diagnostics()


@every_noise
def test_parameters_without_grad_keep_still_and_have_state(options):
    params, optimizer = trained(options, steps=0)
    for step in range(3):
        train(optimizer, params[:2], [step])
    assert set(optimizer.state[params[2]]) == set(optimizer.state[params[0]])
    assert float(optimizer.state[params[2]]["step"]) == 0.0
    before = snapshot(optimizer)
    params[0].grad = params[1].grad = None
    params[2].grad = torch.tensor(0.3)
    optimizer.step()
    after = snapshot(optimizer)
    assert_identical(after["weights"][:2], before["weights"][:2])
    assert_identical(after["state"][:2], before["state"][:2])
    assert not torch.equal(after["weights"][2], before["weights"][2])


@every_noise
def test_frozen_parameters_are_left_alone_and_may_be_unfrozen(options):
    weight, frozen = Parameter(torch.ones(3)), Parameter(torch.ones(3), requires_grad=False)
    optimizer = Arturo([weight, frozen], **options)
    for step in range(3):
        train(optimizer, [weight], [step])
    assert frozen not in optimizer.state or not optimizer.state[frozen]
    assert torch.equal(frozen, torch.ones(3))
    frozen.requires_grad_(True)
    for step in range(3, 6):
        train(optimizer, [weight, frozen], [step])
    assert not torch.equal(frozen, torch.ones(3))
    assert float(optimizer.state[frozen]["step"]) == 3.0
    assert optimizer.diagnostics()["skipped_steps"] == 0


def test_a_late_parameter_steps_as_far_as_the_others():
    """Noise of a new parameter must be estimated from its own first gradients, however old the optimizer is."""
    old, late = Parameter(torch.zeros(200)), Parameter(torch.zeros(200))
    optimizer = Arturo([old], lr=1e-2)
    source = torch.Generator().manual_seed(0)
    for _ in range(100):
        old.grad = torch.randn(200, generator=source)
        optimizer.step()
    optimizer.add_param_group({"params": [late], "lr": 1e-2})
    for _ in range(3):
        before = old.detach().clone(), late.detach().clone()
        old.grad, late.grad = torch.randn(200, generator=source), torch.randn(200, generator=source)
        optimizer.step()
        lengths = [(param - start).norm().item() for param, start in zip((old, late), before, strict=True)]
        assert 0.25 < lengths[1] / lengths[0] < 4.0


@every_noise
def test_add_param_group_in_training(options):
    params, optimizer = trained(options, steps=3)
    extra = Parameter(torch.ones(4))
    optimizer.add_param_group({"params": [extra]})
    group = optimizer.param_groups[-1]
    assert (group["lr"], group["weight_decay"], group["maximize"]) == (options["lr"], 0.0, False)
    assert group["calls"] == 3
    train(optimizer, [*params, extra], range(3, 6))
    assert not torch.equal(extra, torch.ones(4))
    assert optimizer.diagnostics()["skipped_steps"] == 0
    assert optimizer.diagnostics()["steps"] == 6


def test_a_refused_group_is_not_added():
    params = [Parameter(torch.ones(2))]
    optimizer = Arturo(params)
    for group in (
        {"params": params},
        {"params": [Parameter(torch.ones(2))], "lr": -1.0},
        {"params": [Parameter(torch.ones(2))], "temperature": 2.0},
    ):
        with pytest.raises((ValueError, TypeError)):
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none):
    weight = Parameter(torch.ones(2))
    optimizer = Arturo([weight])
    weight.grad = torch.ones(2)
    optimizer.zero_grad(set_to_none=set_to_none)
    assert weight.grad is None if set_to_none else torch.equal(weight.grad, torch.zeros(2))


@every_noise
def test_gradients_are_not_changed(options):
    params, optimizer = trained(options, steps=2)
    for param in params:
        param.grad = torch.randn_like(param)
    before = [param.grad.clone() for param in params]
    optimizer.step()
    assert all(torch.equal(param.grad, grad) for param, grad in zip(params, before, strict=True))


# -- closures ----------------------------------------------------------------------------------------------------------


@every_mode
def test_closure_is_called_once_with_gradients_enabled(options):
    weight = Parameter(torch.ones(3))
    optimizer = Arturo([weight], **options)
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
        assert not torch.is_grad_enabled()
    assert calls == [True]
    assert loss.item() == 3.0
    assert weight.square().sum() < 3.0
    assert optimizer.step() is None
    assert optimizer.step(closure=lambda: 7.5) == 7.5
    assert weight.requires_grad
    assert weight.is_leaf


def test_closure_runs_and_its_value_returns_where_nothing_moves():
    weight = Parameter(torch.ones(3))
    optimizer = Arturo([weight], lr=0.0)
    called = []
    assert optimizer.step(lambda: called.append(1) or 2.5) == 2.5
    assert called == [1]
    assert torch.equal(weight, torch.ones(3))
