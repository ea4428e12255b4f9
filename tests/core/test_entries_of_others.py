"""What users put into the groups and the state of an optimizer between two steps, and what they make of its model."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from problems import (
    EXPECTED,
    MODES,
    assert_identical,
    build,
    every_mode,
    every_noise,
    gradients,
    snapshot,
    train,
    trained,
)
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from arturo_core import Arturo

WRONG_GROUPS = {
    "level": [math.nan, -1.0, 0.0, 1e3, torch.ones(2), torch.tensor(1j), "high", None],
    "length": [math.inf, 1e300, -1.0, torch.tensor([1.0, 2.0])],
    "peak_lr": [math.nan, 1e15, torch.ones(3), torch.ones(1).to_sparse()],
    "skipped": [-1, 10**18, math.nan, torch.zeros(2)],
    "calls": [None, "five", math.nan, -1, 10**400],
}


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("key", WRONG_GROUPS)
@every_noise
def test_a_wrong_entry_of_a_group_stops_the_step_by_name(options, key, as_tensor):
    for value in WRONG_GROUPS[key]:
        if as_tensor != isinstance(value, (float, torch.Tensor)):
            continue
        params, optimizer = trained(options)
        given = torch.tensor(value) if isinstance(value, float) else value
        optimizer.param_groups[0][key] = given
        state = [dict(optimizer.state[param]) for param in params]
        before = copy.deepcopy([weights(params), state])
        with pytest.raises((ValueError, TypeError), match=f"Arturo: '{key}'"):
            train(optimizer, params, [5])
        assert_identical([weights(params), [dict(optimizer.state[param]) for param in params]], before)
        assert optimizer.param_groups[0][key] is given
        optimizer.restart_schedule()
        train(optimizer, params, [5])
        assert all(bool(param.isfinite().all()) for param in params)


@every_mode
def test_entries_of_another_dtype_or_shape_are_taken_by_value(options):
    params, optimizer = trained(options)
    expected_params, expected = trained(options)
    group = optimizer.param_groups[0]
    for key in ("peak_lr", "length", "level", "skipped"):
        group[key] = group[key].reshape(1).clone() if key == "skipped" else float(group[key])
    group["calls"] = torch.tensor(group["calls"])
    group["level"] = torch.tensor(group["level"], dtype=torch.float64)
    train(optimizer, params, range(5, 7))
    train(expected, expected_params, range(5, 7))
    assert_identical(snapshot(optimizer), snapshot(expected))


def weights(params):
    return [param.detach().clone() for param in params]


@every_noise
def test_names_that_are_taken_are_not_overwritten(options):
    for name in ("step", EXPECTED[options["noise"]]):
        params, optimizer = build(options)
        mine = torch.tensor(7.0)
        optimizer.state[params[1]][name] = mine
        before = weights(params)
        with pytest.raises(ValueError, match=rf"Arturo: .*state of parameter number 1.*'{name}'.* another name"):
            train(optimizer, params, [0])
        assert optimizer.state[params[1]] == {name: mine}
        assert not optimizer.state.get(params[0])
        assert_identical(weights(params), before)
        optimizer.state[params[1]]["my_step"] = optimizer.state[params[1]].pop(name)
        train(optimizer, params, [0])
        assert optimizer.state[params[1]]["my_step"] is mine


@every_mode
def test_a_model_that_became_wider_says_how_its_statistics_follow(options):
    params, optimizer = trained(options)
    with torch.no_grad():
        for param in params:
            param.data = param.data.double()
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"float64.*float32.*load_state_dict\(optimizer.state_dict\(\)\)"):
        train(optimizer, params, [5])
    assert_identical(snapshot(optimizer), before)
    optimizer.load_state_dict(optimizer.state_dict())
    train(optimizer, params, [5])
    assert optimizer.state[params[0]][EXPECTED[options["noise"]]].dtype == torch.float64


def test_a_gradient_of_another_field_of_numbers_is_refused():
    weight = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    weight.grad = torch.ones(3, dtype=torch.complex64)
    weight.data = torch.ones(3)  # the gradient is complex still
    before = weight.detach().clone()
    with pytest.raises(ValueError, match=r"is of torch.float32, and its gradient of torch.complex64"):
        Arturo([weight]).step()
    assert torch.equal(weight, before)


def test_a_foreign_tensor_without_numbers_stays_where_it_is():
    options = MODES["adaptive-rms"]
    params, optimizer = trained(options)
    optimizer.state[params[0]]["hint"] = torch.empty(3, device="meta")
    train(optimizer, params, [5])
    assert copy.deepcopy(optimizer).state_dict()["state"][0]["hint"].is_meta
    assert optimizer.state_dict()["state"][0]["hint"].is_meta


# -- FakeTensorMode around what exists -----------------------------------------------------------------------------


@every_mode
def test_loading_and_reading_inside_a_rehearsal_leave_a_real_optimizer_real(options):
    _, source = trained(options)
    params, optimizer = build(options)
    with FakeTensorMode(allow_non_fake_inputs=True):
        optimizer.load_state_dict(source.state_dict())
        told = optimizer.diagnostics()
    assert_identical(snapshot(optimizer)["state"], snapshot(source)["state"])
    assert_identical(snapshot(optimizer)["groups"], snapshot(source)["groups"])
    assert told["steps"] == 5
    assert told == optimizer.diagnostics()
    for param, grad in zip(params, gradients(params, 5), strict=True):
        param.grad = grad
    optimizer.step()


@every_mode
def test_an_optimizer_of_fake_tensors_has_no_numbers(options):
    with FakeTensorMode():
        model = nn.Linear(30, 20)
        optimizer = Arturo(model.parameters(), **options)
        model(torch.randn(8, 30)).square().mean().backward()
        optimizer.step()
        assert optimizer.diagnostics() == {}
