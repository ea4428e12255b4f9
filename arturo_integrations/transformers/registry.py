"""Makes the Trainer build :class:`arturo_core.Arturo` for ``optim="arturo"``.

Which of transformers' hooks exist is found out by looking for them, never from a version number.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from typing import Any

import transformers.trainer as hf_trainer
from transformers import Trainer, TrainingArguments

from arturo_core import Arturo
from arturo_core.habits import HABITS
from arturo_core.reporting.advice import advise
from arturo_integrations import fsdp1
from arturo_integrations.transformers.callback import ArturoDiagnosticsCallback
from arturo_integrations.transformers.console import shorten
from arturo_integrations.transformers.names import OPTIMIZER_NAME, optimizer_name
from arturo_integrations.transformers.options import arturo_kwargs
from arturo_integrations.transformers.zero import ArturoZeroCallback, refuse_replacement

logger = logging.getLogger(__name__)


def register() -> None:
    """Registers the optimizer's name and construction, the logging of its diagnostics and its hook into ZeRO.

    Importing ``arturo_integrations.transformers`` calls this. It can be called any number of times.
    """
    optimizer_name()
    _register_handler()
    _wrap_trainer_lookup()
    shorten()
    default_callbacks: list[Any] = hf_trainer.DEFAULT_CALLBACKS
    for callback in (ArturoDiagnosticsCallback, ArturoZeroCallback):
        if callback not in default_callbacks:
            default_callbacks.append(callback)


def arturo_from_arguments(args: Any, model: Any = None) -> tuple[type[Arturo], dict[str, Any]]:
    """Answers the Trainer's question for an optimizer class and its keyword arguments.

    The parameter groups are not among them: the Trainer builds its own two, with and without weight decay.

    Args:
        args: The ``TrainingArguments``.
        model: The model as it will be trained, if it is known: FSDP1 has wrapped it by now.

    Returns:
        ``Arturo`` and its keyword arguments; under FSDP1 the ranks that hold the shards are among them.

    Raises:
        ValueError: ``optim_args`` cannot be read, DeepSpeed would train with another optimizer, or FSDP1 divides the
            model unevenly.
    """
    refuse_replacement(args)
    kwargs = arturo_kwargs(args.optim_args, args.learning_rate)
    group = None if model is None else fsdp1.process_group(model)
    advise(_without_effect(args))
    if args.max_grad_norm and args.max_grad_norm > 0:
        _explain_clipping(args.max_grad_norm)
    if group is None:
        return Arturo, kwargs
    return fsdp1.AllocatedArturo, {**kwargs, "process_group": group}


def _register_handler() -> None:
    """Adds the handler that transformers 5 looks up; earlier versions have no table of handlers."""
    try:
        from transformers.trainer_optimizer import _OPTIMIZER_HANDLERS
    except ImportError:
        return
    _OPTIMIZER_HANDLERS[OPTIMIZER_NAME] = lambda context: arturo_from_arguments(context.args, context.model)


def _wrap_trainer_lookup() -> None:
    """Answers for "arturo" in ``Trainer.get_optimizer_cls_and_kwargs`` and leaves all else to the original.

    Where there is no table of handlers this is the only hook. Where there is one it still comes first,
    because the Trainer splits ``optim_args`` before it calls a handler, and that fails on a trailing comma or
    a missing value with a message that names neither the option nor the key.
    """
    original = Trainer.get_optimizer_cls_and_kwargs
    if getattr(original, "_answers_for_arturo", False):
        return

    @functools.wraps(original)
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, Any]:
        if args.optim == OPTIMIZER_NAME:
            return arturo_from_arguments(args, model)
        return original(args, model)

    get_optimizer_cls_and_kwargs._answers_for_arturo = True  # type: ignore[attr-defined]
    Trainer.get_optimizer_cls_and_kwargs = staticmethod(get_optimizer_cls_and_kwargs)  # type: ignore[method-assign]


def _without_effect(args: Any) -> list[str]:
    """What to say of training arguments that are not the defaults and that no ``Arturo`` is given."""
    declared = args if dataclasses.is_dataclass(args) else TrainingArguments
    defaults = {field.name: field.default for field in dataclasses.fields(declared)}
    names = ("adam_beta1", "adam_beta2", "adam_epsilon")
    values = {name: given for name in names if (given := getattr(args, name, defaults[name])) != defaults[name]}
    return [
        f"TrainingArguments({name}={value!r}) has no effect: {name} is {HABITS[name]}" for name, value in values.items()
    ]


@functools.cache
def _explain_clipping(max_grad_norm: float) -> None:
    # Information and not a warning: 1.0 is the Trainer's default, so nearly every run would begin with it.
    logger.info(
        "max_grad_norm=%g: clipping rescales the gradients of some steps, and Arturo fits its gradient model "
        "to the rescaled ones. The trust region bounds the step anyway; max_grad_norm=0 turns clipping off. Which is "
        "better depends on the task.",
        max_grad_norm,
    )
