"""What can be called on the wrappers that ``self.optimizers()`` and Fabric return, which look like an Arturo.

They read through to the optimizer; what a method of the optimizer's class sets on them would stay there, so the methods
that write pass the call on.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

pytest.importorskip("lightning")

import torch
from lightning.fabric.strategies import SingleDeviceStrategy
from lightning.fabric.wrappers import _FabricOptimizer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning_problem import OPTIONS, differences, loader, network, squares
from torch import distributed, nn

from arturo_core import Arturo
from arturo_core.reporting.layers import LayerWatch
from arturo_integrations.lightning import arturo_metrics, find_arturo

WRAPPERS = {
    "Trainer": LightningOptimizer,
    "Fabric": lambda optimizer: _FabricOptimizer(optimizer, SingleDeviceStrategy(torch.device("cpu"))),
}


def trained(seed: int = 0) -> tuple[nn.Module, Arturo]:
    model = network(seed=seed)
    optimizer = Arturo(model.parameters(), **OPTIONS)
    for rows in loader():
        optimizer.zero_grad()
        squares(model, rows).backward()
        optimizer.step()
    return model, optimizer


@pytest.fixture(params=WRAPPERS)
def wrap(request: Any) -> Any:
    return WRAPPERS[request.param]


def test_what_reads_is_that_of_the_optimizer(wrap):
    model, optimizer = trained()
    wrapper = wrap(optimizer)
    assert isinstance(wrapper, Arturo)
    assert find_arturo(wrapper) is optimizer
    assert arturo_metrics(wrapper) == arturo_metrics(optimizer)
    assert wrapper.diagnostics() == optimizer.diagnostics()
    assert torch.equal(wrapper.precision(model.head.weight), optimizer.precision(model.head.weight))
    assert not list(differences(wrapper.state_dict(), optimizer.state_dict()))
    wrapper.param_groups[0]["lr"] = 0.5
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_watch_on_the_wrapper_sees_the_steps_of_the_optimizer(wrap):
    model, optimizer = trained()
    watch = LayerWatch(wrap(optimizer), model.named_parameters())
    watch.arm()
    optimizer.step()
    assert watch.numbers()["head.weight"]["kl"] > 0
    watch.close()
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("kind", WRAPPERS)
def test_load_state_dict_reaches_the_optimizer(kind):
    _, optimizer = trained()
    _, other = trained(seed=1)
    WRAPPERS[kind](other).load_state_dict(optimizer.state_dict())
    assert not list(differences(other.state_dict(), optimizer.state_dict()))


def test_split_over_reaches_the_optimizer(wrap, tmp_path):
    _, optimizer = trained()
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        wrap(optimizer).split_over(distributed.group.WORLD)
        assert optimizer.process_group is distributed.group.WORLD
    finally:
        distributed.destroy_process_group()


def test_ranks_compare_their_options_after_a_group_is_added(wrap, tmp_path):
    model = network()
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        optimizer = Arturo(model.parameters(), **OPTIONS, process_group=distributed.group.WORLD)
        squares(model, next(iter(loader()))).backward()
        optimizer.step()
        assert optimizer._agreed is not None
        wrap(optimizer).add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
        assert len(optimizer.param_groups) == 2
        assert optimizer._agreed is None
    finally:
        distributed.destroy_process_group()


def test_a_copy_of_a_wrapper_has_an_optimizer(wrap):
    _, optimizer = trained()
    copied = copy.deepcopy(wrap(optimizer))
    assert not list(differences(find_arturo(copied).state_dict(), optimizer.state_dict()))
