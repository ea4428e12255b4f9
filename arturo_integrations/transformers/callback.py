"""Adds what :meth:`arturo_core.Arturo.diagnostics` reports to the Trainer's own logs."""

from __future__ import annotations

import functools
from typing import Any

from transformers import TrainerCallback

from arturo_core.layers import LayerWatch
from arturo_integrations.metrics import PREFIX, arturo_metrics, find_arturo, layer_metrics, reported


class ArturoDiagnosticsCallback(TrainerCallback):
    """Writes ``arturo/<key>`` for every number in ``optimizer.diagnostics()`` beside the logged loss.

    Registration puts it among the Trainer's default callbacks, which run before TensorBoard, Weights & Biases
    and the other reporters: a callback that the user passes runs after them, when they have already written
    the record. It does nothing in a run whose optimizer is not an ``Arturo``.

    None and non-finite values are left out: neither JSON nor every reporter can hold them.

    Args:
        per_layer: put ``arturo/layer/<layer>/<number>`` (:class:`arturo_core.layers.LayerWatch`) into the log history,
            and so into ``trainer_state.json``; not into reporters and the console, for there are seven a parameter.
        advice: warn, once each, where the numbers speak against a setting (:class:`arturo_core.advice.Advisor`).
    """

    def __init__(self, per_layer: bool = False, advice: bool = True) -> None:
        self.per_layer = per_layer
        self.advice = advice
        self._watch: LayerWatch | None = None

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Finds the optimizer of this run."""
        arturo = find_arturo(optimizer)
        if self._watch is not None:
            self._watch.close()
        self._watch = LayerWatch(arturo, model.named_parameters()) if arturo is not None and self.per_layer else None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Watches the steps that will be logged."""
        batches = kwargs.get("train_dataloader")
        if self._watch is not None and _is_logged(args, state, state.global_step + 1, batches):
            self._watch.arm()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Lets go of the optimizer."""
        if self._watch is not None:
            self._watch.close()
        self._watch = None

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
        clipped = _clipped(args, logs)
        numbers = reported(lambda: arturo_metrics(arturo, advice=self.advice, clipped=clipped))
        logs.update(numbers)
        # The Trainer has stored a copy of `logs` before it calls its callbacks; a Trainer with a `log` of its
        # own may not have.
        if state.log_history:
            stored = state.log_history[-1]
            if "loss" in stored and stored.get("step") == state.global_step:
                stored.update(numbers)
                if self._watch is not None and self._watch.is_current:
                    stored.update(reported(functools.partial(layer_metrics, self._watch)))


def _clipped(args: Any, logs: dict[str, Any]) -> bool | None:
    """Whether the gradients of the logged step were rescaled; Trainer logs their norm as it was before."""
    limit = getattr(args, "max_grad_norm", None)
    if limit is None or (limit and "grad_norm" not in logs):
        return None
    return bool(limit) and float(logs["grad_norm"]) > limit


def _is_logged(args: Any, state: Any, step: int, batches: Any) -> bool:
    """Whether Trainer will log after a step, counted from 1, as far as its arguments tell."""
    strategy = str(getattr(args.logging_strategy, "value", args.logging_strategy))
    if strategy == "steps":
        return step % max(1, int(state.logging_steps)) == 0 or bool(step == 1 and args.logging_first_step)
    if strategy == "epoch" and hasattr(batches, "__len__"):
        return step % max(1, -(-len(batches) // args.gradient_accumulation_steps)) == 0 or step == int(state.max_steps)
    return False


def log_layers(trainer: Any) -> None:
    """Have a Trainer log what each layer does in the logged steps: which spend the KL divergence, which have learned.

    Call it before ``train()``, of a Trainer with ``optim="arturo"`` or an own :class:`ArturoDiagnosticsCallback`. The
    records of ``trainer.state.log_history`` and ``trainer_state.json`` get ``arturo/layer/<layer>/<number>``; seven
    numbers a parameter are too many for the console.

    Raises:
        ValueError: the Trainer has no such callback.
    """
    found = [one for one in trainer.callback_handler.callbacks if isinstance(one, ArturoDiagnosticsCallback)]
    if not found:
        raise ValueError(
            "Arturo: the Trainer has no ArturoDiagnosticsCallback. Import arturo_integrations.transformers before the "
            "Trainer is built, or pass one in callbacks=."
        )
    for callback in found:
        callback.per_layer = True
