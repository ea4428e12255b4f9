"""What transformers makes of the options, tried before anything is trained."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from recipes.arguments import known, nearest
from recipes.text.errors import InputError, reason
from recipes.trial import try_optimizer

Loaded = TypeVar("Loaded")


def load_model(name: str, packaged: str, load: Callable[[], Loaded]) -> Loaded:
    """What `load` returns: a model, a tokenizer, a configuration.

    Args:
        name: as given by --model.
        packaged: the model that needs no network.
        load: calls transformers.

    Raises:
        InputError: transformers cannot load it.
    """
    try:
        return load()
    except Exception as error:  # of any type: what a foreign folder is taken for decides
        offline = " without a network" if os.environ.get("HF_HUB_OFFLINE") == "1" and not os.path.exists(name) else ""
        raise InputError(
            f"--model {name} cannot be loaded{offline} ({reason(error)}): give {packaged}, a folder with a model, or a "
            f"hub name{nearest(name, [packaged])}"
        ) from error


def check_length(option: str, wanted: int, longest: int, config: Any) -> None:
    """Raise an InputError if texts are longer than a model has positions for."""
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if isinstance(positions, int) and longest > positions > 0:
        raise InputError(f"{option} {wanted}: the model has {positions} positions; give at most {positions}")


def check_schedule(name: str, steps: int, warmup: int, by_step: bool = False) -> None:
    """Raise an InputError unless a schedule can be built from a name and numbers of steps.

    `by_step`: and needs nothing else after a step, such as a validation loss.
    """
    from transformers.trainer_utils import SchedulerType

    names = [one.value for one in SchedulerType]
    known("--schedule", name, names)
    if (error := _schedule_error(name, steps, warmup, by_step)) is not None:
        usable = [one for one in names if _schedule_error(one, steps, warmup, by_step) is None]
        raise InputError(
            f"--schedule {name} needs more than this recipe gives it ({reason(error)}): choose of {', '.join(usable)}"
        ) from error


def _schedule_error(name: str, steps: int, warmup: int, by_step: bool) -> Exception | None:
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        schedule = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
        optimizer.step()
        if by_step:
            schedule.step()
    except Exception as error:  # of any type: every schedule has its own needs
        return error
    return None


def check_optimizer(option: str, arguments: Any) -> None:
    """Raise an InputError unless the Trainer can build the optimizer of its arguments, as far as can be tried here.

    Those of torch and arTuRO are built; of others only the package is looked for.
    """
    from transformers import Trainer

    def build(network: Any) -> Any:
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments, network)
        if not kind.__module__.startswith(("torch.", "arturo_core.")):
            return kind
        return kind(network.parameters(), **{**settings, "weight_decay": arguments.weight_decay})

    try_optimizer(option, build)


def check_tokens(option: str, wanted: int, tokenizer: Any) -> None:
    """Raise an InputError unless texts keep a token of their own beside those that mark their ends."""
    marks = tokenizer.num_special_tokens_to_add()
    if wanted <= marks:
        raise InputError(
            f"{option} {wanted} leaves nothing of a text: the model puts {marks} tokens around it; give at least "
            f"{marks + 1}"
        )


def check_tracker(name: str | None) -> None:
    """Raise an InputError unless Accelerate has a tracker of a name, and its package is installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in (None, "all"):
        names = sorted(str(getattr(one, "value", one)) for one in LOGGER_TYPE_TO_CLASS)
        known("--log-with", name, names)
        if name not in {str(getattr(one, "value", one)) for one in get_available_trackers()}:
            raise InputError(f"--log-with {name}: its package is not installed: pip install {name}")


def optimizer_names() -> list[str]:
    """All that the Trainer takes."""
    from transformers.training_args import OptimizerNames

    return [one.value for one in OptimizerNames]
