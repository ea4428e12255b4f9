"""Adds what :meth:`arturo_core.Arturo.diagnostics` reports to the Trainer's own logs."""

from __future__ import annotations

import functools
from typing import Any

from transformers import TrainerCallback

from arturo_core.reporting.layers import LayerWatch
from arturo_integrations import switch
from arturo_integrations.metrics import PREFIX, arturo_metrics, find_arturo, layer_metrics, reported
from arturo_integrations.transformers import records


class ArturoDiagnosticsCallback(TrainerCallback):
    """Writes ``arturo/<key>`` for every number in ``optimizer.diagnostics()`` into the training records.

    A training record is known by what it holds and when it comes (:mod:`.records`), for some trainers call the loss
    by another name.

    Registration puts it among the Trainer's default callbacks, which run before TensorBoard, Weights & Biases
    and the other reporters: a callback that the user passes runs after them, when they have already written
    the record. It does nothing in a run whose optimizer is not an ``Arturo``, nor under ``ARTURO_MONITOR=0``.
    The console gets a few of the numbers (:mod:`.console`).

    None and non-finite values are left out: neither JSON nor every reporter can hold them.

    Args:
        per_layer: put ``arturo/layer/<layer>/<number>`` (:class:`arturo_core.reporting.layers.LayerWatch`) into the log
        history,
            and so into ``trainer_state.json``; not into reporters and the console, for there are seven a parameter.
        advice: warn, once each, where the numbers speak against a setting
        (:class:`arturo_core.reporting.advice.Advisor`).
    """

    def __init__(self, per_layer: bool = False, advice: bool = True) -> None:
        self.per_layer = per_layer
        self.advice = advice
        self._watch: LayerWatch | None = None
        self._due: bool | None = None
        self._recorded = -1

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Finds the optimizer of this run."""
        self._close()
        arturo = find_arturo(optimizer)
        if arturo is not None and self.per_layer and not switch.is_off():
            self._watch = LayerWatch(arturo, kwargs.get("st_model", model).named_parameters())

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Watches the steps that will be logged."""
        batches = kwargs.get("train_dataloader")
        if self._watch is not None and _is_logged(_own(args, kwargs), state, state.global_step + 1, batches):
            self._watch.arm()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What is logged from here on, inside the step, is not the Trainer's record of it."""
        self._due = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What is logged next is the record of this step, if Trainer is about to write one."""
        self._due = self._is_due(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What is logged next is the record of the last step, if Trainer is about to write one."""
        self._due = self._is_due(state, control)

    def _is_due(self, state: Any, control: Any) -> bool:
        """Trainer writes one record of a step, where its end is that of an epoch too."""
        return bool(control.should_log) and state.global_step != self._recorded

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Lets go of the optimizer."""
        self._close()

    def _close(self) -> None:
        if self._watch is not None:
            self._watch.close()
        self._watch, self._due, self._recorded = None, None, -1

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, Any] | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Extends a training record in place."""
        due, self._due = self._due, None if self._due is None else False
        if not logs or switch.is_off() or not records.is_training(logs, due):
            return
        self._recorded = state.global_step
        arturo = find_arturo(optimizer)
        # The prefix is there already when a user has added this callback a second time.
        if arturo is None or any(str(key).startswith(PREFIX) for key in logs):
            return
        clipped = _clipped(_own(args, kwargs), logs)
        numbers = reported(lambda: arturo_metrics(arturo, advice=self.advice, clipped=clipped))
        # The Trainer has stored a copy of `logs` before it calls its callbacks; a Trainer with a `log` of its
        # own may not have.
        stored = records.stored(logs, state)
        logs.update(numbers)
        if stored is not None:
            stored.update(numbers)
            if self._watch is not None and self._watch.is_current:
                stored.update(reported(functools.partial(layer_metrics, self._watch)))


def _own(args: Any, others: dict[str, Any]) -> Any:
    """The Trainer's own arguments: setfit gives callbacks its own in their place, and these beside them."""
    return others.get("st_args", args)


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
