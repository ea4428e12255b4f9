"""A small residual network, and the ways of splitting it over ranks whose collectives are counted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

FEATURES, WIDTH, BLOCKS, BATCH = 16, 64, 4, 8


class Block(nn.Module):
    """A transformer's feed-forward half: what tensor parallelism splits."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        update: Tensor = self.down(torch.tanh(self.up(self.norm(hidden))))
        return hidden + update


class Network(nn.Module):
    """Blocks between two plain layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.head = nn.Linear(WIDTH, FEATURES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        for block in self.blocks:
            hidden = block(hidden)
        outputs: Tensor = self.head(hidden)
        return outputs


@dataclass(frozen=True)
class Split:
    """A split network on one rank, and the process group that its parameters do not name themselves (FSDP1)."""

    model: nn.Module
    group: Any = None

    def passes(self) -> None:
        """Forwards and backwards, with a batch that is the same at every call: its values do not matter."""
        generator = torch.Generator().manual_seed(1)
        self.model(torch.randn(BATCH, FEATURES, generator=generator)).square().mean().backward()


def whole_world() -> DeviceMesh:
    return init_device_mesh("cpu", (distributed.get_world_size(),))


def shard(model: Network, mesh: DeviceMesh) -> None:
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def split_matrices(model: Network, mesh: DeviceMesh) -> None:
    """Only the blocks' matrices: what is around them stays whole, as in most models."""
    for block in model.blocks:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def ddp(model: Network) -> Split:
    return Split(DistributedDataParallel(model))


def fsdp2(model: Network) -> Split:
    shard(model, whole_world())
    return Split(model)


def hsdp(model: Network) -> Split:
    shard(model, init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))
    return Split(model)


def tp(model: Network) -> Split:
    split_matrices(model, whole_world())
    return Split(model)


def fsdp2_and_tp(model: Network) -> Split:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp"))
    split_matrices(model, mesh["tp"])
    shard(model, mesh["fsdp"])
    return Split(model)


def fsdp1(model: Network) -> Split:
    wrap = functools.partial(FullyShardedDataParallel, use_orig_params=True, device_id=torch.device("cpu"))
    for index, block in enumerate(model.blocks):
        model.blocks[index] = wrap(block)
    wrapped = wrap(model)
    return Split(wrapped, wrapped.process_group)


#: Layouts, and the numbers of ranks each is counted on.
LAYOUTS: dict[str, tuple[Callable[[Network], Split], tuple[int, ...]]] = {
    "DDP": (ddp, (2, 4)),
    "FSDP2": (fsdp2, (2, 4)),
    "HSDP 2x2": (hsdp, (4,)),
    "FSDP2 x TP 2x2": (fsdp2_and_tp, (4,)),
    "TP": (tp, (2, 4)),
    "FSDP1": (fsdp1, (2, 4)),
}


def build(layout: str) -> Split:
    """The network under a layout, on this rank of the default process group."""
    torch.manual_seed(0)
    return LAYOUTS[layout][0](Network())
