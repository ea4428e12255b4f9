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

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from arturo_core import habits
from arturo_core.contexts import is_fake, is_readable, lasting
from arturo_core.options import (
    CURVATURE_RANGE,
    LARGEST_LR,
    LENGTH_PER_LR,
    Options,
    as_float,
    check_group,
    shown,
)
from arturo_core.step.learning_rate import GroupRates
from arturo_core.step.transaction import Journal
from arturo_core.step.work import Outcome


class _Entry(NamedTuple):
    """Value of a new group, dtype, and the range that steps stay in."""

    default: float
    dtype: torch.dtype
    least: float
    most: float

    def tensor(self, value: float) -> Tensor:
        """A value of this entry, 0-dimensional, on the CPU."""
        return torch.tensor(value, dtype=torch.float64, device="cpu").to(self.dtype)


#: More steps than anybody takes; floats count them exactly.
_STEPS = 2**53

_TENSORS = {
    "peak_lr": _Entry(0.0, torch.float64, 0.0, max(LARGEST_LR.values())),
    "skipped": _Entry(0, torch.int64, 0, _STEPS),
    "level": _Entry(1.0, torch.float64, 0.5 * CURVATURE_RANGE[0], 2.0 * CURVATURE_RANGE[1]),
    "length": _Entry(0.0, torch.float64, 0.0, 2.0 * LENGTH_PER_LR * LARGEST_LR["rms"]),
}
_CALLS = _Entry(0, torch.int64, 0, _STEPS)

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
        for key, entry in _TENSORS.items():
            value = group.get(key, shared.get(key, entry.default))
            # What a step has left keeps its dtype and device.
            group[key] = (value.detach().reshape(()) if isinstance(value, Tensor) else entry.tensor(value)).clone()


def adopt(group: dict[str, Any], options: Options) -> None:
    """Make tensors of plain numbers that a user has set.

    Raises:
        ValueError: a value that no step could go on from, as far as it can be read without waiting for a device.
    """
    for key, entry in _TENSORS.items():
        value = group.get(key, entry.default)
        if isinstance(value, Tensor) and value.shape == () and not is_readable(value):
            continue
        number = _checked(key, value, entry, options)
        if not isinstance(value, Tensor):
            with lasting():
                group[key] = entry.tensor(number)
        elif value.shape != () or value.dtype != entry.dtype:
            with lasting():
                group[key] = value.detach().reshape(()).to(entry.dtype)
    group["calls"] = int(_checked("calls", group.get("calls", 0), _CALLS, options))


def forget_schedule(group: dict[str, Any], statistics: bool) -> None:
    """Have a group forget the learning rates that it had, and the level of curvature if statistics go with them."""
    renewed = ("peak_lr", "length", "level") if statistics else ("peak_lr", "length")
    for key, entry in _TENSORS.items():
        value = group.get(key)
        # In place, as a captured graph needs it.
        if isinstance(value, Tensor) and value.shape == () and value.dtype == entry.dtype:
            if key in renewed:
                value.fill_(entry.default)
        elif key in renewed or not _is_usable(as_float(value), entry):
            with lasting():
                group[key] = entry.tensor(entry.default)
    if not _is_usable(as_float(group.get("calls")), _CALLS):
        group["calls"] = 0


def check_loaded(saved: Mapping[str, Any], defaults: Mapping[str, Any], options: Options, hollow: bool = False) -> None:
    """Refuse a saved parameter group that no step could go on from, before anything is changed.

    Args:
        saved: the group.
        defaults: of the optimizer, for what it lacks.
        options: of the optimizer.
        hollow: whether the parameters hold no numbers, so that the group's tensors need hold none.

    Raises:
        ValueError, TypeError: a value is out of range, or the group is of another form or trust region.
    """
    for key, here in form(options).items():
        if key in saved and as_float(saved[key]) not in (0.0, 1.0) and not isinstance(saved[key], bool):
            raise ValueError(f"Arturo: {key!r} of a parameter group to load is {shown(saved[key])}, not True or False.")
        if key in saved and bool(saved[key]) != here:
            names = {"adaptive_noise": ("noise", "fixed", "adaptive"), "lr_in_nats": ("trust_region", "rms", "kl")}
            option, no, yes = names[key]
            theirs, ours = (yes, no) if saved[key] else (no, yes)
            raise ValueError(
                f'Arturo: the state to load was saved with {option}="{theirs}", and this optimizer has {option}='
                f'"{ours}". Build it with the options that it was saved with.'
            )
    for key, entry in {**_TENSORS, "calls": _CALLS}.items():
        if key in saved and not (hollow and isinstance(saved[key], Tensor) and is_fake(saved[key])):
            _checked(key, saved[key], entry, options)
    counts = [as_float(saved.get(key)) for key in ("skipped", "calls")]
    if None not in counts and counts[0] > counts[1]:  # type: ignore[operator]  # no None among them
        raise ValueError(
            f"Arturo: a parameter group to load has skipped {counts[0]:g} of {counts[1]:g} steps: the checkpoint is "
            "damaged. Load an earlier one."
        )
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


def _checked(key: str, value: Any, entry: _Entry, options: Options) -> float:
    if key == "peak_lr":
        entry = entry._replace(most=LARGEST_LR[options.trust_region])
    number = as_float(value)
    if number is None or not _is_usable(number, entry):
        raise ValueError(
            f"Arturo: {key!r} of a parameter group is {shown(value)}; it must be a number from {entry.least:g} to "
            f"{entry.most:g}. restart_schedule() sets it right."
        )
    return number


def _is_usable(number: float | None, entry: _Entry) -> bool:
    return number is not None and entry.least <= number <= entry.most


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
