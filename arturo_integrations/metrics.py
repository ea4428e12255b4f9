"""What :meth:`arturo_core.Arturo.diagnostics` reports, in the form and under the names that every logger gets.

One truth for all frameworks: the Trainer's records, Accelerate's trackers and Lightning's loggers hold the same keys.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch

from arturo_core import Arturo

PREFIX = "arturo/"

#: Where wrappers keep the optimizer they wrap: Accelerate and DeepSpeed, Lightning and Fabric, ZeRO.
_INNER = ("optimizer", "_optimizer", "optim")


def arturo_metrics(optimizer: Any) -> dict[str, int | float]:
    """The diagnostics of the ``Arturo`` inside an optimizer, as a flat dictionary for a logger.

    No collective is needed: any rank may call it alone. The numbers of the last step are the same on every rank; the
    quantiles (``curvature_q..``, ``precision_q..``) are of the parameters, or shards of them, that this rank holds.

    Args:
        optimizer: an ``Arturo``, or what a framework has wrapped around one (:func:`find_arturo`).

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
    return loggable(arturo.diagnostics())


def find_arturo(optimizer: Any) -> Arturo | None:
    """Returns the ``Arturo`` inside an optimizer's wrappers (Accelerate's, Lightning's, ZeRO's ...), or None.

    The innermost: Lightning's wrappers are instances of the class they wrap, but what is set on them stays there.
    """
    found: Arturo | None = None
    seen: set[int] = set()
    while optimizer is not None and id(optimizer) not in seen:
        if isinstance(optimizer, Arturo):
            found = optimizer
        seen.add(id(optimizer))
        held = (getattr(optimizer, name, None) for name in _INNER)
        optimizer = next((inner for inner in held if inner is not None), None)
    return found


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
