"""The network of ``problem`` under every kind of parallelism."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from problem import BATCH, Network, Parallel, groups, network
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, StateDictType, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from arturo_core import Arturo

Options = dict[str, Any]


def part(rank: int, ranks: int) -> slice:
    """A rank's share of a batch."""
    return slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)


def whole_of(model: nn.Module) -> dict[str, Tensor]:
    """Full values by the names of the plain network."""
    return {
        name.removeprefix("module."): (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in model.named_parameters()
    }


def spoil(model: nn.Module) -> None:
    """One element of one gradient, on the rank (and its replicas) that holds the first element."""
    grad = dict(model.named_parameters())["up.weight"].grad
    if isinstance(grad, DTensor):
        coordinates = grad.device_mesh.get_coordinate()
        sharded = [dim for dim, placement in enumerate(grad.placements) if not placement.is_replicate()]
        if any(coordinates[dim] for dim in sharded):
            return
        grad = grad.to_local()
    grad.view(-1)[:1] = torch.inf


def sharded(model: nn.Module, options: Options, share: slice, **more: Any) -> Parallel:
    return Parallel(
        model, Arturo(groups(model), **options, **more), share, lambda: whole_of(model), lambda: spoil(model)
    )


def fsdp(model: Network, mesh: DeviceMesh) -> None:
    for module in (model.first, model.norm, model.up, model.down):
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def tensor_parallel(model: Network, mesh: DeviceMesh) -> None:
    """The two matrices in the middle; the rest stays plain."""
    parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def sequence_parallel(model: Network, mesh: DeviceMesh) -> None:
    """The norm works on a share of the sequence: its gradients are sums over the ranks that nobody has taken yet."""
    plan = {
        "norm": SequenceParallel(),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(output_layouts=Replicate()),
    }
    inputs = PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Shard(1))
    parallelize_module(model.norm, mesh, inputs)
    parallelize_module(model, mesh, plan)


def everywhere() -> slice:
    return part(distributed.get_rank(), distributed.get_world_size())


def ddp(options: Options, dtype: torch.dtype) -> Parallel:
    model = network(dtype)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    run = sharded(model, options, everywhere())
    run.model = wrapped
    return run


def fsdp2(options: Options, dtype: torch.dtype) -> Parallel:
    model = network(dtype)
    fsdp(model, init_device_mesh("cpu", (distributed.get_world_size(),)))
    return sharded(model, options, everywhere())


def hsdp(options: Options, dtype: torch.dtype) -> Parallel:
    model = network(dtype)
    fsdp(model, init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))
    return sharded(model, options, everywhere())


def several_meshes(options: Options, dtype: torch.dtype) -> Parallel:
    """As experts beside the rest: one matrix over all ranks, one over half of them, the norm on every one."""
    everyone = init_device_mesh("cpu", (4,))
    halves = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    model = network(dtype)
    fully_shard(model.up, mesh=everyone)
    fully_shard(model.down, mesh=halves)
    kept = set(model.norm.parameters())
    for param in kept:
        param.register_post_accumulate_grad_hook(_average)
    fully_shard(model, mesh=everyone, ignored_params=kept)
    return sharded(model, options, everywhere())


def fsdp2_and_tp(options: Options, dtype: torch.dtype) -> Parallel:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp"))
    model = network(dtype)
    tensor_parallel(model, mesh["tp"])
    fsdp(model, mesh["fsdp"])
    return sharded(model, options, part(mesh["fsdp"].get_local_rank(), 2))


def tp(options: Options, dtype: torch.dtype) -> Parallel:
    model = network(dtype)
    tensor_parallel(model, init_device_mesh("cpu", (distributed.get_world_size(),)))
    return sharded(model, options, slice(None))


def sp(options: Options, dtype: torch.dtype) -> Parallel:
    model = network(dtype)
    sequence_parallel(model, init_device_mesh("cpu", (distributed.get_world_size(),)))
    return sharded(model, options, slice(None))


def fsdp1(options: Options, dtype: torch.dtype, use_orig_params: bool = True) -> Parallel:
    wrap = functools.partial(FullyShardedDataParallel, use_orig_params=use_orig_params, device_id=torch.device("cpu"))
    model = network(dtype)
    model.up = wrap(model.up)
    wrapped = wrap(model)
    kept = groups(wrapped) if use_orig_params else list(wrapped.parameters())
    group = FullyShardedDataParallel.fsdp_modules(wrapped)[0].process_group
    optimizer = Arturo(kept, **options, process_group=group)

    def whole() -> dict[str, Tensor]:
        with FullyShardedDataParallel.state_dict_type(wrapped, StateDictType.FULL_STATE_DICT):
            return {name: value.clone() for name, value in wrapped.state_dict().items()}

    def spoil() -> None:
        for param in wrapped.parameters():
            if distributed.get_rank() == 0 and param.grad is not None and param.numel():
                param.grad[0] = torch.inf
                return

    return Parallel(wrapped, optimizer, everywhere(), whole, spoil)


def fsdp1_flat(options: Options, dtype: torch.dtype) -> Parallel:
    return fsdp1(options, dtype, use_orig_params=False)


def fsdp1_beside_others(options: Options, dtype: torch.dtype) -> Parallel:
    """FSDP1 leaves the norm and the head alone: every rank holds them, and averages their gradients itself."""
    model = network(dtype)
    ignored = [*model.norm.parameters(), *model.head.parameters()]
    for param in ignored:
        param.register_post_accumulate_grad_hook(_average)
    wrapped = FullyShardedDataParallel(
        model, use_orig_params=True, ignored_states=ignored, device_id=torch.device("cpu")
    )
    optimizer = Arturo(groups(wrapped), **options, process_group=wrapped.process_group)

    def whole() -> dict[str, Tensor]:
        with FullyShardedDataParallel.state_dict_type(wrapped, StateDictType.FULL_STATE_DICT):
            return {name: value.clone() for name, value in wrapped.state_dict().items()}

    def spoil() -> None:
        model.norm.weight.grad[0] = torch.inf

    return Parallel(wrapped, optimizer, everywhere(), whole, spoil)


def _average(param: Tensor) -> None:
    assert param.grad is not None
    distributed.all_reduce(param.grad)
    param.grad /= distributed.get_world_size()


def fsdp1_whole(options: Options, dtype: torch.dtype) -> Parallel:
    """NO_SHARD: every rank holds everything, whether or not a group is given."""
    model = network(dtype)
    strategy = ShardingStrategy.NO_SHARD
    wrapped = FullyShardedDataParallel(
        model, use_orig_params=True, sharding_strategy=strategy, device_id=torch.device("cpu")
    )
    optimizer = Arturo(groups(wrapped), **options, process_group=distributed.group.WORLD)
    run = Parallel(wrapped, optimizer, everywhere(), lambda: whole_of(model), lambda: spoil(model))
    return run


def zero(options: Options, dtype: torch.dtype) -> Parallel:
    model = network(dtype)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = ZeroRedundancyOptimizer(
        groups(model), functools.partial(Arturo, process_group=distributed.group.WORLD), **options
    )
    return Parallel(wrapped, optimizer, everywhere(), lambda: whole_of(model), lambda: spoil(model))


def stages(options: Options, dtype: torch.dtype) -> Parallel:
    """As pipeline stages: every rank computes everything here, but optimises its own layers alone."""
    model = network(dtype)
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    mine = [
        {**group, "params": [param for index, param in enumerate(group["params"]) if index % ranks == rank]}
        for group in groups(model)
    ]
    optimizer = Arturo(mine, **options, process_group=distributed.group.WORLD)
    owned = {param for group in mine for param in group["params"]}

    def exchange() -> dict[str, Tensor]:
        found = {}
        for name, param in model.named_parameters():
            value = param.detach().clone() if param in owned else torch.zeros_like(param)
            distributed.all_reduce(value)
            found[name] = value
        return found

    class Exchanging(nn.Module):
        """What the stages of a pipeline do by sending activations."""

        def forward(self, inputs: Tensor) -> Tensor:
            current = exchange()
            for name, param in model.named_parameters():
                param.data.copy_(current[name])
            return model(inputs)

    return Parallel(Exchanging(), optimizer, slice(None), exchange, lambda: spoil(model))


def stages_of_fsdp2(options: Options, dtype: torch.dtype) -> Parallel:
    """Two stages of two ranks each: DTensors, and a group for what their meshes do not cover."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "shard"))
    stage = mesh["stage"].get_local_rank()
    model = network(dtype)
    other = network(dtype)
    fsdp(model, mesh["shard"])
    names = {name: index % 2 for index, name in enumerate(dict(model.named_parameters()))}
    by_name = {param: name for name, param in model.named_parameters()}
    mine = [
        {**group, "params": [param for param in group["params"] if names[by_name[param]] == stage]}
        for group in groups(model)
    ]
    optimizer = Arturo(mine, **options, process_group=mesh["stage"])

    def exchange() -> dict[str, Tensor]:
        found = {}
        for name, param in model.named_parameters():
            value = param.full_tensor().detach().clone() * (names[name] == stage)
            distributed.all_reduce(value, group=mesh["stage"].get_group())
            found[name] = value
        return found

    class Exchanging(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            current = exchange()
            for name, param in other.named_parameters():
                param.data.copy_(current[name])
            for name, param in model.named_parameters():
                whole = torch.chunk(current[name], 2)
                here = param.to_local()
                if here.numel():
                    here.data.copy_(whole[mesh["shard"].get_local_rank()])
            return model(inputs)

    return Parallel(Exchanging(), optimizer, part(mesh["shard"].get_local_rank(), 2), exchange, lambda: spoil(model))


#: Layout and world size.
MATRIX: dict[str, tuple[Callable[[Options, torch.dtype], Parallel], int]] = {
    "DDP-2": (ddp, 2),
    "DDP-3": (ddp, 3),
    "FSDP2-1": (fsdp2, 1),
    "FSDP2-2": (fsdp2, 2),
    "FSDP2-3": (fsdp2, 3),
    "FSDP2-4": (fsdp2, 4),
    "HSDP-2x2": (hsdp, 4),
    "FSDP2xTP-2x2": (fsdp2_and_tp, 4),
    "several meshes-4": (several_meshes, 4),
    "TP-2": (tp, 2),
    "TP-4": (tp, 4),
    "sequence parallel-2": (sp, 2),
    "FSDP1-2": (fsdp1, 2),
    "FSDP1-3": (fsdp1, 3),
    "FSDP1 flat-2": (fsdp1_flat, 2),
    "FSDP1 flat-3": (fsdp1_flat, 3),
    "FSDP1 beside others-2": (fsdp1_beside_others, 2),
    "FSDP1 beside others-3": (fsdp1_beside_others, 3),
    "FSDP1 NO_SHARD-2": (fsdp1_whole, 2),
    "ZeRO-2": (zero, 2),
    "ZeRO-4": (zero, 4),
    "stages-2": (stages, 2),
    "stages-3": (stages, 3),
    "stages of FSDP2-2x2": (stages_of_fsdp2, 4),
}

WORLDS = sorted({world for _, world in MATRIX.values()})


def of_world(world: int) -> list[str]:
    return [name for name, (_, ranks) in MATRIX.items() if ranks == world]
