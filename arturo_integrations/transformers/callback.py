"""Adds what :meth:`arturo_core.Arturo.diagnostics` reports to the Trainer's own logs."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from arturo_integrations.metrics import PREFIX, find_arturo, loggable


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
