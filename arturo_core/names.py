"""What a parameter is called in messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def name_of(groups: Sequence[Mapping[str, Any]], param: Tensor) -> str:
    """The name that a parameter was given to the optimizer with, in quotes, or its place."""
    for number, group in enumerate(groups):
        for index, member in enumerate(group["params"]):
            if member is param:
                names = group.get("param_names")
                return repr(names[index]) if names else f"number {index} of group {number} (shape {tuple(param.shape)})"
    return f"of shape {tuple(param.shape)}"


def few(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
