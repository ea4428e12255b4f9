"""Checkpoints: what the state holds, that it survives bit for bit, and that a wrong one changes nothing."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from problems import (
    EXPECTED,
    GROUP_KEYS,
    SCALARS,
    STATE_KEYS,
    WIDE,
    assert_identical,
    build,
    every_mode,
    every_noise,
    parameters,
    snapshot,
    train,
    trained,
)
from torch.nn import Parameter

from arturo_core import Arturo

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())

STATE_DTYPE = {torch.float32: torch.float32, torch.float64: torch.float64, torch.bfloat16: torch.float32}


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value.keys(), *(leaf for entry in value.values() for leaf in leaves(entry))]
    if isinstance(value, (list, tuple)):
        return [leaf for entry in value for leaf in leaves(entry)]
    return [value]


def through_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


# -- layout ------------------------------------------------------------------------------------------------------------


@every_dtype
@every_mode
def test_layout_of_the_state(options, dtype):
    params, optimizer = trained(options, dtype=dtype)
    assert set(optimizer.state) == set(params)
    for param in params:
        state = optimizer.state[param]
        assert set(state) == STATE_KEYS[options["noise"]]
        for name, value in state.items():
            if name in SCALARS:
                assert (value.shape, value.dtype) == ((), torch.float64 if name in WIDE else torch.float32)
            else:
                assert (value.shape, value.dtype) == (param.shape, STATE_DTYPE[dtype]), name
            assert value.device == param.device
            assert not value.requires_grad
            assert torch.isfinite(value).all()
        assert float(state["step"]) == 5.0
        assert len({value.data_ptr() for value in (param, *state.values())}) == 1 + len(state)
    assert set(optimizer.param_groups[0]) == GROUP_KEYS
    assert optimizer.param_groups[0]["calls"] == 5


def test_wide_state_on_request():
    params, optimizer = trained({"state_dtype": torch.float64})
    assert {value.dtype for name, value in optimizer.state[params[0]].items() if name not in SCALARS} == {torch.float64}


@pytest.mark.parametrize("tensor_lr", [False, True])
@every_mode
def test_only_tensors_and_plain_types(options, tensor_lr):
    if tensor_lr:
        options = {**options, "lr": torch.tensor(options["lr"])}
    _, optimizer = trained(options)
    for leaf in leaves(optimizer.state_dict()):
        assert type(leaf) in (torch.Tensor, float, int, bool, str), leaf
    for leaf in leaves(optimizer.state_dict()["state"]):
        assert type(leaf) in (torch.Tensor, int, str), leaf


# -- resume ------------------------------------------------------------------------------------------------------------


@every_dtype
@every_mode
def test_resume_is_bitwise(options, dtype):
    params, optimizer = trained(options, steps=7, dtype=dtype)
    saved = through_file({"weights": [param.detach() for param in params], "optimizer": optimizer.state_dict()})
    resumed = [Parameter(weight) for weight in saved["weights"]]
    twin = Arturo(resumed, **options)
    twin.load_state_dict(saved["optimizer"])
    assert_identical(snapshot(twin), snapshot(optimizer))
    for step in range(7, 12):
        train(optimizer, params, [step])
        train(twin, resumed, [step])
        assert_identical(snapshot(twin), snapshot(optimizer))
    numbers, expected = twin.diagnostics(), optimizer.diagnostics()
    assert numbers == expected


@every_noise
def test_resume_with_weight_decay_schedule_and_groups(options):
    def make(weights):
        groups = [{"params": weights[:1], "weight_decay": 0.1}, {"params": weights[1:], "maximize": True}]
        optimizer = Arturo(groups, **options)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)

    params = parameters()
    optimizer, scheduler = make(params)
    for step in range(6):
        train(optimizer, params, [step])
        scheduler.step()
    saved = through_file({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()})
    resumed = [Parameter(param.detach().clone()) for param in params]
    twin, twin_scheduler = make(resumed)
    twin.load_state_dict(saved["optimizer"])
    twin_scheduler.load_state_dict(saved["scheduler"])
    for step in range(6, 10):
        for which, its_scheduler, its_params in ((optimizer, scheduler, params), (twin, twin_scheduler, resumed)):
            train(which, its_params, [step])
            its_scheduler.step()
    assert_identical(snapshot(twin), snapshot(optimizer))


@every_dtype
@every_noise
def test_nothing_is_shared_with_the_loaded_dictionary(options, dtype):
    _, source = trained(options, dtype=dtype)
    state_dict = copy.deepcopy(source.state_dict())
    untouched = copy.deepcopy(state_dict)
    pair = [build(options, dtype) for _ in range(2)]
    for params, optimizer in pair:
        optimizer.load_state_dict(state_dict)
        given = {value.data_ptr() for state in state_dict["state"].values() for value in state.values()}
        taken = {value.data_ptr() for param in params for value in optimizer.state[param].values()}
        assert not given & taken
    assert_identical(state_dict, untouched)
    params, optimizer = pair[0]
    other = snapshot(pair[1][1])
    train(optimizer, params, range(5, 8))
    assert_identical(state_dict, untouched)
    assert_identical(snapshot(pair[1][1]), other)


@every_noise
def test_statistics_keep_their_precision_under_bfloat16(options):
    """torch itself casts loaded state to the parameter's dtype; that would cost 16 bits at every resume."""
    _, source = trained(options, dtype=torch.bfloat16)
    params, optimizer = build(options, torch.bfloat16)
    optimizer.load_state_dict(source.state_dict())
    saved = source.state_dict()["state"]
    lossy = 0
    for index, param in enumerate(params):
        for name, value in optimizer.state[param].items():
            assert value.dtype == (torch.float64 if name in WIDE else torch.float32)
            assert torch.equal(value, saved[index][name])
            lossy += not torch.equal(value, value.bfloat16().float())
    assert lossy > 0


@every_noise
def test_state_of_another_width_is_converted(options):
    _, source = trained(options, dtype=torch.float64)
    params, optimizer = build(options, torch.float32)
    optimizer.load_state_dict(source.state_dict())
    for index, param in enumerate(params):
        for name, value in optimizer.state[param].items():
            assert value.dtype == (torch.float64 if name in WIDE else torch.float32)
            assert torch.equal(value, source.state_dict()["state"][index][name].to(value))
    train(optimizer, params, [5])


@every_noise
def test_memory_layout_is_the_parameters(options):
    def make():
        torch.manual_seed(4)
        conv = torch.nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
        return list(conv.parameters()), Arturo(conv.parameters(), **options)

    params, optimizer = make()
    train(optimizer, params, range(3))
    # A checkpoint need not keep strides: it may have been written contiguous.
    state_dict = copy.deepcopy(optimizer.state_dict())
    for state in state_dict["state"].values():
        for name, value in state.items():
            state[name] = value.clone(memory_format=torch.contiguous_format)
    twin_params, twin = make()
    with torch.no_grad():
        for mine, theirs in zip(twin_params, params, strict=True):
            mine.copy_(theirs)
    twin.load_state_dict(state_dict)
    for name, value in twin.state[twin_params[0]].items():
        assert name in SCALARS or value.stride() == twin_params[0].stride()
    train(optimizer, params, [3])
    train(twin, twin_params, [3])
    assert_identical(snapshot(twin), snapshot(optimizer))


@every_noise
def test_before_the_first_step(options):
    _, fresh = build(options)
    assert fresh.state_dict()["state"] == {}
    params, optimizer = trained(options)
    optimizer.load_state_dict(fresh.state_dict())
    assert not any(optimizer.state.values())
    with torch.no_grad():
        for param, start in zip(params, parameters(), strict=True):
            param.copy_(start)
    train(optimizer, params, range(5))
    assert_identical(snapshot(optimizer), snapshot(trained(options)[1]))


@every_noise
def test_parameters_missing_from_the_state_start_afresh(options):
    _, source = trained(options)
    state_dict = copy.deepcopy(source.state_dict())
    del state_dict["state"][1]
    params, optimizer = build(options)
    optimizer.load_state_dict(state_dict)
    train(optimizer, params, [5])
    assert [float(optimizer.state[param]["step"]) for param in params] == [6.0, 1.0, 6.0]


# -- older dictionaries ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["maximize", "weight_decay", "calls", "peak_lr", "skipped", "level", "length"])
@every_mode
def test_missing_group_keys_are_filled_in(options, key):
    _, source = trained(options)
    state_dict = copy.deepcopy(source.state_dict())
    for group in state_dict["param_groups"]:
        del group[key]
    params, optimizer = build({**options, "weight_decay": 0.25})
    with pytest.warns(UserWarning, match=f"lack {key};") as told:
        optimizer.load_state_dict(state_dict)
    assert told[0].filename == __file__, "the warning points at the caller"
    assert set(optimizer.param_groups[0]) == GROUP_KEYS
    expected = {"maximize": False, "weight_decay": 0.25, "peak_lr": options["lr"], "length": 0.0}
    if key in expected:
        assert optimizer.param_groups[0][key] == expected[key]
    train(optimizer, params, [5])
    numbers = optimizer.diagnostics()
    assert (numbers["steps"], numbers["skipped_steps"]) == (6, 0)


def test_hyper_parameters_of_groups_are_restored():
    params, source = build({"lr": 0.5, "weight_decay": 0.1})
    source.param_groups[0]["lr"] = 0.25
    train(source, params, [0])
    source.param_groups[0]["lr"] = 0.125
    _, optimizer = build({"lr": 1e-3})
    optimizer.load_state_dict(source.state_dict())
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["peak_lr"]) == (0.125, 0.1, 0.25)


def test_the_precision_after_loading_is_that_of_the_length_that_holds():
    params, source = trained({"lr": 1e-2, "length_scale": 0.5})
    other, optimizer = build({"lr": 1e-2, "length_scale": 5.0})
    optimizer.load_state_dict(source.state_dict())
    torch.testing.assert_close(optimizer.precision(other[0]), source.precision(params[0]) / 10.0)


def test_a_group_made_from_another_shares_nothing_with_it():
    params, optimizer = trained({"lr": 1e-2})
    new = Parameter(torch.zeros(3))
    optimizer.add_param_group({**optimizer.param_groups[0], "params": [new]})
    new.grad = torch.full((3,), math.nan)
    optimizer.step()
    first, second = optimizer.param_groups
    assert [int(first["skipped"]), int(second["skipped"])] == [1, 1]
    tensors = [{value.data_ptr() for value in group.values() if torch.is_tensor(value)} for group in (first, second)]
    assert not tensors[0] & tensors[1]
    assert params[0] in first["params"]


# -- wrong dictionaries ------------------------------------------------------------------------------------------------


def _adamw() -> dict[str, Any]:
    params = parameters()
    optimizer = torch.optim.AdamW(params)
    train(optimizer, params, range(2))
    return optimizer.state_dict()


def _reshaped(state_dict: dict[str, Any]) -> dict[str, Any]:
    held = state_dict["state"][0]
    name = next(name for name in EXPECTED.values() if name in held)
    held[name] = held[name].T.contiguous()
    return state_dict


def _swapped(state_dict: dict[str, Any]) -> dict[str, Any]:
    state = state_dict["state"]
    state[0], state[1] = state[1], state[0]
    return state_dict


def _without(state_dict: dict[str, Any], key: str) -> dict[str, Any]:
    del state_dict["state"][2][key]
    return state_dict


def _two_groups(options: dict[str, Any]) -> dict[str, Any]:
    params = parameters()
    optimizer = Arturo([{"params": params[:1]}, {"params": params[1:]}], **options)
    train(optimizer, params, range(2))
    return optimizer.state_dict()


def _fewer(options: dict[str, Any]) -> dict[str, Any]:
    params = parameters()
    optimizer = Arturo(params[:2], **options)
    train(optimizer, params[:2], range(2))
    return optimizer.state_dict()


def _not_a_tensor(state_dict: dict[str, Any]) -> dict[str, Any]:
    held = state_dict["state"][1]
    held[next(name for name in EXPECTED.values() if name in held)] = [0.0] * 4
    return state_dict


WRONG = {
    "AdamW's": lambda options, good, other: (_adamw(), [EXPECTED[options["noise"]], "exp_avg"]),
    "other mode": lambda options, good, other: (other, [options["noise"]]),
    "shape": lambda options, good, other: (_reshaped(good), [EXPECTED[options["noise"]], "(4, 5)", "(5, 4)"]),
    "order": lambda options, good, other: (_swapped(good), ["(4,)", "(5, 4)"]),
    "missing tensor": lambda options, good, other: (
        _without(good, EXPECTED[options["noise"]]),
        [EXPECTED[options["noise"]]],
    ),
    "missing counter": lambda options, good, other: (_without(good, "step"), ["step"]),
    "not a tensor": lambda options, good, other: (_not_a_tensor(good), [EXPECTED[options["noise"]], "list"]),
    "more groups": lambda options, good, other: (_two_groups(options), ["parameter groups"]),
    "smaller group": lambda options, good, other: (_fewer(options), ["doesn't match the size"]),
}


@pytest.mark.parametrize("stepped", [False, True], ids=["fresh", "trained"])
@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG.keys())
@every_noise
def test_a_wrong_state_is_refused_and_changes_nothing(options, make, stepped):
    other_options = {"noise": "fixed" if options["noise"] == "adaptive" else "adaptive"}
    good = copy.deepcopy(trained(options)[1].state_dict())
    other = copy.deepcopy(trained(other_options)[1].state_dict())
    wrong, mentions = make(options, good, other)
    given = copy.deepcopy(wrong)
    params, optimizer = trained(options, steps=3 if stepped else 0)
    before = snapshot(optimizer)
    attributes = set(vars(optimizer))
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the messages differ and are checked below
        optimizer.load_state_dict(wrong)
    for mention in mentions:
        assert mention in str(caught.value)
    assert_identical(snapshot(optimizer), before)
    assert set(vars(optimizer)) == attributes
    assert not optimizer._optimizer_load_state_dict_pre_hooks
    assert_identical(wrong, given)
    # The refused dictionary leaves no trace in what follows.
    train(optimizer, params, range(3, 5))
    optimizer.load_state_dict(copy.deepcopy(trained(options)[1].state_dict()))
    assert_identical(snapshot(optimizer)["state"], snapshot(trained(options)[1])["state"])
