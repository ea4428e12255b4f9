"""Which parameters and gradients can be optimised, and errors that say why not and what to do instead."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from arturo_core import fsdp1
from arturo_core.sharding import is_dtensor


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
        ValueError: DTensor parameters that are sums over ranks; flat shards (FSDP1) without ``process_group``.
    """
    if is_dtensor(param) and any(placement.is_partial() for placement in param.placements):
        raise ValueError(
            f"Arturo: a parameter is a DTensor with placements {param.placements}: ranks hold summands of its elements "
            "instead of the elements. Redistribute it to Shard or Replicate placements first."
        )
    if fsdp1.is_shard(param) and process_group is None and not fsdp1.is_whole(param):
        raise ValueError(
            "Arturo: the parameters are FSDP1 shards, and the trust region needs sums over all of them. Pass "
            "process_group=FSDP.fsdp_modules(model)[0].process_group."
        )


def check_gradient(grad: Tensor) -> None:
    """Raise ``RuntimeError`` for gradients that are not dense."""
    if grad.layout != torch.strided:
        raise RuntimeError(
            "Arturo does not support sparse gradients: the filter's belief about a weight changes in every step, with "
            "or without a gradient. Build the embedding with sparse=False."
        )
