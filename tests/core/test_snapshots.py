"""What is saved stays as it was, what is loaded is what was saved, and what no step leaves is not loaded."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from problems import (
    EXPECTED,
    MODES,
    assert_identical,
    build,
    classifier,
    every_mode,
    every_noise,
    snapshot,
    train,
    trained,
)
from torch.nn import Parameter

from arturo_core import Arturo

# -- snapshots ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor_lr", [False, True])
@every_mode
def test_the_groups_of_a_state_dict_never_change_afterwards(options, tensor_lr):
    if tensor_lr:
        options = {**options, "lr": torch.tensor(options["lr"])}
    params, optimizer = trained(options)
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved["param_groups"])
    optimizer.param_groups[0]["lr"] *= 10
    train(optimizer, params, range(5, 8))
    params[0].grad[0] = math.nan
    optimizer.step()
    assert_identical(saved["param_groups"], before)
    assert int(optimizer.param_groups[0]["skipped"]) == 1


@every_noise
def test_a_learning_rate_sweep_that_is_taken_back_leaves_no_trace(options):
    """Save before the first step, sweep far beyond sense, load: the run after it is that of a fresh optimizer."""

    def fit(sweep: bool) -> float:
        model, loss = classifier()
        optimizer = Arturo(model.parameters(), **options)
        start, saved = copy.deepcopy(model.state_dict()), optimizer.state_dict()
        for step in range(12 if sweep else 0):
            for group in optimizer.param_groups:
                group["lr"] = 1e-5 * 3.2**step
            optimizer.zero_grad()
            loss(step).backward()
            optimizer.step()
        model.load_state_dict(start)
        optimizer.load_state_dict(saved)
        for step in range(20):
            optimizer.zero_grad()
            loss(step).backward()
            optimizer.step()
        return float(loss(0))

    assert fit(sweep=True) == fit(sweep=False)


# -- restarting a schedule ---------------------------------------------------------------------------------------------


def test_plain_numbers_are_as_good_as_tensors():
    for zero in (0, 0.0, torch.tensor(0.0)):
        params, optimizer = trained(MODES["adaptive-rms"])
        optimizer.param_groups[0].update(peak_lr=zero, length=zero, lr=1e-3)
        train(optimizer, params, [5])
        assert float(optimizer.param_groups[0]["peak_lr"]) == 1e-3
        assert 0.0 < float(optimizer.param_groups[0]["length"]) <= 8e-3
    for key, wrong in (("peak_lr", -1.0), ("length", math.nan), ("level", 0), ("skipped", "many"), ("peak_lr", None)):
        params, optimizer = trained(MODES["adaptive-rms"])
        before = snapshot(optimizer)
        optimizer.param_groups[0][key] = wrong
        with pytest.raises(ValueError, match=rf"{key}.*restart_schedule"):
            train(optimizer, params, [5])
        optimizer.restart_schedule()
        assert_identical(snapshot(optimizer)["weights"], before["weights"])
        train(optimizer, params, [5])


@every_mode
def test_a_restarted_schedule_forgets_its_peak(options):
    params, optimizer = trained(options)
    statistics = snapshot(optimizer)["state"]
    optimizer.restart_schedule()
    assert_identical(snapshot(optimizer)["state"], statistics)
    group = optimizer.param_groups[0]
    assert (float(group["peak_lr"]), float(group["length"])) == (0.0, 0.0)
    group["lr"] = 0.1 * options["lr"]
    train(optimizer, params, [5])
    assert float(group["peak_lr"]) == group["lr"]
    assert optimizer.diagnostics()["steps"] == 6


@every_mode
def test_forgetting_the_statistics_makes_a_fresh_optimizer_of_it(options):
    params, optimizer = trained(options)
    optimizer.state[params[0]]["note"] = "of somebody else"
    optimizer.restart_schedule(keep_statistics=False)
    assert dict(optimizer.state[params[0]]) == {"note": "of somebody else"}
    fresh_params = [Parameter(param.detach().clone()) for param in params]
    fresh = Arturo(fresh_params, **options)
    train(optimizer, params, range(5, 9))
    train(fresh, fresh_params, range(5, 9))
    for param, other in zip(params, fresh_params, strict=True):
        assert torch.equal(param, other)
    assert optimizer.diagnostics()["steps"] == 9


# -- what is loaded ----------------------------------------------------------------------------------------------------

WRONG_VALUES = {
    ("gradient", math.nan): "fixed",
    ("gradient", math.inf): "fixed",
    ("direction", math.nan): "adaptive",
    ("direction", 1e38): "adaptive",
    ("direction", -1e31): "adaptive",
    ("pending", 1.5): "adaptive",
    ("moved", math.nan): "adaptive",
    ("deviation", -1e-3): "adaptive",
    ("deviation", math.inf): "adaptive",
    ("deviation", 0.0): "adaptive",
    ("curvature", 0.0): "adaptive",
    ("curvature", 50.0): "adaptive",
    ("displacement", math.nan): "adaptive",
    ("displacement", 1e30): "adaptive",
    ("variance", 7.0): "adaptive",
    ("step", -1.0): None,
    ("step", math.nan): None,
    ("step", 1e300): None,
    ("step", 1e20): None,
    ("precision", -1.0): "fixed",
    ("precision", 0.0): "fixed",
    ("cov_hh", math.nan): "fixed",
    ("cov_gg", -1.0): "fixed",
    ("cov_gh", 1e3): "fixed",  # not positive semidefinite
    ("cov_gh", -1e3): "fixed",
}


@pytest.mark.parametrize(("entry", "noise"), WRONG_VALUES.items(), ids=str)
def test_statistics_that_no_step_leaves_are_refused(entry, noise):
    name, value = entry
    options = MODES["fixed-kl" if noise == "fixed" else "adaptive-rms"]
    state_dict = copy.deepcopy(trained(options)[1].state_dict())
    held = state_dict["state"][1]
    held[name] = held[name].double()  # what a narrower dtype cannot hold is infinite after the cast
    held[name].view(-1)[-1] = value
    refused(options, state_dict, repr(name))


@every_noise
def test_values_that_only_the_file_can_hold_are_refused(options):
    state_dict = copy.deepcopy(trained(options)[1].state_dict())
    name = "deviation" if options["noise"] == "adaptive" else "precision"
    state_dict["state"][0][name] = torch.full((5, 4), 1e39, dtype=torch.float64)
    refused(options, state_dict, repr(name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(options, torch.float64)[1].load_state_dict(state_dict)


UNREADABLE = {
    "complex": lambda value: value.to(torch.complex64),
    "sparse": lambda value: value.to_sparse(),
    "meta": lambda value: value.to("meta"),
}


@pytest.mark.parametrize("make", UNREADABLE.values(), ids=UNREADABLE.keys())
@every_noise
def test_statistics_that_hold_no_real_numbers_are_refused(options, make):
    for name in (EXPECTED[options["noise"]], "step"):
        state_dict = copy.deepcopy(trained(options)[1].state_dict())
        state_dict["state"][0][name] = make(state_dict["state"][0][name])
        refused(options, state_dict, repr(name))
    for key in ("level", "skipped"):
        state_dict = copy.deepcopy(trained(options)[1].state_dict())
        state_dict["param_groups"][0][key] = make(state_dict["param_groups"][0][key])
        refused(options, state_dict, repr(key))


def test_a_step_counter_of_any_size_of_integer():
    options = MODES["adaptive-rms"]
    state_dict = copy.deepcopy(trained(options)[1].state_dict())
    state_dict["state"][0]["step"] = 10**400
    refused(options, state_dict, "'step'")
    state_dict["state"][0]["step"] = 5
    _, optimizer = build(options)
    optimizer.load_state_dict(state_dict)
    assert_identical(snapshot(optimizer)["state"], snapshot(trained(options)[1])["state"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("level", math.nan),
        ("level", 0.0),
        ("length", math.inf),
        ("length", -1.0),
        ("length", 1e300),
        ("level", -1.0),
        ("level", 1e3),
        ("peak_lr", math.nan),
        ("peak_lr", 1e15),
        ("skipped", -1),
        ("skipped", 10**18),
        ("skipped", 6),  # of five steps
        ("calls", math.nan),
        ("calls", "five"),
        ("lr", math.nan),
        ("lr", "fast"),
        ("lr", -0.5),
        ("weight_decay", -0.1),
        ("weight_decay", math.inf),
        ("maximize", "yes"),
        ("adaptive_noise", torch.tensor([True, False])),
        ("lr_in_nats", "no"),
    ],
)
@every_mode
def test_groups_that_no_step_could_go_on_from_are_refused(options, key, value):
    state_dict = copy.deepcopy(trained(options)[1].state_dict())
    held = state_dict["param_groups"][0][key]
    state_dict["param_groups"][0][key] = torch.full_like(held, value) if torch.is_tensor(held) else value
    refused(options, state_dict, key)


@pytest.mark.parametrize("other", MODES, ids=str)
@every_mode
def test_a_state_of_another_form_or_trust_region_is_refused(options, other):
    _, source = trained(MODES[other])
    if MODES[other] == options:
        return build(options)[1].load_state_dict(source.state_dict())
    differing = "noise" if MODES[other]["noise"] != options["noise"] else "trust_region"
    for state_dict in (source.state_dict(), build(MODES[other])[1].state_dict()):  # with statistics, and without
        message = refused(options, state_dict, differing)
        assert differing == "noise" or f'"{MODES[other][differing]}"' in message


@pytest.mark.parametrize(
    "other",
    [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop],
    ids=lambda one: one.__name__,
)
@pytest.mark.parametrize("steps", [0, 2])
@every_noise
def test_other_optimizers_states_are_refused(options, other, steps):
    params, _ = build(options)
    source = other(params, lr=0.5)
    train(source, params, range(steps))
    refused(options, copy.deepcopy(source.state_dict()), "")


def refused(options, state_dict, mention: str) -> str:
    given = copy.deepcopy(state_dict)
    params, optimizer = trained(options, steps=3)
    before = snapshot(optimizer)
    with pytest.raises((ValueError, TypeError), match="Arturo") as caught:
        optimizer.load_state_dict(state_dict)
    assert mention in str(caught.value)
    assert_identical(snapshot(optimizer), before)
    assert str(state_dict) == str(given)  # NaN is not equal to itself
    train(optimizer, params, [3])
    return str(caught.value)


@every_noise
def test_parameters_without_a_saved_state_are_announced(options):
    state_dict = copy.deepcopy(trained(options)[1].state_dict())
    del state_dict["state"][1]
    _, optimizer = build(options)
    with pytest.warns(UserWarning, match=r"no statistics of 1 of 3 parameters \(number 1 of group 0") as told:
        optimizer.load_state_dict(state_dict)
    assert told[0].filename == __file__, "the warning points at the caller"
    frozen_params, frozen = build(options)
    frozen_params[1].requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frozen.load_state_dict(state_dict)
        build(options)[1].load_state_dict(build(options)[1].state_dict())


@every_mode
def test_entries_of_a_newer_version_load_and_work(options):
    params, source = trained(options)
    expected = copy.deepcopy(source)
    state_dict = copy.deepcopy(source.state_dict())
    news = {"form": "eigen", "basis": torch.eye(3), "refreshed": 17, "sides": ["left", "right"], "none": None}
    for held in state_dict["state"].values():
        held.update(copy.deepcopy(news))
    for group in state_dict["param_groups"]:
        group.update(copy.deepcopy(news))
    state_dict["format"] = "2"
    loaded_params = [Parameter(param.detach().clone()) for param in params]
    loaded = Arturo(loaded_params, **options)
    loaded.load_state_dict(state_dict)
    for held in loaded.state.values():
        for key, value in news.items():
            assert_identical(held[key], value, key)
    expected_params = expected.param_groups[0]["params"]
    train(loaded, loaded_params, range(5, 8))
    train(expected, expected_params, range(5, 8))
    assert_identical(snapshot(loaded)["weights"], snapshot(expected)["weights"])
    assert loaded.diagnostics() == expected.diagnostics()
    again = Arturo([Parameter(param.detach().clone()) for param in loaded_params], **options)
    again.load_state_dict(loaded.state_dict())
    assert_identical(snapshot(again)["state"], snapshot(loaded)["state"])


# -- entries of others -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True], ids=["before the first step", "later"])
@every_mode
def test_entries_of_others_are_left_alone(options, late):
    params, optimizer = build(options)
    expected_params, expected = build(options)
    if late:
        train(optimizer, params, [0])
        train(expected, expected_params, [0])
    notes = {"slow": torch.ones(5, 4), "count": 3, "note": "text", "nested": {"a": [1]}, "scalar": torch.tensor(2)}
    for param in params[:2]:
        optimizer.state[param].update(notes)
    train(optimizer, params, range(1, 4))
    train(expected, expected_params, range(1, 4))
    for param in params[:2]:
        assert all(optimizer.state[param][key] is value for key, value in notes.items())
    assert_identical(snapshot(optimizer)["weights"], snapshot(expected)["weights"])
    assert optimizer.diagnostics() == expected.diagnostics()
    assert torch.equal(optimizer.precision(params[0]), expected.precision(expected_params[0]))
    restored = build(options)[1]
    restored.load_state_dict(optimizer.state_dict())
    assert restored.state[restored.param_groups[0]["params"][0]]["note"] == "text"
    assert_identical(snapshot(copy.deepcopy(optimizer)), snapshot(optimizer))
