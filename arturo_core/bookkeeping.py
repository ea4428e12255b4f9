"""What the optimizer itself keeps in a parameter group, beside the hyper-parameters of its user.

========== ============================================================================================================
Key        Value
========== ============================================================================================================
peak_lr    the largest lr that a step of the group had; a 0-dimensional tensor
calls      steps asked for
skipped    steps not taken because a gradient was not finite; a 0-dimensional int64 tensor
level      mean relative curvature at the last step, the same in all groups; a 0-dimensional tensor
length     ℓ (weight units), from the largest lr that counted; 0 until the weights' size has been seen, and then ℓ
           follows from peak_lr; a 0-dimensional tensor
========== ============================================================================================================

The tensors are values that only the device knows: reading one would wait for it. Set ``peak_lr`` and ``length`` to zero
to have a group forget the learning rates that it had.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from arturo_core.stepping import GroupRates


def first(groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The group whose shared entries count: the first that has parameters."""
    return next((group for group in groups if group["params"]), groups[0])


def warn_of_missing(saved: Sequence[dict[str, Any]], defaults: Mapping[str, Any]) -> None:
    """Name the entries that groups about to be loaded lack, if there are any."""
    expected = {*defaults, "peak_lr", "calls", "skipped", "level", "length"}
    # Distributed checkpointing loses all entries of an empty first group; there nothing depends on them.
    lacking = sorted({key for group in saved if group["params"] for key in expected - group.keys()})
    if lacking:
        warnings.warn(
            f"Arturo: the parameter groups of the checkpoint lack {', '.join(lacking)}; it may be of an older version. "
            "What they counted starts anew, or is inferred from the learning rate.",
            stacklevel=8,
        )


def complete(group: dict[str, Any], first: dict[str, Any]) -> None:
    """Add the keys that a group lacks, those that all groups share as the first has them; tensors become its own."""
    group.setdefault("calls", first.get("calls", 0))
    defaults = {
        "peak_lr": (0.0, torch.float64),
        "skipped": (first.get("skipped", 0), torch.int64),
        "level": (first.get("level", 1.0), torch.float64),
        "length": (0.0, torch.float64),
    }
    for key, (default, dtype) in defaults.items():
        value = group.get(key, default)
        # What a step has left keeps its dtype and device.
        value = value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype)
        group[key] = value.reshape(()).clone()


def after_step(
    groups: Sequence[dict[str, Any]], ok: Tensor, level: Tensor | None, rates: Mapping[int, GroupRates]
) -> None:
    """Write down a step, taken (``ok`` 1) or skipped (0), and what it found; in place, as a captured graph needs it.

    Args:
        groups: of the optimizer.
        ok: 0-dimensional, wide.
        level: mean relative curvature, or None (the full form has none, nor a length).
        rates: of the groups that took part, by index.
    """
    for index, group in enumerate(groups):
        group["calls"] += 1
        group["skipped"] = group["skipped"].to(ok.device).add_(ok == 0.0)
        if level is not None:
            group["level"] = group["level"].to(level).copy_(level)
        if index in rates:
            for key, value in (("peak_lr", rates[index].peak), ("length", rates[index].longest)):
                before = group[key].to(value)
                group[key] = before.copy_(torch.where(ok > 0.0, value, before))
