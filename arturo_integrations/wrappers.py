"""Finds the ``Arturo`` inside whatever a framework, or several of them, have wrapped around it."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from arturo_core import Arturo

#: Where wrappers keep what they wrap, as attributes or properties: Accelerate, DeepSpeed, Lightning, Fabric, ZeRO,
#: fastai, SAM, Lookahead, Opacus, Megatron, torchtitan, skorch, wrapt ...
_INNER = (
    "optimizer",
    "_optimizer",
    "optimizer_",
    "optim",
    "_optim",
    "opt",
    "_opt",
    "base_optimizer",
    "_base_optimizer",
    "base_optim",
    "base_opt",
    "original_optimizer",
    "_original_optimizer",
    "inner_optimizer",
    "_inner_optimizer",
    "inner_optim",
    "inner_opt",
    "wrapped_optimizer",
    "_wrapped_optimizer",
    "torch_optimizer",
    "_torch_optimizer",
    "pytorch_optimizer",
    "local_optimizer",
    "master_optimizer",
    "main_optimizer",
    "raw_optimizer",
    "inner",
    "_inner",
    "wrapped",
    "_wrapped",
    "__wrapped__",
    "base",
    "optimizers",
    "_optimizers",
    "optims",
    "_optims",
    "opts",
    "optimizer_list",
    "optimizer_dict",
    "optimizers_dict",
    "sub_optimizers",
    "inner_optimizers",
    "base_optimizers",
    "chained_optimizers",
)

#: Objects that are looked at, and places where one may be: some make new ones for every attribute that is asked for,
#: and collections need not end.
_ENOUGH, _PLACES = 100, 10_000


def find_arturo(optimizer: Any) -> Arturo | None:
    """Returns the ``Arturo`` inside an optimizer's wrappers (Accelerate's, Lightning's, ZeRO's ...), or None.

    Wrappers may be nested, hold several optimizers in a collection (the first ``Arturo`` is meant), hold it by a weak
    reference, and have properties or other parts that raise: nothing that they raise comes out. Of an ``Arturo`` inside
    another it is the innermost: Lightning's wrappers are instances of the class they wrap, but what is set on them
    stays there.
    """
    waiting: deque[Iterator[Any]] = deque([iter([optimizer])])
    seen: dict[int, Any] = {}
    for held in islice(_members_of(waiting), _PLACES):
        if held is None or id(held) in seen or issubclass(type(held), (str, bytes, int, float, Tensor)):
            continue
        if len(seen) >= _ENOUGH:
            break
        seen[id(held)] = held  # kept, so that no other object gets its id
        arturo = _itself(held)
        if arturo is not None:
            return _innermost(arturo)
        waiting.append(_inside(held))
    return None


def _members_of(waiting: deque[Iterator[Any]]) -> Iterator[Any]:
    """What the collections hold, one collection after another; those that raise end there."""
    while waiting:
        try:
            yield next(waiting[0])
        except Exception:  # StopIteration too
            waiting.popleft()


def _itself(held: Any) -> Arturo | None:
    """An object, or what it is a proxy of, if that is an ``Arturo``."""
    if issubclass(type(held), Arturo):
        found: Arturo = held
        return found
    if not _claims(held, Arturo):
        return None
    real = _attribute(_attribute(held, "diagnostics"), "__self__")  # of a bound method: the object itself
    return real if issubclass(type(real), Arturo) else None


def _innermost(arturo: Arturo) -> Arturo:
    seen = {id(arturo)}
    while True:
        found = (_itself(one) for one in _optimizers(arturo))
        inner = next((one for one in found if one is not None and id(one) not in seen), None)
        if inner is None:
            return arturo
        seen.add(id(inner))
        arturo = inner


def _inside(held: Any) -> Iterator[Any]:
    """What may hold the optimizer, or be it: members of a collection; attributes by their name or by what they are."""
    if issubclass(type(held), weakref.ref):
        yield held()
    if _claims(held, Mapping):
        yield from _all_of(held, "values")
    if _claims(held, Collection):  # of a mapping the keys
        yield from _all_of(held, "__iter__")
    yield from (_attribute(held, name) for name in _INNER)
    yield from _optimizers(held)


def _all_of(held: Any, method: str) -> Iterator[Any]:
    """The members of a collection, up to where asking for them fails."""
    try:
        yield from getattr(held, method)()
    except Exception:
        return


def _optimizers(held: Any) -> list[Any]:
    """Attributes and slots of an object that are optimizers, whatever they are called."""
    own = _attribute(held, "__dict__")
    values = list(dict.values(own)) if issubclass(type(own), dict) else []
    values += [_attribute(held, name) for name in _slots(type(held))]
    return [value for value in values if _claims(value, Optimizer)]


def _slots(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            private = name.startswith("__") and not name.endswith("__")
            yield f"_{base.__name__.lstrip('_')}{name}" if private else name


def _claims(held: Any, kind: type) -> bool:
    """``isinstance`` that takes an object that raises for one that is not."""
    try:
        return isinstance(held, kind)
    except Exception:
        return issubclass(type(held), kind)


def _attribute(held: Any, name: str) -> Any:
    """None if there is no such attribute, or if asking for it fails."""
    try:
        return getattr(held, name, None)
    except Exception:
        return None
