"""What a group's learning rate asks of a step: the peak so far, the length ℓ, the share of the peak.

A learning rate may be a float, a tensor on the CPU, or a tensor whose value only its device knows; nothing here waits
for a device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from arturo_core.contexts import is_readable
from arturo_core.numerics import wide_dtype
from arturo_core.options import LENGTH_PER_LR, RADIUS_PER_LR, SHORTEST_LENGTH, STANDSTILL, Options, as_float


@dataclass(frozen=True)
class GroupRates:
    """What a parameter group asks of this step: 0-dimensional tensors, wide, on the home device.

    Attributes:
        lr: learning rate, as far as the weights' size lets it count, or the KL bound in nats.
        decay: lr × weight decay, at most 1 (which takes the whole weight away); None for none.
        length: ℓ, weight units.
        share: lr as a share of the group's largest so far.
        peak: the group's largest lr so far, this step's included.
        longest: ℓ to keep, or 0 where the weights' size has not been seen.
        maximize: whether the gradients are of a gain instead of a loss.
    """

    lr: Tensor
    decay: Tensor | None
    length: Tensor
    share: Tensor
    peak: Tensor
    longest: Tensor
    maximize: bool


def rates(
    groups: Sequence[dict[str, Any]], taking_part: Sequence[int], options: Options, relative: Tensor
) -> dict[int, GroupRates]:
    """What the groups of a step ask of it, by index.

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
    tiny = torch.finfo(relative.dtype).tiny
    for index in taking_part:
        group = groups[index]
        lr, decay = scalar(group["lr"], relative.device), group["weight_decay"]
        before, kept = scalar(group["peak_lr"], relative.device), scalar(group["length"], relative.device)
        peak = torch.where(torch.isfinite(lr), torch.maximum(before, lr), before)
        # A group whose weights' size is seen for the first time has been asked for its peak already.
        reached = LENGTH_PER_LR * torch.minimum(torch.where(kept > 0.0, lr, peak), relative / RADIUS_PER_LR)
        longest = torch.where(torch.isfinite(relative), torch.maximum(kept, reached), kept)
        found[index] = GroupRates(
            lr=lr * (relative / (RADIUS_PER_LR * peak.clamp(min=tiny))).clamp(max=1.0),
            decay=(lr * decay).clamp(max=1.0) if decay else None,
            length=_length(longest, peak, options),
            share=lr / peak.clamp(min=tiny),
            peak=peak,
            longest=longest,
            maximize=group["maximize"],
        )
    return found


def length(group: Mapping[str, Any], options: Options) -> Tensor:
    """ℓ of a parameter group at its last step, weight units; 0-dimensional."""
    return _length(group["length"], group["peak_lr"].to(group["length"]), options)


def _length(longest: Tensor, peak: Tensor, options: Options) -> Tensor:
    if options.length_scale is not None:
        return torch.full_like(longest, options.length_scale)
    return torch.where(longest > 0.0, longest, LENGTH_PER_LR * peak).clamp(min=SHORTEST_LENGTH)


def known(lr: float | Tensor) -> bool:
    """Whether lr can be read without waiting for a device (or breaking a graph that is being compiled)."""
    return not isinstance(lr, Tensor) or is_readable(lr)


def stands_still(lr: float | Tensor) -> bool:
    """Whether lr is known to be 0, or so small that its square would be."""
    return known(lr) and not is_none(lr) and float(lr) < STANDSTILL


def is_none(lr: Any) -> bool:
    """Whether lr is known to be nothing that a group may have: no number, negative or not finite."""
    if isinstance(lr, Tensor) and (lr.numel() != 1 or not known(lr)):
        return lr.numel() != 1
    number = as_float(lr)
    return number is None or not 0.0 <= number < math.inf


def scalar(value: float | Tensor, device: torch.device) -> Tensor:
    """A number as a tensor on a device: filled there, since the host would wait for a copy."""
    dtype = wide_dtype(device)
    if isinstance(value, Tensor) and value.device != device and is_readable(value):
        value = float(value)
    if isinstance(value, Tensor):
        return value.detach().reshape(()).to(device=device, dtype=dtype)
    return torch.full((), value, dtype=dtype, device=device)
