"""The view of a step by layers adds up to the step, and names what was learned where."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import every_mode
from torch import nn

from arturo_core import Arturo
from arturo_core.reporting.layers import LayerWatch


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3), nn.Linear(3, 2)).to(dtype)


def gradients(model: nn.Module, step: int) -> None:
    source = torch.Generator().manual_seed(step)
    dtype = next(model.parameters()).dtype
    inputs = torch.randn(30, 5, generator=source, dtype=torch.float64).to(dtype)
    model.zero_grad()
    (model(inputs) - 1.0).square().mean().backward()


@every_mode
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_layers_spend_what_the_step_spends(options: dict[str, Any], decay: float) -> None:
    model = network()
    optimizer = Arturo(model.named_parameters(), **options, weight_decay=decay)
    watch = LayerWatch(optimizer)
    for step in range(5):
        gradients(model, step)
        watch.arm()
        optimizer.step()
        numbers, layers = optimizer.diagnostics(), watch.numbers()
        assert list(layers) == [name for name, _ in model.named_parameters()]
        assert sum(one["kl"] for one in layers.values()) == pytest.approx(numbers["kl"], rel=1e-9)
        assert sum(one["kl_share"] for one in layers.values()) == pytest.approx(1.0)
        counts = [param.numel() for param in model.parameters()]
        squares = sum(one["step_rms"] ** 2 * count for one, count in zip(layers.values(), counts, strict=True))
        assert (squares / sum(counts)) ** 0.5 == pytest.approx(numbers["step_rms"], rel=1e-9)


def test_what_was_learned_and_what_is_at_the_floor() -> None:
    model = network()
    optimizer = Arturo(model.parameters(), lr=1e-2)
    watch = LayerWatch(optimizer, model.named_parameters())
    for step in range(3):
        gradients(model, step)
        optimizer.step()
    state = optimizer.state[model[0].weight]
    state["curvature"].fill_(1.0)
    state["curvature"].view(-1)[:10] = 0.09  # the step sets it back to the floor
    state["curvature"].view(-1)[10:14] = 5.0
    state["deviation"].fill_(1e-18)  # nothing is learned of it in the next step
    gradients(model, 9)
    model[0].weight.grad.zero_()
    state["direction"].zero_()
    watch.arm()
    optimizer.step()
    found = watch.numbers()["0.weight"]
    learned = optimizer.state[model[0].weight]["curvature"]
    assert found["curvature"] == pytest.approx(float(learned.mean()))
    assert found["curvature_floored"] == float((learned <= 0.1).double().mean()) == 10 / 40
    assert found["curvature_learned"] == float(((learned - 1.0).abs() > 0.1).double().mean()) == 14 / 40
    assert found["weight_rms"] == pytest.approx(float(model[0].weight.detach().square().mean().sqrt()))


def test_negative_curvature_of_the_published_form_is_counted() -> None:
    model = network()
    optimizer = Arturo.paper(model.parameters())
    gradients(model, 0)
    optimizer.step()
    optimizer.state[model[2].weight]["hessian"].view(-1)[:6] = -1.0
    watch = LayerWatch(optimizer, model.named_parameters())
    gradients(model, 1)
    watch.arm()
    optimizer.step()
    assert watch.numbers()["2.weight"]["curvature_floored"] == pytest.approx(6 / 24)


def test_only_armed_steps_are_watched() -> None:
    model = network()
    optimizer = Arturo(model.parameters(), lr=1e-2)
    watch = LayerWatch(optimizer)
    assert watch.numbers() == {}
    gradients(model, 0)
    optimizer.step()
    assert watch.numbers() == {}
    watch.arm()
    optimizer.step()
    first = watch.numbers()
    optimizer.step()
    assert watch.numbers() == first
    assert list(first) == [f"param {index}" for index in range(6)]
    watch.close()
    watch.arm()
    optimizer.step()
    assert watch.numbers() == first


def test_watching_changes_no_step() -> None:
    weights = []
    for watched in (False, True):
        model = network(torch.float32)
        optimizer = Arturo(model.parameters(), lr=1e-2, weight_decay=0.1)
        watch = LayerWatch(optimizer)
        for step in range(4):
            gradients(model, step)
            if watched:
                watch.arm()
            optimizer.step()
        weights.append([param.detach() for param in model.parameters()])
    for one, other in zip(*weights, strict=True):
        assert torch.equal(one, other)


def test_a_skipped_step_and_a_closure() -> None:
    model = network()
    optimizer = Arturo(model.parameters(), lr=1e-2, weight_decay=0.1)
    watch = LayerWatch(optimizer, model.named_parameters())

    def closure() -> Any:
        gradients(model, 0)
        return torch.zeros(())

    watch.arm()
    optimizer.step(closure)
    assert sum(one["kl"] for one in watch.numbers().values()) == pytest.approx(optimizer.diagnostics()["kl"])
    gradients(model, 1)
    model[0].bias.grad[0] = torch.nan
    watch.arm()
    optimizer.step()
    assert all(one["kl"] == one["kl_share"] == one["step_rms"] == 0.0 for one in watch.numbers().values())


def test_weights_without_a_gradient_do_not_move() -> None:
    model = network()
    optimizer = Arturo(model.parameters(), lr=1e-2, weight_decay=0.3)
    watch = LayerWatch(optimizer, model.named_parameters())
    for step in range(2):
        gradients(model, step)
        model[3].weight.grad = None
        watch.arm()
        optimizer.step()
    assert watch.numbers()["3.weight"]["step_rms"] == 0.0
    assert watch.numbers()["0.weight"]["step_rms"] > 0.0
    assert watch.is_current
    gradients(model, 2)
    optimizer.step()
    assert not watch.is_current


def test_names_lose_what_wrappers_put_in() -> None:
    model = network()
    names = [(f"_orig_mod._fsdp_wrapped_module.{name}", param) for name, param in model.named_parameters()]
    optimizer = Arturo(names, lr=1e-2)
    watch = LayerWatch(optimizer)
    gradients(model, 0)
    watch.arm()
    optimizer.step()
    assert list(watch.numbers()) == [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resolution_is_the_step_beside_the_spacing_of_the_weights(dtype: torch.dtype) -> None:
    model = network(dtype)
    optimizer = Arturo(model.parameters(), lr=1e-4)
    weights = torch.cat([param.detach().reshape(-1) for param in model.parameters()])
    above = torch.nextafter(weights, torch.full_like(weights, torch.inf))
    below = torch.nextafter(weights, torch.full_like(weights, -torch.inf))
    gap = torch.maximum((above - weights).double().abs(), (weights - below).double().abs())
    gradients(model, 0)
    optimizer.step()
    numbers = optimizer.diagnostics()
    expected = numbers["step_rms"] / float((0.5 * gap).median())
    # The step has moved some weights over a power of two.
    assert numbers["step_resolution"] == pytest.approx(expected, rel=0.05)
    assert (numbers["step_resolution"] < 1.0) == (dtype == torch.bfloat16)
