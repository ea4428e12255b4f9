"""What the optimizer itself keeps in a parameter group, beside the hyper-parameters of its user.

========== ============================================================================================================
Key        Value
========== ============================================================================================================
peak_lr    the largest lr that a step of the group had
calls      steps asked for
skipped    steps not taken because a gradient was not finite; a 0-dimensional int64 tensor
level      mean relative curvature at the last step, the same in all groups; a 0-dimensional tensor
length     ℓ (weight units), from the largest lr that counted; a 0-dimensional tensor
========== ============================================================================================================

The tensors are values that only the device knows: reading one would wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from arturo_core.options import LENGTH_PER_LR, Options


def first(groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The group whose shared entries count: the first that has parameters."""
    return next((group for group in groups if group["params"]), groups[0])


def complete(group: dict[str, Any], first: dict[str, Any], options: Options) -> None:
    """Add the keys that a group lacks; those that all groups share as the first has them."""
    group.setdefault("peak_lr", 0.0)
    group.setdefault("calls", first.get("calls", 0))
    group.setdefault("level", torch.as_tensor(first.get("level", 1.0), dtype=torch.float64).clone())
    # Of a checkpoint from before the length was kept: it followed from the peak.
    length = LENGTH_PER_LR * group["peak_lr"] if options.length_scale is None else options.length_scale
    group.setdefault("length", torch.as_tensor(length, dtype=torch.float64).clone())
    group.setdefault("skipped", torch.as_tensor(first.get("skipped", 0), dtype=torch.int64).clone())


def after_step(
    groups: Sequence[dict[str, Any]], ok: Tensor, level: Tensor | None, lengths: Mapping[int, Tensor]
) -> None:
    """Write down a step, taken (``ok`` 1) or skipped (0), and what it found; in place, as a captured graph needs it.

    Args:
        groups: of the optimizer.
        ok: 0-dimensional, wide.
        level: mean relative curvature, or None (the full form has none, nor a length).
        lengths: ℓ of the groups that took part, by index.
    """
    for index, group in enumerate(groups):
        group["calls"] += 1
        group["skipped"] = group["skipped"].to(ok.device).add_(ok == 0.0)
        if level is None:
            continue
        group["level"] = group["level"].to(level).copy_(level)
        if index in lengths:
            length = group["length"].to(lengths[index])
            group["length"] = length.copy_(torch.where(ok > 0.0, lengths[index], length))
