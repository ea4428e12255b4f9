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

from arturo_core import Arturo
from arturo_core.reporting import several
from arturo_core.reporting.advice import ArturoAdvice

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
    assert "Networks with losses of their own" in text
    assert "ignore this" in text
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

    def append(self, networks: list[nn.Module]) -> LightningModule:
        self.several = nn.ModuleList(networks)
        return self


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


class Model(nn.Module):
    """A model of several parts, with a forward; what they are called, and what holds them, is given."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs


def linear(number: int) -> list[nn.Module]:
    return [nn.Linear(2, 2) for _ in range(number)]


def all_told(parts: list[nn.Module]) -> int:
    """How often it is said while each part has its optimizer."""
    optimizers = [Arturo(part.parameters()) for part in parts]
    return len(told(lambda: [step(optimizer) for _ in range(2) for optimizer in optimizers]))


LISTS = {
    "list": nn.ModuleList,
    "dictionary": lambda parts: nn.ModuleDict({f"layer{index}": part for index, part in enumerate(parts)}),
    "list in a list": lambda parts: nn.ModuleList([nn.ModuleList(parts)]),
    "list in a dictionary": lambda parts: nn.ModuleDict({"deep": nn.ModuleList(parts)}),
    "sequence": lambda parts: nn.Sequential(*parts),
}


@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("within", LISTS)
def test_parts_that_meet_in_a_list_are_of_the_model_that_uses_it(within: str, number: int) -> None:
    for parts in (linear(number), [network() for _ in range(number)]):
        model = Model(layers=LISTS[within](parts), head=nn.Linear(2, 2))
        optimizers = [Arturo(part.parameters()) for part in parts]
        (text,) = told(lambda: [step(one) for one in optimizers])  # noqa: B023  # called here
        assert "(Model)" in text
        assert len(list(model.parameters())) > 2


def test_weights_that_meet_in_a_list_are_of_the_model_that_uses_it() -> None:
    weights = nn.ParameterList(nn.Parameter(torch.ones(2)) for _ in range(3))
    model = Model(weights=weights)
    first, second = Arturo([weights[0], weights[1]]), Arturo([weights[2]])
    (text,) = told(lambda: [step(first), step(second)])
    assert "(Model)" in text
    assert model.weights is weights


def test_a_list_that_no_model_uses_is_none() -> None:
    parts = linear(3)
    held = nn.ModuleList(parts)
    assert all_told(parts) == 0
    assert len(held) == 3


def test_lists_of_a_lightning_module_stay_containers() -> None:
    held = LightningModule()
    held.networks = nn.ModuleDict({"first": network(), "second": network()})
    assert all_told(list(held.networks.values())) == 0


APART = {
    "GAN": ("generator", "discriminator"),
    "GAN of two letters": ("netG", "netD"),
    "GAN of one letter": ("G", "D"),
    "CycleGAN": ("G_A", "G_B", "D_A", "D_B"),
    "CycleGAN in words": ("G_XtoY", "G_YtoX", "D_X", "D_Y"),
    "actor and critics": ("actor", "critic_1", "critic_2"),
    "policy and value": ("policy", "value_net"),
    "VQ-GAN": ("encoder", "discriminator"),
    "many critics": tuple(f"critic{index}" for index in range(5)),
}


@pytest.mark.parametrize("name", APART)
def test_networks_whose_names_tell_that_they_are_trained_apart(name: str) -> None:
    """With a forward, in dictionaries and without."""
    for made in (network, lambda: nn.Linear(2, 2)):
        networks = {called: made() for called in APART[name]}
        gan = Model(**networks)
        assert all_told(list(networks.values())) == 0
        networks = {called: made() for called in APART[name]}
        gan = Model(nets=nn.ModuleDict(networks))
        assert all_told(list(networks.values())) == 0
        assert len(list(gan.parameters())) > 1


def test_an_autoencoder_of_parts_beside_its_discriminator() -> None:
    model = Model(encoder=network(), decoder=network(), loss=Model(perceptual=network(), discriminator=network()))
    model.loss.perceptual.requires_grad_(False)
    both = Arturo([*model.encoder.parameters(), *model.decoder.parameters()])
    other = Arturo(model.loss.discriminator.parameters())
    assert told(lambda: [step(both), step(other)]) == []
    model = Model(encoder=network(), decoder=network(), discriminator=network())
    assert all_told([model.discriminator, model.encoder, model.decoder]) == 1, "one loss trains both halves"


def test_layers_of_a_network_that_is_trained_apart_are_of_one_model() -> None:
    for made in (network, lambda: nn.ModuleList(linear(3))):
        model = Model(actor=made(), critic=network())
        first, *_, last = (part for part in model.actor if list(part.parameters()))
        assert all_told([first, last, model.critic]) == 1
        model = Model(actor=made(), critic=network())
        first, *_, last = (part for part in model.actor if list(part.parameters()))
        assert all_told([model.critic, last, first]) == 1


def test_ensembles() -> None:
    number = 6
    for name in ("members", "value_networks"):
        members = [network() for _ in range(number)]
        ensemble: nn.Module = Model(**{name: nn.ModuleList(members)})
        assert all_told(members) == 0
    for container in (nn.ModuleList, lambda parts: LightningModule().append(parts)):
        members = [network() for _ in range(number)]
        ensemble = container(members)
        assert all_told(members) == 0
        assert len(list(ensemble.parameters())) >= 4 * number


def test_parts_of_a_model_whose_names_tell_nothing() -> None:
    model = Model(encoder=network(), decoder=network())
    assert all_told([model.encoder, model.decoder]) == 1


def test_one_name_of_many_parts_tells_nothing() -> None:
    model = Model(embedding=nn.Linear(2, 2), layers=nn.ModuleList(linear(5)), discriminator=nn.Linear(2, 2))
    assert all_told([model.embedding, *model.layers, model.discriminator]) == 1


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


def test_a_module_that_raises_ends_no_training(caplog: pytest.LogCaptureFixture) -> None:
    class Raising(Model):
        def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("not before set-up")

    model = Raising(layers=nn.ModuleList(linear(2)))
    assert all_told(list(model.layers)) == 0
    assert "not before set-up" in caplog.text


def test_no_training_ends_where_warnings_are_errors() -> None:
    model = network()
    run = of_halves(model[0], model[2])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ArturoAdvice)
        run()
    assert all(param.isfinite().all() for param in model.parameters())
