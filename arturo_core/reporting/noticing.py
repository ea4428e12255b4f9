"""What an optimizer notices of its surroundings, and says once: it never ends a training run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from arturo_core.reporting import not_in_codes, several, slow, sweeps

if TYPE_CHECKING:
    from arturo_core.optimizer import Arturo


def before_step(optimizer: Arturo) -> None:
    """Look for several optimizers of one model, sweeps of lr, a missing kernel, 8 bits that cannot be; cheap."""
    if torch.compiler.is_compiling():
        return
    found: list[str] = []
    for look in (several.notice, sweeps.notice, slow.notice, not_in_codes.notice):
        try:
            text = look(optimizer)
        except Exception as error:  # whatever modules of others raise when they are asked for their parameters
            logging.getLogger(__name__).warning("Arturo: what surrounds the optimizer was not looked at: %r", error)
        else:
            found += [] if text is None else [text]
    if found:
        _say(found)


def _say(found: list[str]) -> None:
    from arturo_core.reporting.advice import ArturoAdvice, advise  # which reads optimizers, and so imports them

    for text in found:
        try:
            advise([text])
        except ArturoAdvice as error:  # where warnings are errors
            logging.getLogger(__name__).warning("%s", error)
