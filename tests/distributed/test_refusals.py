"""Splits whose sums could not be taken are refused, with the way out in the message, on every rank."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import fsdp
from problem import groups, network
from ranks import run
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Partial

from arturo_core import Arturo


def fsdp1_without_a_group() -> None:
    Arturo(FullyShardedDataParallel(network(), device_id=torch.device("cpu")).parameters())


def zero_without_a_group() -> None:
    ZeroRedundancyOptimizer(network().parameters(), Arturo, lr=1e-3)


def zero_with_a_group_is_not_refused() -> None:
    ZeroRedundancyOptimizer(
        network().parameters(), functools.partial(Arturo, process_group=distributed.group.WORLD), lr=1e-3
    )
    raise ValueError("built")


def dtensors_counted_twice() -> None:
    model = network()
    fsdp(model, init_device_mesh("cpu", (2,)))
    Arturo(model.parameters(), process_group=distributed.group.WORLD)


def partial_parameter() -> None:
    mesh = init_device_mesh("cpu", (2,))
    Arturo([torch.nn.Parameter(DTensor.from_local(torch.zeros(3), mesh, [Partial()]))])


def other_options() -> None:
    rank = distributed.get_rank()
    optimizer = Arturo(groups(network()), kl_rtol=1e-3 * (1 + rank), process_group=distributed.group.WORLD)
    optimizer.step()


def other_groups() -> None:
    split = groups(network())[: 1 + distributed.get_rank()]
    Arturo(split, process_group=distributed.group.WORLD).step()


REFUSED = {
    "FSDP1 without a group": (fsdp1_without_a_group, "FSDP.fsdp_modules"),
    "ZeRO without a group": (zero_without_a_group, "functools.partial(Arturo, process_group="),
    "ZeRO with a group": (zero_with_a_group_is_not_refused, "built"),
    "DTensors counted twice": (dtensors_counted_twice, "leave process_group out"),
    "partial parameter": (partial_parameter, "Redistribute it"),
    "other options": (other_options, "differ in their options"),
    "other groups": (other_groups, "differ in the number of parameter groups"),
}


def messages() -> dict[str, str]:
    found = {}
    for name, (attempt, _) in REFUSED.items():
        try:
            attempt()
        except ValueError as error:
            found[name] = str(error)
    return found


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run(messages, 2, Path(tmp_path_factory.mktemp("ranks")))


@pytest.mark.parametrize("name", REFUSED)
def test_refused_on_every_rank_with_the_way_out(name: str, refusals: list[Any]) -> None:
    for found in refusals:
        assert REFUSED[name][1] in found[name]
