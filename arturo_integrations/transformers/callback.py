"""Adds what :meth:`arturo_core.Arturo.diagnostics` reports to the Trainer's own logs."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from transformers import TrainerCallback

from arturo_core import Arturo

PREFIX = "arturo/"


class ArturoDiagnosticsCallback(TrainerCallback):
    """Writes ``arturo/<key>`` for every number in ``optimizer.diagnostics()`` beside the logged loss.

    Registration puts it among the Trainer's default callbacks, which run before TensorBoard, Weights & Biases
    and the other reporters: a callback that the user passes runs after them, when they have already written
    the record. It does nothing in a run whose optimizer is not an ``Arturo``.

    None and non-finite values are left out: neither JSON nor every reporter can hold them.
    """

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, Any] | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Extends a training record in place; evaluation records and final summaries have no "loss"."""
        if not logs or "loss" not in logs:
            return
        arturo = find_arturo(optimizer)
        # The prefix is there already when a user has added this callback a second time.
        if arturo is None or any(key.startswith(PREFIX) for key in logs):
            return
        numbers = loggable(arturo.diagnostics())
        logs.update(numbers)
        # The Trainer has stored a copy of `logs` before it calls its callbacks; a Trainer with a `log` of its
        # own may not have.
        if state.log_history:
            stored = state.log_history[-1]
            if "loss" in stored and stored.get("step") == state.global_step:
                stored.update(numbers)


def find_arturo(optimizer: Any) -> Arturo | None:
    """Returns the ``Arturo`` inside an optimizer's wrappers (accelerate's and the like), or None."""
    seen: set[int] = set()
    while optimizer is not None and id(optimizer) not in seen:
        if isinstance(optimizer, Arturo):
            return optimizer
        seen.add(id(optimizer))
        optimizer = getattr(optimizer, "optimizer", None)
    return None


def loggable(diagnostics: dict[str, Any]) -> dict[str, int | float]:
    """Returns the finite numbers among the diagnostics as plain Python numbers under prefixed keys.

    Args:
        diagnostics: Numbers, bools, one-element tensors or anything else, by name.

    Returns:
        ``{"arturo/<name>": number}``; bools become 0 or 1 (reporters draw numbers only), everything that is
        not a finite number is left out.
    """
    numbers: dict[str, int | float] = {}
    for key, value in diagnostics.items():
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, bool):
            value = int(value)
        if isinstance(value, Real) and math.isfinite(value):
            numbers[PREFIX + key] = value if isinstance(value, int) else float(value)
    return numbers
