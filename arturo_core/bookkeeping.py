"""What the optimizer itself keeps in a parameter group, beside the hyper-parameters of its user.

============== ========================================================================================================
Key            Value
============== ========================================================================================================
peak_lr        the largest lr that a step of the group had; a 0-dimensional tensor
calls          steps asked for
skipped        steps not taken because a gradient was not finite; a 0-dimensional int64 tensor
level          mean relative curvature at the last step, the same in all groups; a 0-dimensional tensor
length         ℓ (weight units), from the largest lr that counted; 0 until the weights' size has been seen, and then ℓ
               follows from peak_lr; a 0-dimensional tensor
adaptive_noise whether the statistics are of ``noise="adaptive"``: it tells a state dict's form
lr_in_nats     whether lr is a bound in nats (``trust_region="kl"``)
============== ========================================================================================================

The tensors are values that only the device knows: reading one would wait for it. Plain numbers may be set in their
place. :meth:`arturo_core.Arturo.restart_schedule` has the groups forget the learning rates that they had.

What says the form are booleans: flattened distributed checkpoints hold no text.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from arturo_core import habits
from arturo_core.contexts import is_fake, lasting
from arturo_core.options import Options, as_float, check_group, shown
from arturo_core.stepping import GroupRates, Outcome
from arturo_core.transaction import Journal

#: The tensors: value of a new group, dtype, least value.
_TENSORS: dict[str, tuple[float, torch.dtype, float]] = {
    "peak_lr": (0.0, torch.float64, 0.0),
    "skipped": (0, torch.int64, 0),
    "level": (1.0, torch.float64, math.ulp(0.0)),
    "length": (0.0, torch.float64, 0.0),
}

#: Keys that a group has of this optimizer and of no other.
KEYS = (*_TENSORS, "calls", "adaptive_noise", "lr_in_nats")


def form(options: Options) -> dict[str, bool]:
    """The entries that tell what a state dict is of."""
    return {"adaptive_noise": options.noise == "adaptive", "lr_in_nats": options.trust_region == "kl"}


def first(groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The group whose shared entries count: the first that has parameters."""
    return next((group for group in groups if group["params"]), groups[0])


def complete(group: dict[str, Any], first: dict[str, Any], options: Options) -> None:
    """Add the keys that a group lacks, those that all groups share as the first has them; tensors become its own."""
    group.setdefault("calls", first.get("calls", 0))
    group.update(form(options))
    shared: dict[str, Any] = {key: first[key] for key in ("skipped", "level") if key in first}
    with lasting():
        for key, (default, dtype, _) in _TENSORS.items():
            value = group.get(key, shared.get(key, default))
            # What a step has left keeps its dtype and device.
            if not isinstance(value, Tensor):
                value = torch.tensor(value, dtype=dtype, device="cpu")
            group[key] = value.detach().reshape(()).clone()


def adopt(group: dict[str, Any]) -> None:
    """Make tensors of plain numbers that a user has set.

    Raises:
        ValueError: a value that no step could go on from.
    """
    for key, (default, dtype, least) in _TENSORS.items():
        value = group.get(key, default)
        if not isinstance(value, Tensor):
            number = _checked(key, value, least)
            with lasting():
                group[key] = torch.tensor(number, dtype=torch.float64, device="cpu").to(dtype)


def forget_schedule(group: dict[str, Any], statistics: bool) -> None:
    """Have a group forget the learning rates that it had, and the level of curvature if statistics go with them."""
    renewed = ("peak_lr", "length", "level") if statistics else ("peak_lr", "length")
    for key, (default, dtype, least) in _TENSORS.items():
        value = group.get(key)
        if isinstance(value, Tensor):
            if key in renewed:
                value.fill_(default)
        elif key in renewed or not _is_usable(value, least):
            with lasting():
                group[key] = torch.tensor(default, dtype=dtype, device="cpu")


def check_loaded(saved: Mapping[str, Any], defaults: Mapping[str, Any], options: Options) -> None:
    """Refuse a saved parameter group that no step could go on from, before anything is changed.

    Raises:
        ValueError, TypeError: a value is out of range, or the group is of another form or trust region.
    """
    for key, here in form(options).items():
        if key in saved and bool(saved[key]) != here:
            names = {"adaptive_noise": ("noise", "fixed", "adaptive"), "lr_in_nats": ("trust_region", "rms", "kl")}
            option, no, yes = names[key]
            theirs, ours = (yes, no) if saved[key] else (no, yes)
            raise ValueError(
                f'Arturo: the state to load was saved with {option}="{theirs}", and this optimizer has {option}='
                f'"{ours}". Build it with the options that it was saved with.'
            )
    for key, (_, _, least) in _TENSORS.items():
        if key in saved:
            _checked(key, saved[key], least)
    if "calls" in saved:
        _checked("calls", saved["calls"], 0.0)
    check_group({**defaults, **saved}, options)


def is_foreign(saved: Mapping[str, Any]) -> bool:
    """Whether a saved parameter group has nothing of this optimizer."""
    return not any(key in saved for key in KEYS)


def warn_of_missing(saved: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]) -> None:
    """Name the entries that groups about to be loaded lack, if there are any."""
    # Nothing depends on the schedulers' momentum, which older versions did not have.
    expected = {*defaults, *KEYS} - {habits.MOMENTUM}
    # Distributed checkpointing loses all entries of an empty first group; there nothing depends on them.
    lacking = sorted({key for group in saved if group["params"] for key in expected - group.keys()})
    if lacking:
        warnings.warn(
            f"Arturo: the parameter groups of the checkpoint lack {', '.join(lacking)}; it may be of an older version. "
            "What they counted starts anew, or is inferred from the learning rate.",
            stacklevel=8,
        )


def _checked(key: str, value: Any, least: float) -> float:
    if isinstance(value, Tensor) and is_fake(value):
        return least
    number = as_float(value)
    if not _is_usable(number, least):
        meaning = "at least 0" if least in (0, 0.0) else "positive"
        raise ValueError(
            f"Arturo: {key!r} of a parameter group is {shown(value)}; it must be a finite number, {meaning}. "
            "restart_schedule() sets it right."
        )
    assert number is not None
    return number


def _is_usable(value: Any, least: float) -> bool:
    number = as_float(value)
    return number is not None and least <= number < math.inf


def after_step(
    groups: Sequence[dict[str, Any]], ok: Tensor, outcome: Outcome, rates: Mapping[int, GroupRates], journal: Journal
) -> None:
    """Write down a step, taken (``ok`` 1) or skipped (0), and what it found; in place, as a captured graph needs it.

    Everything is computed first and written at once, so that an exception comes before all of it.

    Args:
        groups: of the optimizer.
        ok: 0-dimensional, wide.
        outcome: of the step.
        rates: of the groups that took part, by index.
        journal: of the step.
    """
    entries: list[tuple[dict[str, Any], str, Tensor]] = []
    for index, group in enumerate(groups):
        entries.append((group, "skipped", group["skipped"].to(ok.device) + (ok == 0.0)))
        if outcome.level is not None:
            entries.append((group, "level", outcome.level))
        if index in rates:
            for key, value in (("peak_lr", rates[index].peak), ("length", rates[index].longest)):
                entries.append((group, key, torch.where(ok > 0.0, value, group[key].to(value))))
    with lasting():
        held = [group[key].to(value) for group, key, value in entries]
    targets, values = [*held, *outcome.scalars[0]], [*(value for *_, value in entries), *outcome.scalars[1]]
    journal.write(partial(torch._foreach_copy_, targets, values), targets)
    for (group, key, _), value in zip(entries, held, strict=True):
        group[key] = value
    for group in groups:
        group["calls"] += 1
