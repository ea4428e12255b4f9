"""What torch asks of its own optimizers, after pytorch's ``test_optim.py``.

Hooks, state dicts and copies.
"""

from __future__ import annotations

import copy
import functools
import io
import pickle
import warnings

import pytest
import torch
from problems import (
    EXPECTED,
    GROUP_KEYS,
    assert_identical,
    every_noise,
    snapshot,
    train,
    trained,
)
from torch.nn import Parameter
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch_inputs import INFO, every_input, regression, squares

from arturo_core import Arturo

# -- hooks -------------------------------------------------------------------------------------------------------------


def test_step_hooks():
    weight = Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    optimizer = Arturo([weight])
    seen: list[str] = []

    def log(name):
        return lambda which, args, kwargs: seen.append(name)

    handles = [
        optimizer.register_step_pre_hook(log("pre")),
        optimizer.register_step_post_hook(log("post")),
        register_optimizer_step_pre_hook(log("global pre")),
        register_optimizer_step_post_hook(log("global post")),
    ]
    try:
        optimizer.step()
        assert seen == ["global pre", "pre", "post", "global post"]
    finally:
        for handle in handles:
            handle.remove()
    optimizer.step()
    assert len(seen) == 4


def test_step_pre_hook_may_replace_the_closure():
    weight = Parameter(torch.ones(2))
    optimizer = Arturo([weight])
    optimizer.register_step_pre_hook(lambda which, args, kwargs: ((which, lambda: 4.0), {}))
    assert optimizer.step(lambda: 3.0) == 4.0


def test_state_dict_hooks():
    optimizer = Arturo([Parameter(torch.ones(2))])
    order: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda which: order.append("pre"))

    def post(which, state_dict):
        order.append("post")
        state_dict["extra"] = 1

    optimizer.register_state_dict_post_hook(post)
    optimizer.register_state_dict_post_hook(lambda which, state_dict: {**state_dict, "replaced": True})
    state_dict = optimizer.state_dict()
    assert order == ["pre", "post"]
    assert state_dict["extra"] == 1
    assert state_dict["replaced"]


@every_noise
def test_load_state_dict_hooks(options):
    _, source = trained(options)
    params, optimizer = trained(options, steps=0)
    order: list[str] = []
    expected = EXPECTED[options["noise"]]

    def in_place(which, state_dict):
        order.append("first")
        state_dict["param_groups"][0]["lr"] = 0.002

    def replacing(which, state_dict):
        order.append("second")
        doubled = copy.deepcopy(state_dict)
        for state in doubled["state"].values():
            state[expected] = 2.0 * state[expected]
        return doubled

    def post(which):
        order.append("post")
        which.state["post"] = True

    optimizer.register_load_state_dict_pre_hook(replacing)
    optimizer.register_load_state_dict_pre_hook(in_place, prepend=True)
    optimizer.register_load_state_dict_post_hook(post)
    saved = copy.deepcopy(source.state_dict())
    optimizer.load_state_dict(saved)
    assert order == ["first", "second", "post"]
    assert optimizer.param_groups[0]["lr"] == 0.002
    for index, param in enumerate(params):
        assert torch.equal(optimizer.state[param][expected], 2.0 * saved["state"][index][expected])
    assert optimizer.state["post"]
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 2


# -- state dicts and copies --------------------------------------------------------------------------------------------


def _twin(optimizer_kwargs, named, weight, bias, lr=None):
    kwargs = dict(optimizer_kwargs)
    if lr is not None:
        kwargs["lr"] = lr
    return Arturo([("weight", weight), ("bias", bias)] if named else [weight, bias], **kwargs)


@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
@every_input
def test_state_dict_is_deterministic(kwargs, named):
    weight, bias, data = regression()
    optimizer = _twin(kwargs, named, weight, bias)
    for _ in range(3):
        optimizer.step(functools.partial(squares, weight, bias, data, optimizer))
    weight_c, bias_c = Parameter(weight.detach().clone()), Parameter(bias.detach().clone())
    twin = _twin(kwargs, named, weight_c, bias_c)
    state_dict = copy.deepcopy(optimizer.state_dict())
    twin.load_state_dict(state_dict)
    assert_identical(twin.state_dict(), optimizer.state_dict())
    for _ in range(3):
        optimizer.step(functools.partial(squares, weight, bias, data, optimizer))
        twin.step(functools.partial(squares, weight_c, bias_c, data, twin))
        assert torch.equal(weight, weight_c)
        assert torch.equal(bias, bias_c)
    assert_identical(twin.state_dict(), optimizer.state_dict())
    assert_identical(copy.deepcopy(optimizer).state_dict(), optimizer.state_dict())
    # Repeated parameters have one representation.
    twin.param_groups.extend(twin.param_groups)
    assert_identical(twin.state_dict()["param_groups"][-1], optimizer.state_dict()["param_groups"][-1])
    # A state saved with a float lr loads into an optimizer built with a tensor lr, and training goes on.
    tensor_lr = _twin(kwargs, named, weight_c, bias_c, lr=torch.tensor(1e-3))
    tensor_lr.load_state_dict(state_dict)
    tensor_lr.step(functools.partial(squares, weight_c, bias_c, data, tensor_lr))
    float_lr = _twin(kwargs, named, weight_c, bias_c, lr=1e-3)
    for group in state_dict["param_groups"]:
        group["lr"] = torch.tensor(float(group["lr"]))
    float_lr.load_state_dict(state_dict)
    float_lr.step(functools.partial(squares, weight_c, bias_c, data, float_lr))
    assert isinstance(float_lr.param_groups[0]["lr"], torch.Tensor)


@every_input
def test_state_dict_without_later_flags_loads(kwargs):
    weight, bias, data = regression()
    optimizer = Arturo([weight, bias], **kwargs)
    closure = functools.partial(squares, weight, bias, data, optimizer)
    optimizer.step(closure)
    state_dict = copy.deepcopy(optimizer.state_dict())
    for group in state_dict["param_groups"]:
        for flag in INFO.not_og_supported_flags:
            del group[flag]
    optimizer.load_state_dict(state_dict)
    optimizer.step(closure)
    assert set(optimizer.param_groups[0]) == GROUP_KEYS


@pytest.mark.parametrize("saved_named", [False, True])
@pytest.mark.parametrize("loaded_named", [False, True])
def test_state_of_named_and_unnamed_parameters_is_exchangeable(saved_named, loaded_named):
    weight, bias, data = regression()
    optimizer = _twin({}, saved_named, weight, bias)
    optimizer.step(functools.partial(squares, weight, bias, data, optimizer))
    twin = _twin({}, loaded_named, Parameter(weight.detach().clone()), Parameter(bias.detach().clone()))
    twin.load_state_dict(optimizer.state_dict())
    assert_identical(twin.state_dict()["state"], optimizer.state_dict()["state"])
    assert ("param_names" in twin.param_groups[0]) == (saved_named or loaded_named)


@every_input
def test_saved_with_weights_only_loads_equal(kwargs):
    weight, bias, data = regression()
    optimizer = Arturo([weight, bias], **kwargs)
    for _ in range(2):
        optimizer.step(functools.partial(squares, weight, bias, data, optimizer))
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    twin = Arturo([Parameter(weight.detach().clone()), Parameter(bias.detach().clone())], **kwargs)
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    assert_identical(twin.state_dict(), optimizer.state_dict())


@every_noise
def test_a_step_counter_saved_as_a_number_loads(options):
    params, optimizer = trained(options)
    expected = snapshot(optimizer)
    state_dict = copy.deepcopy(optimizer.state_dict())
    for state in state_dict["state"].values():
        state["step"] = state["step"].item()
    optimizer.load_state_dict(state_dict)
    assert_identical(snapshot(optimizer)["state"], expected["state"])
    train(optimizer, params, [5])


@every_input
def test_state_is_not_empty(kwargs):
    weight = Parameter(torch.randn(2, 3))
    optimizer = Arturo([weight], **kwargs)
    weight.grad = torch.randn(2, 3)
    optimizer.step()
    assert weight in optimizer.state
    for value in optimizer.state[weight].values():
        assert isinstance(value, torch.Tensor)
        assert value.numel() > 0


@every_input
def test_deepcopy_and_pickle_keep_everything_public(kwargs):
    weight, bias, data = regression()
    optimizer = Arturo([weight, bias], **kwargs)
    for _ in range(2):
        optimizer.step(functools.partial(squares, weight, bias, data, optimizer))
    public = {name for name in vars(optimizer) if not name.startswith("_")}
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert {name for name in vars(copied) if not name.startswith("_")} == public
        assert_identical(copied.state_dict(), optimizer.state_dict())
        params = copied.param_groups[0]["params"]
        assert params[0] is not weight
        reference = copy.deepcopy(optimizer)
        for which in (copied, reference):
            for index, param in enumerate(which.param_groups[0]["params"]):
                param.grad = torch.full_like(param, 0.1 * (index + 1))
            which.step()
        assert_identical(snapshot(copied), snapshot(reference))
        assert repr(copied)
        assert copied.diagnostics()["steps"] == 3


def test_copies_keep_the_options():
    weight = Parameter(torch.ones(3))
    optimizer = Arturo.paper([weight], 0.1, temperature=0.5)
    copied = copy.deepcopy(optimizer)
    assert copied.options == optimizer.options
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copied.add_param_group({"params": [Parameter(torch.ones(2))]})
