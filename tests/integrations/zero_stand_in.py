"""What DeepSpeed's ZeRO does with an optimizer, by its published order, in a few lines and in any dtype.

Written for processes without DeepSpeed, which load it under the names of DeepSpeed's own modules (:func:`load`).
Stages 1 and 2 differ in when gradients are reduced, which an optimizer does not see.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

import torch
from torch import Tensor, distributed
from torch._utils import _flatten_dense_tensors


def load() -> tuple[type, type]:
    """The wrappers of stages 1 and 2, and of stage 3, as classes of modules that are called as DeepSpeed's."""
    found: list[Any] = []
    for name in ("deepspeed.runtime.zero.stage_1_and_2", "deepspeed.runtime.zero.stage3"):
        spec = importlib.util.spec_from_file_location(name, __file__)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        found.append(module)
    sys.modules.setdefault("deepspeed", types.ModuleType("deepspeed"))
    return found[0].DeepSpeedZeroOptimizer, found[1].DeepSpeedZeroOptimizer_Stage3


def _padded(vector: Tensor, multiple: int) -> Tensor:
    return torch.cat([vector, vector.new_zeros(-vector.numel() % multiple)])


def _mean(grad: Tensor, ranks: Any) -> Tensor:
    total = grad.clone()
    distributed.all_reduce(total, group=ranks)
    return total / distributed.get_world_size(ranks)


def _gathered(share: Tensor, ranks: Any) -> Tensor:
    shares = [torch.empty_like(share) for _ in range(distributed.get_world_size(ranks))]
    distributed.all_gather(shares, share.contiguous(), group=ranks)
    return torch.cat(shares)


class DeepSpeedZeroOptimizer:
    """Stages 1 and 2: every group flattened, filled up at its end, and cut into one partition a rank."""

    def __init__(self, optimizer: torch.optim.Optimizer, ranks: Any) -> None:
        self.optimizer = optimizer
        self.dp_process_group = ranks
        self.real_dp_process_group = [ranks for _ in optimizer.param_groups]
        self.bit16_groups: list[list[Any]] = []
        self.bit16_groups_flat: list[Tensor] = []
        self.round_robin_bit16_meta: list[list[Tensor]] = []
        self.round_robin_bit16_offsets: list[list[int]] = []
        self.parallel_partitioned_bit16_groups: list[list[Tensor]] = []
        self.single_partition_of_fp32_groups: list[Tensor] = []
        self.linked = 0
        world = distributed.get_world_size(ranks)
        for group in optimizer.param_groups:
            params = group["params"]
            whole = _padded(_flatten_dense_tensors([param.detach() for param in params]), 2 * world)
            offsets = [0]
            for param in params:
                param.data = whole[offsets[-1] : offsets[-1] + param.numel()].view(param.shape)
                offsets.append(offsets[-1] + param.numel())
            self.bit16_groups.append(params)
            self.bit16_groups_flat.append(whole)
            self.round_robin_bit16_meta.append([torch.empty_like(param, device="meta") for param in params])
            self.round_robin_bit16_offsets.append(offsets[:-1])
            self.parallel_partitioned_bit16_groups.append(list(whole.chunk(world)))
            mine = self.parallel_partitioned_bit16_groups[-1][distributed.get_rank(ranks)].clone().requires_grad_()
            self.single_partition_of_fp32_groups.append(mine)
            group["params"] = [mine]

    def step(self) -> None:
        rank = distributed.get_rank(self.dp_process_group)
        for index, params in enumerate(self.bit16_groups):
            grads = [torch.zeros_like(param) if param.grad is None else param.grad for param in params]
            whole = torch.zeros_like(self.bit16_groups_flat[index])
            whole[: sum(grad.numel() for grad in grads)] = _flatten_dense_tensors(grads)
            partition = self.single_partition_of_fp32_groups[index]
            partition.grad = _mean(whole, self.dp_process_group).chunk(distributed.get_world_size())[rank].clone()
            self._optimizer_step(index)
            partition.grad = None
            self.parallel_partitioned_bit16_groups[index][rank].data.copy_(partition.data)
        for whole, partitions in zip(self.bit16_groups_flat, self.parallel_partitioned_bit16_groups, strict=True):
            whole.copy_(_gathered(partitions[rank], self.dp_process_group))

    def _optimizer_step(self, number: int) -> None:
        groups = self.optimizer.param_groups
        self.optimizer.param_groups = [groups[number]]
        self.optimizer.step()
        self.optimizer.param_groups = groups
        self._lazy_init_hp_params_optimizer_state()

    def _lazy_init_hp_params_optimizer_state(self) -> None:
        self.linked += 1


class DeepSpeedZeroOptimizer_Stage3:
    """Stage 3: every parameter filled up and cut for itself; the shares of a sub-group make one flat vector."""

    def __init__(self, optimizer: torch.optim.Optimizer, ranks: Any, sub_group_size: int) -> None:
        self.optimizer = optimizer
        self.dp_process_group = ranks
        self.fp16_groups: list[list[Any]] = []
        self.fp32_partitioned_groups_flat: list[Tensor] = []
        self.sub_group_process_groups: list[Any] = []
        self.sub_group_to_group_id: dict[int, int] = {}
        self.world, self.rank = distributed.get_world_size(ranks), distributed.get_rank(ranks)
        for index, group in enumerate(optimizer.param_groups):
            open_group: list[Any] = []
            for param in group["params"]:
                param.ds_shape = param.shape
                size = -(-param.numel() // self.world)
                param.partition_numel = lambda size=size: size
                open_group.append(param)
                if sum(one.partition_numel() for one in open_group) >= sub_group_size or param is group["params"][-1]:
                    self.sub_group_to_group_id[len(self.fp16_groups)] = index
                    self.sub_group_process_groups.append(ranks)
                    shares = [self._share(one.detach()) for one in open_group]
                    self.fp32_partitioned_groups_flat.append(torch.cat(shares).requires_grad_())
                    self.fp16_groups.append(open_group)
                    open_group = []
            group["params"] = []

    def _share(self, whole: Tensor) -> Tensor:
        return _padded(whole.reshape(-1), self.world).chunk(self.world)[self.rank].clone()

    def step(self) -> None:
        for number, params in enumerate(self.fp16_groups):
            grads = [torch.zeros_like(param) if param.grad is None else param.grad for param in params]
            shares = [self._share(_mean(grad, self.dp_process_group)) for grad in grads]
            self.fp32_partitioned_groups_flat[number].grad = torch.cat(shares)
            self._optimizer_step(number)
            self._reassign_or_swap_out_partitioned_parameters(number)
            self.fp32_partitioned_groups_flat[number].grad = None
        for params in self.fp16_groups:
            for param in params:
                whole = _gathered(param.ds_tensor, self.dp_process_group)
                param.data.copy_(whole[: param.numel()].view(param.shape))

    def _optimizer_step(self, number: int) -> None:
        group = self.optimizer.param_groups[self.sub_group_to_group_id[number]]
        group["params"] = [self.fp32_partitioned_groups_flat[number]]
        self.optimizer.step()
        group["params"] = []

    def _reassign_or_swap_out_partitioned_parameters(self, number: int) -> None:
        sizes = [param.partition_numel() for param in self.fp16_groups[number]]
        shares = self.fp32_partitioned_groups_flat[number].detach().split(sizes)
        for param, share in zip(self.fp16_groups[number], shares, strict=True):
            param.ds_tensor = share.clone()
