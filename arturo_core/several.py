"""Several optimizers that train parts of one model: each then has a trust region of its own.

One multiplier is meant to couple all weights of a model. "Optimizer in backward" (one optimizer per parameter) and one
optimizer per layer train without a word, so the first step of an optimizer looks whether another one that is
alive holds parameters of the same model. Who holds a parameter is known to modules alone, which the garbage
collector lists: one look for every new optimizer, and none while there is one only.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from arturo_core.optimizer import Arturo

#: Optimizers of networks that merely live in one container (a GAN's, an agent's) are no more than this.
SEPARATE = 4

_lock = threading.Lock()
_stepped: weakref.WeakSet[Arturo] = weakref.WeakSet()
_told: list[weakref.ref[nn.Module]] = []


def notice(optimizer: Arturo) -> str | None:
    """What to say if this is the optimizer's first step and others hold parameters of its model; once for a model."""
    if optimizer in _stepped:
        return None
    with _lock:
        others = list(_stepped)
        _stepped.add(optimizer)
        mine = _params(optimizer)
        parts = [held for held in map(_params, others) if held and not held & mine]  # else one that was built anew
        if not mine or not parts or any(mine & _below(model) for model in _models_told()):
            return None
        holders = _Holders()
        shared = holders.shared_model([holders.above(held) for held in (mine, *parts)])
        if shared is None:
            return None
        _told[:] = [held for held in _told if held() is not None]
        _told.extend(weakref.ref(top) for top in holders.tops(shared))
        model = holders.whole(shared)
    return (
        f"more than one Arturo that is alive holds parameters of one model ({type(model).__name__}). Each has a trust "
        "region of its own: no multiplier couples their steps, as it should those of all weights of a model. Give one "
        "Arturo all trainable parameters, in groups where lr or weight_decay differ. It cannot step parameter by "
        "parameter inside backward. Only networks that are trained against each other, as a GAN's, have one each."
    )


def _params(optimizer: Arturo) -> set[int]:
    """Those that are trained: what has been frozen since is another optimizer's no longer."""
    return {id(param) for group in optimizer.param_groups for param in group["params"] if param.requires_grad}


def _models_told() -> Iterator[nn.Module]:
    return (model for held in _told if (model := held()) is not None)


def _below(model: nn.Module) -> set[int]:
    return {id(param) for param in model.parameters()}


def _is_container(module: nn.Module) -> bool:
    """Whether a module may hold several models: it has no ``forward`` of its own, or is a LightningModule."""
    kind = type(module)
    lightning = any(base.__name__ == "LightningModule" for base in kind.__mro__)
    return lightning or getattr(kind, "forward", None) is nn.Module.forward


class _Holders:
    """All modules that are alive, and which of them is part of which."""

    def __init__(self) -> None:
        # Not isinstance, which would ask proxies for a class.
        self._modules = {id(one): one for one in gc.get_objects() if issubclass(type(one), nn.Module)}
        self._parents: dict[int, list[int]] = {}
        self._owners: dict[int, list[int]] = {}
        for key, module in self._modules.items():
            for child in _members(module, "_modules"):
                self._parents.setdefault(id(child), []).append(key)
            for param in _members(module, "_parameters"):
                self._owners.setdefault(id(param), []).append(key)

    def above(self, params: Iterable[int]) -> set[int]:
        """Every module with one of the parameters in it, at whatever depth."""
        return self._with_parents([owner for param in params for owner in self._owners.get(param, ())])

    def _with_parents(self, waiting: list[int]) -> set[int]:
        found: set[int] = set()
        while waiting:
            key = waiting.pop()
            if key not in found:
                found.add(key)
                waiting += self._parents.get(key, ())
        return found

    def shared_model(self, above: list[set[int]]) -> nn.Module | None:
        """The smallest module with parameters of the first optimizer and of another one, unless it is a container.

        Args:
            above: for each optimizer the modules with its parameters.
        """

        def is_shared(key: int) -> bool:
            return key in above[0] and any(key in other for other in above[1:])

        for key in filter(is_shared, above[0]):
            module: nn.Module = self._modules[key]
            if any(is_shared(id(child)) for child in _members(module, "_modules")):
                continue
            if not _is_container(module) or sum(key in one for one in above) > SEPARATE:
                return module
        return None

    def whole(self, module: nn.Module) -> nn.Module:
        """The largest model that a module is part of."""
        seen = {id(module)}
        while parents := [self._modules[key] for key in self._parents.get(id(module), ()) if key not in seen]:
            found = next((parent for parent in parents if not _is_container(parent)), None)
            if found is None:
                break
            seen.add(id(found))
            module = found
        return module

    def tops(self, module: nn.Module) -> list[nn.Module]:
        """The module and all those that it is part of, which no other is part of."""
        keys = self._with_parents([id(module)])
        return [self._modules[key] for key in keys if not self._parents.get(key)] or [module]


def _members(module: nn.Module, kind: str) -> list[Any]:
    """Children or parameters; none of a module that is still being built."""
    held = module.__dict__.get(kind)
    return [one for one in held.values() if one is not None] if isinstance(held, dict) else []
