"""Optimizers, built once before anything is loaded or trained: what one refuses ends a recipe with one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from recipes.text.errors import InputError, reason

#: What a recipe has in the place of what an error names, which a script would have.
_WRITTEN_HERE = {
    "TrainingArguments(learning_rate=...)": "--lr",
    "TrainingArguments(weight_decay=...)": "--weight-decay",
    'optim_args="': '--optim-args "',
    "For minimize=False give maximize=True; otherwise leave it out.": "Recipes minimise: leave it out.",
}


def try_optimizer(option: str, build: Callable[[Any], Any]) -> None:
    """Raise an InputError unless an optimizer can be built from what was given, and makes a loss smaller.

    Args:
        option: of the command line, named in the error.
        build: takes a network of six weights, returns its optimizer; or something else, which is not looked at.
    """
    import torch

    network = torch.nn.Linear(2, 2)
    try:
        built = build(network)
    except Exception as error:  # of any type: every optimizer has its own
        raise InputError(f"{option}: {_without_prefixes(reason(error, 600))}") from error
    if any(group.get("maximize") for group in getattr(built, "param_groups", ())):
        raise InputError(f"{option}: maximize=True makes the loss larger, and recipes make it smaller; leave it out")


def _without_prefixes(message: str) -> str:
    """An error as the command line has it: it names the option itself."""
    message = re.sub(r"^((Arturo|optim_args): )+", "", message)
    for theirs, ours in _WRITTEN_HERE.items():
        message = message.replace(theirs, ours)
    return message
