"""Splits whose sums could not be taken are refused, with the way out in the message, on every rank."""

from __future__ import annotations

import functools
import gc
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import fsdp, tensor_parallel
from problem import groups, network
from ranks import run
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from arturo_core import Arturo


def fsdp1_without_a_group() -> None:
    model = FullyShardedDataParallel(network(), device_id=torch.device("cpu"))
    Arturo(model.parameters())


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


def other_rates() -> None:
    lr = 1e-3 * (1 + distributed.get_rank())
    Arturo(groups(network()), lr=lr, process_group=distributed.group.WORLD).step()


def a_late_group() -> None:
    model = network()
    optimizer = Arturo(model.up.parameters(), process_group=distributed.group.WORLD)
    optimizer.step()
    optimizer.add_param_group({"params": model.down.parameters(), "lr": 1e-3 * (1 + distributed.get_rank())})
    optimizer.step()


def replicas_counted_twice() -> None:
    mesh = init_device_mesh("cpu", (2,))
    whole = torch.nn.Parameter(DTensor.from_local(torch.zeros(3), mesh, [Replicate()]))
    Arturo([whole], process_group=distributed.group.WORLD)


def mesh_counted_twice() -> None:
    model = network()
    mesh = init_device_mesh("cpu", (2,))
    fsdp(model, mesh)
    Arturo(model.parameters(), process_group=mesh)


def meshes_of_other_ranks() -> None:
    """Each rank is given a DTensor that lives on the other one."""
    meshes = [DeviceMesh("cpu", [1]), DeviceMesh("cpu", [0])]
    mesh = meshes[distributed.get_rank()]
    here = DTensor.from_local(torch.zeros(0), mesh, [Shard(0)], run_check=False, shape=torch.Size([3]), stride=(1,))
    Arturo([torch.nn.Parameter(here)])


def another_group_than_fsdp1s() -> None:
    """As under hybrid strategies, whose groups of shards are not all ranks."""
    model = FullyShardedDataParallel(network(), use_orig_params=True, device_id=torch.device("cpu"))
    alone, _ = distributed.new_subgroups(1)
    Arturo(model.parameters(), process_group=alone)


def fsdp1_of_tensor_parallel() -> None:
    model = network()
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp"))
    tensor_parallel(model, mesh["tp"])
    wrapped = FullyShardedDataParallel(model, device_mesh=mesh["dp"], device_id=torch.device("cpu"))
    Arturo(wrapped.parameters(), process_group=wrapped.process_group)


def zero_of_fsdp1() -> None:
    model = FullyShardedDataParallel(
        network(), use_orig_params=True, sharding_strategy=ShardingStrategy.NO_SHARD, device_id=torch.device("cpu")
    )
    ZeroRedundancyOptimizer(model.parameters(), functools.partial(Arturo, process_group=distributed.group.WORLD))


def rates_that_part() -> None:
    """A scheduler that follows the rank's own loss: nothing says so but the sums."""
    model = network()
    fsdp(model, init_device_mesh("cpu", (2,)))
    optimizer = Arturo(groups(model))
    for step in range(2):
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        before = [param.to_local().clone() for param in model.parameters()]
        optimizer.param_groups[1]["lr"] = 1e-3 * (1 + step * 1e-3 * distributed.get_rank())
        try:
            optimizer.step()
        finally:
            same = [torch.equal(param.to_local(), old) for param, old in zip(model.parameters(), before, strict=True)]
            assert all(same) == (step == 1), "a refused step changes nothing"


def frozen_garbage() -> None:
    model = FullyShardedDataParallel(network(), use_orig_params=True, device_id=torch.device("cpu"))
    gc.freeze()
    try:
        Arturo(model.parameters(), process_group=model.process_group)
    finally:
        gc.unfreeze()


def the_shard_of_another_rank() -> None:
    """Five rows are three and two: the shapes tell."""
    mesh = init_device_mesh("cpu", (2,))
    model = torch.nn.Linear(3, 5, bias=False)
    fully_shard(model, mesh=mesh)
    optimizer = Arturo(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    exchanged: list[Any] = [None, None]
    distributed.all_gather_object(exchanged, saved.getvalue())
    other = torch.load(io.BytesIO(exchanged[1 - distributed.get_rank()]), weights_only=False)
    before = optimizer.state_dict()["state"][0]["deviation"].to_local().clone()
    try:
        optimizer.load_state_dict(other)
    finally:
        assert torch.equal(optimizer.state_dict()["state"][0]["deviation"].to_local(), before)


REFUSED = {
    "FSDP1 without a group": (fsdp1_without_a_group, "FSDP.fsdp_modules"),
    "ZeRO without a group": (zero_without_a_group, "functools.partial(Arturo, process_group="),
    "ZeRO with a group": (zero_with_a_group_is_not_refused, "built"),
    "DTensors counted twice": (dtensors_counted_twice, "leave process_group out"),
    "partial parameter": (partial_parameter, "Redistribute it"),
    "other options": (other_options, "differ in kl_rtol (0.001 and 0.002)"),
    "other groups": (other_groups, "differ in the number of parameter groups (1 and 2)"),
    "other rates": (other_rates, "differ in lr of parameter group 0 (0.001 and 0.002)"),
    "a late group": (a_late_group, "differ in lr of parameter group 1"),
    "replicas counted twice": (replicas_counted_twice, "leave process_group out"),
    "meshes of other ranks": (meshes_of_other_ranks, "a mesh that this rank is no part of"),
    "mesh counted twice": (mesh_counted_twice, "leave process_group out"),
    "rates that part": (rates_that_part, "differ in their learning rates"),
    "FSDP1 with another group": (another_group_than_fsdp1s, "FSDP1 has divided a parameter among ranks [0, 1]"),
    "FSDP1 of tensor parallel": (fsdp1_of_tensor_parallel, "Use FSDP2 (fully_shard)"),
    "ZeRO of FSDP1": (zero_of_fsdp1, "FullyShardedDataParallel alone"),
    "FSDP1 out of sight": (frozen_garbage, "call gc.freeze() after that"),
    "another rank's shard": (the_shard_of_another_rank, "it was saved by another rank"),
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
