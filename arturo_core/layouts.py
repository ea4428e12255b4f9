"""Which parameters and gradients can be optimised, and errors that say why not and what to do instead."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_parameter(param: Tensor, which: str) -> None:
    """Raise ``TypeError`` unless the parameter is a dense floating-point or complex tensor."""
    if not (param.is_floating_point() or param.is_complex()):
        raise TypeError(
            f"Arturo: parameter {which} is of dtype {param.dtype}; only floating-point and complex parameters can be "
            "optimised. Leave integer buffers out of the parameter list."
        )
    if param.layout != torch.strided:
        raise TypeError(f"Arturo: parameter {which} has layout {param.layout}; only dense parameters are supported.")


def check_layout(param: Tensor, process_group: Any) -> None:
    """Raise where a parameter is a shard whose sums this optimizer would take over the local part alone.

    One multiplier couples all parameters: summed over a shard only, every rank would take a different step.

    Raises:
        NotImplementedError: DTensor parameters (FSDP2, tensor parallelism).
        ValueError: flat shards (FSDP1) without ``process_group``.
    """
    if hasattr(param, "device_mesh") and hasattr(param, "placements"):
        raise NotImplementedError(
            "Arturo: DTensor parameters (FSDP2, tensor parallelism) are not supported yet: the trust region needs sums "
            "over all shards. Use DDP, where parameters are replicated."
        )
    if getattr(param, "_fsdp_flattened", False) and process_group is None:
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
