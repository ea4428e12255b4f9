"""What transformers makes of the options, tried before anything is trained."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from recipes.arguments import known, nearest
from recipes.text.errors import InputError, reason

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
    import torch
    from transformers import get_scheduler
    from transformers.trainer_utils import SchedulerType

    known("--schedule", name, [one.value for one in SchedulerType])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        schedule = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
        optimizer.step()
        if by_step:
            schedule.step()
    except Exception as error:  # of any type: every schedule has its own needs
        raise InputError(f"--schedule {name} needs more than this recipe gives it ({reason(error)})") from error


def check_optimizer(option: str, arguments: Any) -> None:
    """Raise an InputError unless the Trainer can build the optimizer of its arguments."""
    import torch
    from transformers import Trainer

    from arturo_core import Arturo

    network: Any = torch.nn.Linear(2, 2)
    try:
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments, network)
        if kind is Arturo:
            Arturo(network.parameters(), **settings)
    except Exception as error:  # of any type: every package has its own
        raise InputError(f"{option}: {reason(error, 600)}") from error


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
