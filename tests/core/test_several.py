"""Several optimizers of one model: said once, where it is so, and nowhere else."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from arturo_core import Arturo, several
from arturo_core.advice import ArturoAdvice

SAID = "more than one Arturo that is alive holds parameters of one model"


@pytest.fixture(autouse=True)
def _no_optimizers_of_other_tests() -> None:
    gc.collect()


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def step(optimizer: Arturo) -> None:
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.randn_like(param)
    optimizer.step()


def told(run: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(one.message) for one in caught if one.category is ArturoAdvice and SAID in str(one.message)]


def of_halves(first: nn.Module, second: nn.Module) -> Callable[[], None]:
    """Three steps of two optimizers, in turn."""
    optimizers = [Arturo(one.parameters()) for one in (first, second)]

    def run() -> None:
        for _ in range(3):
            for optimizer in optimizers:
                step(optimizer)

    return run


@pytest.mark.parametrize(
    "within", [lambda model: model, lambda model: nn.ModuleDict({"net": model})], ids=["", "in dict"]
)
def test_optimizer_in_backward(within: Callable[[nn.Module], nn.Module]) -> None:
    """As torch's tutorial has it: a hook on every parameter steps that parameter's optimizer."""
    model = network()
    holder = within(model)
    optimizers = {param: Arturo([param]) for param in model.parameters()}

    def take(param: torch.Tensor) -> None:
        optimizers[param].step()
        optimizers[param].zero_grad()

    for param in model.parameters():
        param.register_post_accumulate_grad_hook(take)

    def run() -> None:
        for _ in range(3):
            model(torch.randn(8, 4)).square().mean().backward()

    (text,) = told(run)
    assert "(Sequential)" in text
    assert "Give one Arturo all trainable parameters" in text
    assert "inside backward" in text
    assert all(param.isfinite().all() for param in holder.parameters())
    assert told(run) == [], "once"


def test_one_for_each_layer_and_every_model_once() -> None:
    for _ in range(2):
        model = network()
        run = of_halves(model[0], model[2])
        assert len(told(run)) == 1
        assert told(run) == []


def test_one_of_all_parameters_in_groups() -> None:
    model = network()
    optimizer = Arturo([{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 1e-4}])
    assert told(lambda: step(optimizer)) == []


class Container(nn.Module):
    """Two networks, and no forward: a GAN, an agent."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.discriminator = network(), network()


class LightningModule(Container):
    """Called as Lightning's, which has a forward and is known by its name."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.generator(inputs)


class Wrapped(nn.Module):
    """As DDP and compilation wrap a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.module(inputs)


@pytest.mark.parametrize("make", [Container, LightningModule, lambda: Wrapped(LightningModule()).module])
def test_networks_in_one_container_are_models_of_their_own(make: Callable[[], Any]) -> None:
    held = make()
    outside = Wrapped(held)
    assert told(of_halves(held.generator, held.discriminator)) == []
    assert len(list(outside.parameters())) == 8


def test_layers_of_a_network_in_a_container_are_not() -> None:
    held = LightningModule()
    assert len(told(of_halves(held.generator[0], held.generator[2]))) == 1


def test_a_container_of_many_layers_is_a_model() -> None:
    """Where the LightningModule holds the layers itself, and each has its optimizer."""
    held = LightningModule()
    held.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(6))
    optimizers = [Arturo(layer.parameters()) for layer in held.layers]
    assert len(told(lambda: [step(optimizer) for optimizer in optimizers])) == 1


def test_separate_models() -> None:
    assert told(of_halves(network(), network())) == []


def test_a_copy_is_another_model() -> None:
    model = network()
    assert told(of_halves(model, copy.deepcopy(model))) == []


def test_an_optimizer_built_anew_is_no_second_one() -> None:
    model = network()
    kept = []

    def sweep() -> None:
        for lr in (1e-4, 1e-3, 1e-2):
            kept.append(Arturo(model.parameters(), lr=lr))
            step(kept[-1])
        kept.append(Arturo(model[0].parameters()))
        step(kept[-1])

    assert told(sweep) == []


def test_parameters_that_were_frozen_since_do_not_count() -> None:
    model = network()
    first = Arturo(model[2].parameters())
    step(first)
    model[2].requires_grad_(False)
    second = Arturo(model[0].parameters())
    assert told(lambda: step(second)) == []


def test_an_optimizer_that_is_gone_does_not_count() -> None:
    model = network()
    step(Arturo(model[0].parameters()))
    second = Arturo(model[2].parameters())
    assert told(lambda: step(second)) == []


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every look through all objects."""
    found: list[int] = []
    listed = gc.get_objects
    monkeypatch.setattr(several.gc, "get_objects", lambda: found.append(1) or listed())
    monkeypatch.setattr(several, "_stepped", type(several._stepped)())
    return found


def test_looks_are_few(looks: list[int]) -> None:
    models = [network() for _ in range(3)]
    optimizers = [Arturo(model.parameters()) for model in models]
    for _ in range(4):
        step(optimizers[0])
    assert looks == [], "there is one optimizer only"
    for _ in range(4):
        for optimizer in optimizers:
            step(optimizer)
    assert len(looks) == 2, "one for each further optimizer"
    parts = [Arturo([param]) for param in network().parameters()]
    model = network()
    parts = [Arturo([param]) for param in model.parameters()]
    assert len(told(lambda: [step(part) for part in parts])) == 1
    assert len(looks) == 4, "none once it has been said"


def test_no_training_ends_where_warnings_are_errors() -> None:
    model = network()
    run = of_halves(model[0], model[2])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ArturoAdvice)
        run()
    assert all(param.isfinite().all() for param in model.parameters())
