"""Parameters of a sharded model that its ranks hold whole, whose gradients differ between ranks."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def unsharded(model: nn.Module) -> list[str]:
    """Names of the trainable parameters that neither ``fully_shard`` nor FSDP1 has split."""
    return [
        name
        for name, param in model.named_parameters()
        if param.requires_grad and not (hasattr(param, "placements") or hasattr(param, "_fsdp_flattened"))
    ]


def few(names: Iterable[str]) -> str:
    """``parameters a, b, c and 4 more``, as the unwrapped model names them."""
    named = [name.replace("_fsdp_wrapped_module.", "") for name in names]
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return f"parameters {', '.join(named[:3])}{more}"
