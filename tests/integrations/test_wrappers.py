"""The optimizer is found inside whatever has been wrapped around it."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from arturo_core import Arturo
from arturo_integrations.metrics import arturo_metrics, find_arturo


def arturo() -> Arturo:
    optimizer = Arturo([torch.nn.Parameter(torch.ones(2, 3))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2, 3)
    optimizer.step()
    return optimizer


def sgd() -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)


NAMES = [
    "optimizer",
    "_optimizer",
    "optim",
    "_optim",
    "opt",
    "base_optimizer",
    "original_optimizer",
    "inner_optimizer",
    "wrapped_optimizer",
    "torch_optimizer",
]


@pytest.mark.parametrize("name", NAMES)
def test_by_the_names_that_wrappers_use(name: str) -> None:
    optimizer = arturo()
    wrapper = SimpleNamespace(**{name: optimizer})
    assert find_arturo(wrapper) is optimizer
    assert find_arturo(SimpleNamespace(**{name: wrapper})) is optimizer
    assert arturo_metrics(wrapper) == arturo_metrics(optimizer)
    held = SimpleNamespace(inner=optimizer)
    with_property = type("Wrapper", (), {"__slots__": ("held",), name: property(lambda self: self.held.inner)})()
    with_property.held = held
    assert find_arturo(with_property) is optimizer


def test_by_what_it_is_under_any_name() -> None:
    optimizer = arturo()
    assert find_arturo(SimpleNamespace(whatever=optimizer)) is optimizer


class Sam(torch.optim.Optimizer):
    """An optimizer that steps another one, whose groups it shares; its own type is no Arturo's."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        super().__init__(base.param_groups, {"rho": 0.05})
        self.base_optimizer = base

    @property
    def optimizer(self) -> Any:
        raise RuntimeError("not before set-up")


class Dynamic(Arturo):
    """As Lightning's wrapper: an instance of the class that it wraps, with nothing of it but a reference."""

    def __init__(self, inner: Arturo) -> None:
        self.wrapped = inner


def test_wrappers_in_wrappers_and_properties_that_raise() -> None:
    optimizer = arturo()
    sam = Sam(optimizer)
    assert find_arturo(sam) is optimizer
    assert find_arturo(SimpleNamespace(original_optimizer=SimpleNamespace(optimizer=sam))) is optimizer
    assert find_arturo(Dynamic(optimizer)) is optimizer
    assert find_arturo(SimpleNamespace(optim=Dynamic(Dynamic(optimizer)))) is optimizer


@pytest.mark.parametrize("name", ["optimizers", "_optimizers", "chained_optimizers"])
def test_several_optimizers_in_one_container(name: str) -> None:
    optimizer = arturo()
    for held in (
        [sgd(), optimizer],
        (optimizer, sgd()),
        {"head": sgd(), "body": optimizer},
        [SimpleNamespace(optim=optimizer)],
    ):
        assert find_arturo(SimpleNamespace(**{name: held})) is optimizer
        assert find_arturo(held) is optimizer
    first = arturo()
    assert find_arturo(SimpleNamespace(**{name: [first, optimizer]})) is first


def test_cycles_and_what_answers_to_every_name_come_to_an_end() -> None:
    circular = SimpleNamespace()
    circular.optimizer = circular
    circular.optimizers = [circular, [circular]]
    assert find_arturo(circular) is None
    circular.base_optimizer = optimizer = arturo()
    assert find_arturo(circular) is optimizer
    assert find_arturo(MagicMock()) is None


@pytest.mark.parametrize("other", [None, 1, "optimizer", [], {}, torch.zeros(3), torch.nn.Linear(2, 2)], ids=repr)
def test_there_may_be_none(other: Any) -> None:
    assert find_arturo(other) is None
    assert find_arturo(SimpleNamespace(optimizer=other)) is None


def test_another_optimizer_is_none() -> None:
    assert find_arturo(sgd()) is None
    with pytest.raises(TypeError, match="no Arturo inside an optimizer of type Sam"):
        arturo_metrics(Sam(sgd()))


def test_those_of_lightning_and_fabric() -> None:
    optimizer = arturo()
    wrappers = pytest.importorskip("lightning.pytorch.core.optimizer")
    assert find_arturo(wrappers.LightningOptimizer(optimizer)) is optimizer
    fabric = pytest.importorskip("lightning.fabric.wrappers")
    assert find_arturo(fabric._FabricOptimizer(optimizer, strategy=None)) is optimizer


def test_that_of_zero() -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = torch.nn.Linear(2, 2)
        zero = ZeroRedundancyOptimizer(
            model.parameters(), functools.partial(Arturo, process_group=torch.distributed.group.WORLD), lr=1e-3
        )
        assert find_arturo(zero) is zero.optim
    finally:
        torch.distributed.destroy_process_group()
