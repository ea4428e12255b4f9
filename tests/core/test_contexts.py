"""Steps in unusual contexts: nothing that is made there outlives it, for this optimizer or for others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import assert_identical, build, every_mode, every_noise, gradients, snapshot, train, trained
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import Parameter

from arturo_core import Arturo
from arturo_core.kernels import scratch


@contextlib.contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


CONTEXTS: dict[str, Callable[[], Any]] = {
    "inference": torch.inference_mode,
    "meta device": lambda: torch.device("meta"),
    "default dtype": default_dtype,
    "no grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}
every_context = pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS.keys())


@pytest.fixture(autouse=True)
def _no_temporaries_of_other_tests():
    scratch._kept.__dict__.clear()


@every_context
@every_mode
def test_steps_in_a_context_are_those_outside_of_it(options, context):
    """The first step, with its allocation; a second; loading; and two more outside, by this and another optimizer."""
    expected_params, expected = build({**options, "weight_decay": 0.01})
    params, optimizer = build({**options, "weight_decay": 0.01})
    for step in range(4):
        for param, grad in zip(params, gradients(params, step), strict=True):
            param.grad = grad
        with context() if step < 2 else contextlib.nullcontext():
            optimizer.step()
        train(expected, expected_params, [step])
        assert_identical(snapshot(optimizer), snapshot(expected))
    other_params, other = build(options)
    train(other, other_params, range(4))
    for held in (*optimizer.state.values(), *other.state.values()):
        assert not any(value.is_inference() or value.device.type == "meta" for value in held.values())


@every_context
@every_noise
def test_an_optimizer_built_or_loaded_in_a_context_goes_on_outside(options, context):
    _, source = trained(options)
    with context():
        built = [Parameter(torch.ones(5, 4, dtype=torch.float32, device="cpu"))] if context is default_dtype else None
    params, _ = build(options)
    with context():
        optimizer = Arturo(params, **options)
        optimizer.load_state_dict(source.state_dict())
    with torch.no_grad():
        for param, trained_param in zip(params, source.param_groups[0]["params"], strict=True):
            param.copy_(trained_param)
    train(optimizer, params, range(5, 8))
    train(source, source.param_groups[0]["params"], range(5, 8))
    assert_identical(snapshot(optimizer), snapshot(source))
    assert built is None or built[0].dtype == torch.float32


@every_noise
def test_a_large_step_in_inference_mode_leaves_its_temporaries_usable(options):
    """Large tensors go through the temporaries of the whole process."""
    first, second = Parameter(torch.randn(300, 300)), Parameter(torch.randn(300, 300))
    first.grad, second.grad = torch.randn(300, 300), torch.randn(300, 300)
    inside, outside = Arturo([first], **options), Arturo([second], **options)
    with torch.inference_mode():
        inside.step()
    outside.step()
    inside.step()
    assert torch.isfinite(first).all()
    assert inside.diagnostics()["steps"] == 2


# -- FakeTensorMode, in which memory estimators rehearse a training step -----------------------------------------------


@every_mode
def test_a_whole_rehearsal_under_fake_tensors(options):
    with FakeTensorMode():
        model = torch.nn.Sequential(torch.nn.Linear(300, 400), torch.nn.LayerNorm(400), torch.nn.Linear(400, 10))
        optimizer = Arturo(model.parameters(), weight_decay=0.01, **options)
        for _ in range(2):
            model(torch.randn(8, 300)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        held = [value for state in optimizer.state.values() for value in state.values()]
        assert held
        assert all(isinstance(value, FakeTensor) for value in held)
    params, real = trained(options)
    assert all(type(value) is torch.Tensor for param in params for value in real.state[param].values())
    assert_identical(snapshot(real), snapshot(trained(options)[1]))


@every_mode
def test_a_rehearsal_of_a_real_optimizer_changes_nothing(options):
    """Estimators also enter the mode around an optimizer that exists already, before its first step or later."""
    for steps in (0, 3):
        params, optimizer = trained(options, steps=steps)
        for param, grad in zip(params, gradients(params, 7), strict=True):
            param.grad = grad
        before = snapshot(optimizer)
        with FakeTensorMode(allow_non_fake_inputs=True):
            optimizer.step()
            optimizer.step()
        assert_identical(snapshot(optimizer), before)
        assert_identical(optimizer.state_dict()["state"], {i: s for i, s in enumerate(before["state"]) if s})
        train(optimizer, params, range(steps, 5))
        assert_identical(snapshot(optimizer), snapshot(trained(options)[1]))


@every_mode
def test_parameters_on_the_meta_device_step(options):
    weight = Parameter(torch.empty(30, 20, device="meta"))
    weight.grad = torch.empty_like(weight)
    optimizer = Arturo([weight], **options)
    optimizer.step()
    optimizer.step()
    assert all(value.device.type == "meta" for value in optimizer.state[weight].values())
