"""Finds the ``Arturo`` inside whatever a framework, or several of them, have wrapped around it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from torch.optim import Optimizer

from arturo_core import Arturo

#: Where wrappers keep what they wrap, as attributes or properties: Accelerate, DeepSpeed, Lightning, Fabric, ZeRO,
#: fastai, SAM, Lookahead, Opacus, Megatron, torchtitan ...
_INNER = (
    "optimizer",
    "_optimizer",
    "optim",
    "_optim",
    "opt",
    "base_optimizer",
    "original_optimizer",
    "inner_optimizer",
    "wrapped_optimizer",
    "torch_optimizer",
    "optimizers",
    "_optimizers",
    "chained_optimizers",
)

#: Objects that are looked at: some make new ones for every attribute that is asked for.
_ENOUGH = 100


def find_arturo(optimizer: Any) -> Arturo | None:
    """Returns the ``Arturo`` inside an optimizer's wrappers (Accelerate's, Lightning's, ZeRO's ...), or None.

    Wrappers may be nested, hold several optimizers in a list, tuple or dictionary (the first ``Arturo`` is meant), and
    have properties that raise. Of an ``Arturo`` inside another it is the innermost: Lightning's wrappers are
    instances of the class they wrap, but what is set on them stays there.
    """
    waiting: deque[Any] = deque([optimizer])
    seen: dict[int, Any] = {}
    while waiting and len(seen) < _ENOUGH:
        held = waiting.popleft()
        if held is None or id(held) in seen:
            continue
        seen[id(held)] = held  # kept, so that no other object gets its id
        if isinstance(held, Arturo):
            return _innermost(held)
        waiting += _inside(held)
    return None


def _innermost(arturo: Arturo) -> Arturo:
    seen = {id(arturo)}
    while True:
        inner = next((one for one in _optimizers(arturo) if isinstance(one, Arturo) and id(one) not in seen), None)
        if inner is None:
            return arturo
        seen.add(id(inner))
        arturo = inner


def _inside(held: Any) -> Iterator[Any]:
    """What may hold the optimizer, or be it: members of a collection; attributes by their name or by what they are."""
    if isinstance(held, Mapping):
        yield from held.values()
    elif isinstance(held, (list, tuple, set, frozenset)):
        yield from held
    elif not isinstance(held, (str, bytes, int, float)):
        yield from (_attribute(held, name) for name in _INNER)
        yield from _optimizers(held)


def _optimizers(held: Any) -> list[Any]:
    """Attributes of an object that are optimizers, whatever they are called."""
    own = getattr(held, "__dict__", None)
    return [value for value in list(own.values()) if isinstance(value, Optimizer)] if isinstance(own, dict) else []


def _attribute(held: Any, name: str) -> Any:
    """None if there is no such attribute, or if asking for it fails."""
    try:
        return getattr(held, name, None)
    except Exception:
        return None
