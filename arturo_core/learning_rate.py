"""What a group's learning rate asks of a step: the peak so far, the length ℓ, the share of the peak.

A learning rate may be a float, a tensor on the CPU, or a tensor whose value only its device knows; nothing here waits
for a device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from arturo_core.options import LENGTH_PER_LR, RADIUS_PER_LR, SHORTEST_LENGTH, Options
from arturo_core.stepping import GroupRates
from arturo_core.trust_region import wide_dtype


def rates(
    groups: Sequence[dict[str, Any]], taking_part: Sequence[int], options: Options, relative: Tensor
) -> dict[int, GroupRates]:
    """What the groups of a step ask of it, by index; raises their peak learning rates.

    Args:
        groups: of the optimizer.
        taking_part: indices of those that the step moves.
        options: of the optimizer.
        relative: trust radius that the weights' size allows, weight units; 0-dimensional, wide, where scalars live.

    Raises:
        ValueError: groups differ in lr with ``trust_region="kl"``.
    """
    if options.trust_region == "kl":
        values = {float(lr) for index in taking_part if known(lr := groups[index]["lr"])}
        if len(values) > 1:
            raise ValueError(
                f'Arturo: with trust_region="kl" lr is the KL bound of the whole step, one value for all groups, '
                f"but the groups have {', '.join(map(str, sorted(values)))}. Give them one lr, or use "
                'trust_region="rms" (0 freezes a group).'
            )
    found = {}
    for index in taking_part:
        group = groups[index]
        group["peak_lr"] = larger(group["peak_lr"], group["lr"])
        lr, decay = scalar(group["lr"], relative.device), group["weight_decay"]
        peak = scalar(group["peak_lr"], relative.device).clamp(min=torch.finfo(lr.dtype).tiny)
        if options.length_scale is None:
            reached = LENGTH_PER_LR * torch.where(torch.isfinite(lr), torch.minimum(lr, relative / RADIUS_PER_LR), lr)
            length = scalar(larger(group["length"].to(lr), reached), relative.device)
        else:
            length = scalar(options.length_scale, relative.device)
        found[index] = GroupRates(
            lr=lr * (relative / (RADIUS_PER_LR * peak)).clamp(max=1.0),
            decay=lr * decay if decay else None,
            length=length.clamp(min=SHORTEST_LENGTH),
            share=lr / peak,
            maximize=group["maximize"],
        )
    return found


def known(lr: float | Tensor) -> bool:
    """Whether lr can be read without waiting for a device (or breaking a graph that is being compiled)."""
    return not isinstance(lr, Tensor) or (lr.device.type == "cpu" and not torch.compiler.is_compiling())


def larger(peak: float | Tensor, lr: float | Tensor) -> float | Tensor:
    """The larger of two learning rates, passing over one that is not finite."""
    if isinstance(lr, Tensor):
        peak = torch.as_tensor(peak, dtype=lr.dtype, device=lr.device)
        return torch.where(torch.isfinite(lr), torch.maximum(peak, lr), peak)
    return max(float(peak), lr) if math.isfinite(lr) else float(peak)


def stands_still(lr: float | Tensor) -> bool:
    """Whether lr is known to be 0."""
    return known(lr) and float(lr) == 0.0


def scalar(value: float | Tensor, device: torch.device) -> Tensor:
    dtype = wide_dtype(device)
    if isinstance(value, Tensor):
        return value.detach().reshape(()).to(device=device, dtype=dtype)
    return torch.full((), value, dtype=dtype, device=device)
