"""Which parameters and gradients can be optimised, and errors that say why not and what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from arturo_core.distributed import fsdp1
from arturo_core.distributed.sharding import is_dtensor


def check_parameter(param: Tensor, which: str) -> None:
    """Raise ``TypeError`` unless the parameter is a dense floating-point or complex tensor."""
    if not (param.is_floating_point() or param.is_complex()):
        raise TypeError(
            f"Arturo: parameter {which} is of dtype {param.dtype}; only floating-point and complex parameters can be "
            "optimised. Leave integer buffers out of the parameter list."
        )
    if param.layout != torch.strided:
        raise TypeError(f"Arturo: parameter {which} has layout {param.layout}; only dense parameters are supported.")


def check_layout(param: Any, process_group: Any) -> None:
    """Raise where a parameter is a shard whose sums this optimizer could not take over all ranks.

    One multiplier couples all parameters: summed over a shard only, every rank would take a different step.

    Raises:
        ValueError: DTensor parameters that are sums over ranks, whose mesh leaves this rank out or shares ranks with
            ``process_group``; flat shards (FSDP1) without their own ``process_group``, of tensor-parallel parameters,
            or whose module cannot be found.
    """
    if is_dtensor(param) and any(placement.is_partial() for placement in param.placements):
        raise ValueError(
            f"Arturo: a parameter is a DTensor with placements {param.placements}: ranks hold summands of its elements "
            "instead of the elements. Redistribute it to Shard or Replicate placements first."
        )
    if is_dtensor(param) and param.device_mesh.get_coordinate() is None:
        raise ValueError(
            "Arturo: a DTensor parameter lives on a mesh that this rank is no part of: its sums would lack what others "
            "hold. Give every rank the parameters it holds, and process_group for the ranks they are split over."
        )
    if is_dtensor(param) and process_group is not None:
        held, split = set(param.device_mesh.mesh.flatten().tolist()), _ranks(process_group)
        if len(held & split) > 1:
            raise ValueError(
                f"Arturo: process_group holds ranks {sorted(split)}, and a DTensor parameter is on a mesh of ranks "
                f"{sorted(held)}: elements would be counted twice. DTensors say themselves which ranks hold "
                "what: leave process_group out, or give the group of the pipeline's stages alone."
            )
    if fsdp1.is_shard(param):
        _check_fsdp1(param, process_group)


def _check_fsdp1(param: Any, process_group: Any) -> None:
    if not fsdp1.is_known(param):
        raise ValueError(
            "Arturo: a parameter says that it is a shard of FSDP1, but no FullyShardedDataParallel module was found "
            "that holds it. Build the optimizer from model.parameters() of the wrapped model, keep the model, and call "
            "gc.freeze() after that, if at all: it hides modules."
        )
    if fsdp1.is_part_of_a_shard(param):
        raise ValueError(
            "Arturo: FSDP1 has flattened parameters that were split before (tensor parallelism), and no longer tells "
            "over which ranks. Use FSDP2 (fully_shard), whose DTensors say it."
        )
    if fsdp1.is_whole(param):
        return
    if process_group is None:
        raise ValueError(
            "Arturo: the parameters are FSDP1 shards, and the trust region needs sums over all of them. Pass "
            "process_group=FSDP.fsdp_modules(model)[0].process_group."
        )
    given, held = _ranks(process_group), _ranks(fsdp1.process_group(param))
    if given != held:
        raise ValueError(
            f"Arturo: process_group holds ranks {sorted(given)}, but FSDP1 has divided a parameter among ranks "
            f"{sorted(held)}. Pass process_group=FSDP.fsdp_modules(model)[0].process_group. Where pipeline stages are "
            "sharded too, use FSDP2 (fully_shard) and the group of the stages."
        )


def _ranks(process_group: Any) -> set[int]:
    """The ranks of a group, or of a mesh."""
    from torch.distributed import get_process_group_ranks

    if hasattr(process_group, "mesh"):
        return set(process_group.mesh.flatten().tolist())
    return set(get_process_group_ranks(process_group))


def check_gradient(param: Tensor, which: Callable[[], str]) -> None:
    """Refuse gradients that no step could use; ``which`` names the parameter.

    Raises:
        RuntimeError: the gradient is not dense, or on another device.
        ValueError: it has another shape than its parameter.
    """
    grad = param.grad
    assert grad is not None
    if grad.layout != torch.strided:
        raise RuntimeError(
            f"Arturo does not support sparse gradients (parameter {which()}): the filter's belief about a weight "
            "changes in every step, with or without a gradient. Build the embedding with sparse=False."
        )
    if param.is_neg():
        raise RuntimeError(
            f"Arturo: parameter {which()} is a negative view, as of a conjugate's imaginary part, and cannot be "
            "written to element by element. Set param.data = param.data.resolve_neg() first."
        )
    if grad.shape != param.shape:
        raise ValueError(
            f"Arturo: parameter {which()} has shape {tuple(param.shape)}, and its gradient {tuple(grad.shape)}: its "
            "data were exchanged after the backward pass. Call zero_grad() and backward() again."
        )
    if grad.is_complex() != param.is_complex():
        raise ValueError(
            f"Arturo: parameter {which()} is of {param.dtype}, and its gradient of {grad.dtype}: its data were "
            "exchanged after the backward pass. Call zero_grad() and backward() again."
        )
    if grad.device != param.device:
        raise RuntimeError(
            f"Arturo: parameter {which()} is on {param.device}, and its gradient on {grad.device}. Move the model "
            "before the backward pass, or call zero_grad() and backward() again."
        )
