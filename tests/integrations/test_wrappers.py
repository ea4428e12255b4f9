"""The optimizer is found inside whatever has been wrapped around it."""

from __future__ import annotations

import collections
import functools
import itertools
import weakref
from collections.abc import Callable, Iterator
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
    "optimizer_",
    "_opt",
    "_base_optimizer",
    "inner_opt",
    "_wrapped_optimizer",
    "local_optimizer",
    "inner",
    "wrapped",
    "__wrapped__",
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


@pytest.mark.parametrize("name", ["optimizers", "_optimizers", "chained_optimizers", "optims", "optimizer_list"])
def test_several_optimizers_in_one_container(name: str) -> None:
    optimizer = arturo()
    for held in (
        [sgd(), optimizer],
        (optimizer, sgd()),
        {"head": sgd(), "body": optimizer},
        [SimpleNamespace(optim=optimizer)],
        collections.deque([sgd(), optimizer]),
        collections.UserList([optimizer]),
        collections.UserDict(body=optimizer),
        {"body": optimizer}.values(),
        {optimizer: "its scheduler"},
        weakref.WeakSet([optimizer]),
        weakref.ref(optimizer),
    ):
        assert find_arturo(SimpleNamespace(**{name: held})) is optimizer
        assert find_arturo(held) is optimizer
    first = arturo()
    assert find_arturo(SimpleNamespace(**{name: [first, optimizer]})) is first


class Slotted:
    __slots__ = ("__hidden", "plain", "unset")

    def __init__(self, plain: Any, hidden: Any) -> None:
        self.plain, self.__hidden = plain, hidden


class OfSlots(Slotted):
    __slots__ = "last"


def test_in_slots() -> None:
    optimizer = arturo()
    assert find_arturo(Slotted(optimizer, None)) is optimizer
    assert find_arturo(Slotted(None, optimizer)) is optimizer
    held = OfSlots(None, None)
    assert find_arturo(held) is None
    held.last = optimizer
    assert find_arturo(held) is optimizer


def test_a_weak_proxy_is_what_it_stands_for() -> None:
    optimizer = arturo()
    proxy = weakref.proxy(optimizer)
    assert find_arturo(proxy) is optimizer
    assert find_arturo(SimpleNamespace(optimizer=proxy)) is optimizer
    assert arturo_metrics(proxy) == arturo_metrics(optimizer)
    assert find_arturo(MagicMock(spec=Arturo)) is None


class Raising:
    """Whatever is asked of it, it raises; collections of it end in the middle."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


class RaisingDictionary(dict[str, Any]):
    def values(self) -> Any:
        raise RuntimeError("values")


class RaisingList(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield None
        raise RuntimeError("iter")


class Endless(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        return itertools.repeat(None)


class EndlesslyNew(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(SimpleNamespace, None)


class Classless:
    @property
    def __class__(self) -> Any:
        raise RuntimeError("class")


class Bare:
    @property
    def __dict__(self) -> Any:
        raise RuntimeError("dict")


def dead_proxy() -> Any:
    return weakref.proxy(arturo())


HOSTILE = [Raising, lambda: RaisingDictionary(a=1), lambda: RaisingList([1]), Classless, Bare, dead_proxy]
HOSTILE += [lambda: weakref.ref(arturo()), lambda: Endless([1]), lambda: EndlesslyNew([1])]


@pytest.mark.parametrize("make", HOSTILE)
def test_nothing_that_is_asked_raises(make: Callable[[], Any]) -> None:
    hostile, optimizer = make(), arturo()
    assert find_arturo(hostile) is None
    for held in (SimpleNamespace(optimizer=hostile), [hostile], {"a": hostile}, SimpleNamespace(whatever=hostile)):
        assert find_arturo(held) is None
    assert find_arturo(SimpleNamespace(_opt=hostile, other=optimizer)) is optimizer
    assert find_arturo([hostile, optimizer]) is optimizer
    with pytest.raises(TypeError, match="no Arturo inside an optimizer of type"):
        arturo_metrics(hostile)


def test_a_wrapper_with_both_a_raising_part_and_the_optimizer() -> None:
    optimizer = arturo()
    for kind in (Bare, RaisingDictionary, RaisingList):
        with_optimizer = type("Wrapper", (kind,), {"optimizer": optimizer})()
        assert find_arturo(with_optimizer) is optimizer


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
