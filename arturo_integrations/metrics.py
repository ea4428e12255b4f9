"""What :meth:`arturo_core.Arturo.diagnostics` reports, in the form and under the names that every logger gets.

One truth for all frameworks: the Trainer's records, Accelerate's trackers and Lightning's loggers hold the same keys.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from numbers import Real
from typing import Any
from weakref import WeakKeyDictionary

import torch

from arturo_core import Arturo
from arturo_core.reporting.advice import Advisor, advise
from arturo_core.reporting.layers import LayerWatch
from arturo_integrations.wrappers import find_arturo

__all__ = ["PREFIX", "arturo_metrics", "find_arturo", "layer_metrics", "loggable", "reported"]

PREFIX = "arturo/"

#: One for each optimizer whose metrics are asked for: advice is given once.
_advisors: WeakKeyDictionary[Arturo, Advisor] = WeakKeyDictionary()


def arturo_metrics(
    optimizer: Any, *, layers: LayerWatch | None = None, advice: bool = True, clipped: bool | None = None
) -> dict[str, int | float]:
    """The diagnostics of the ``Arturo`` inside an optimizer, as a flat dictionary for a logger.

    No collective is needed: any rank may call it alone. The numbers of the last step are the same on every rank; the
    quantiles (``curvature_q..``, ``precision_q..``) and ``step_resolution`` are of the parameters, or shards of them,
    that this rank holds.

    Args:
        optimizer: an ``Arturo``, or what a framework has wrapped around one
            (:func:`arturo_integrations.wrappers.find_arturo`).
        layers: a watch on the optimizer: if it was armed for this step, its numbers go in as well
            (:func:`layer_metrics`).
        advice: warn, once each, where the numbers speak against a setting
        (:class:`arturo_core.reporting.advice.ArturoAdvice`). clipped: whether clipping rescaled the gradients of this
        step, for the advice; None if that is not known.

    Returns:
        ``{"arturo/<name>": number}`` for every name in :meth:`arturo_core.Arturo.diagnostics` that has a finite value.

    Raises:
        TypeError: there is no ``Arturo`` inside.
    """
    arturo = find_arturo(optimizer)
    if arturo is None:
        raise TypeError(
            f"Arturo: no Arturo inside an optimizer of type {type(optimizer).__name__}. Pass the optimizer that "
            "training steps, wrapped or not."
        )
    diagnostics = arturo.diagnostics()
    if advice:
        advise(_advisors.setdefault(arturo, Advisor(arturo)).check(diagnostics, clipped))
    return loggable(diagnostics) | (layer_metrics(layers) if layers is not None and layers.is_current else {})


def reported(numbers: Callable[[], dict[str, int | float]]) -> dict[str, int | float]:
    """The numbers that a callback wants to log; none, and a line in the log, if that fails.

    No diagnostics are worth a training run: not where warnings are errors and advice is one, either.
    """
    try:
        return numbers()
    except Exception as error:
        logging.getLogger(__name__).warning("Arturo: the diagnostics of this step are missing: %r", error)
        return {}


def layer_metrics(watch: LayerWatch) -> dict[str, float]:
    """The last watched step by layer, as a flat dictionary for a logger.

    Returns:
        ``{"arturo/layer/<layer>/<number>": number}`` for every number of
        :meth:`arturo_core.reporting.layers.LayerWatch.numbers` that is finite; empty before the first watched step.
    """
    return {
        f"{PREFIX}layer/{layer}/{name}": value
        for layer, numbers in watch.numbers().items()
        for name, value in numbers.items()
        if math.isfinite(value)
    }


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
