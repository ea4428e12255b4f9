"""Several optimizers that train parts of one model: each then has a trust region of its own.

One multiplier is meant to couple all weights of a model. "Optimizer in backward" (one optimizer per parameter) and one
optimizer per layer train without a word, so the first step of an optimizer looks whether another one that is
alive holds parameters of the same model. Who holds a parameter is known to modules alone, which the garbage
collector lists: one look for every new optimizer, and none while there is one only.

Modules do not say which losses train them. Networks of a GAN, an agent or an ensemble have an optimizer each with good
reason, and are left alone where they live in a module without ``forward`` or where their names say what they are.
Elsewhere the warning says what was seen, and when to ignore it.
"""

from __future__ import annotations

import gc
import re
import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from arturo_core import surroundings

if TYPE_CHECKING:
    from arturo_core.optimizer import Arturo

#: Optimizers of networks that merely live in one container (a GAN's, an agent's) are no more than this, unless they are
#: members of an ensemble, which have more than a layer each.
SEPARATE = 4

#: Containers that cannot be called: what uses them is the module that they are in.
_LISTS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)

#: What networks are called that are trained by losses of their own, and lists of such networks.
_ADVERSARIES = (
    r"(net_?)?[dg](_?[a-z]|_?[a-z](2|to)[a-z]|_?\d)?|gen|disc?|\w*(generator|discriminator|critic|adversary)\w*"
)
_AGENTS = r"pi|qf?_?\d|\w*(actor|policy)\w*|(value|q)_?(net|network|function)(_?\d)?"
_ENSEMBLES = r"_?(\w+_)?(models|networks|nets|members|ensemble|estimators|learners|agents|actors|critics)_?\.\w+"
_APART = re.compile(rf"(^|\.)({_ADVERSARIES}|{_AGENTS}|{_ENSEMBLES})$", re.IGNORECASE)

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
        shared = holders.shared_model([mine, *parts])
        if shared is None:
            return None
        _told[:] = [held for held in _told if held() is not None]
        _told.extend(weakref.ref(top) for top in holders.tops(shared))
        model = holders.whole(shared)
    return (
        f"more than one Arturo that is alive holds parameters of one model ({type(model).__name__}). Each has a trust "
        "region of its own: no multiplier couples their steps, as it should those of all weights of a model. Give one "
        "Arturo all trainable parameters of a loss, in groups where lr or weight_decay differ. It cannot step "
        "parameter by parameter inside backward. Networks with losses of their own (a GAN's, an agent's, an "
        "ensemble's) have one each: if these do, ignore this. Which loss trains what was not looked at."
    )


def _params(optimizer: Arturo) -> set[int]:
    """Those that are trained: what has been frozen since is another optimizer's no longer."""
    return {id(param) for group in optimizer.param_groups for param in group["params"] if param.requires_grad}


def _models_told() -> Iterator[nn.Module]:
    return (model for held in _told if (model := held()) is not None)


def _below(model: nn.Module) -> set[int]:
    return {id(param) for param in model.parameters()}


def _is_container(module: nn.Module) -> bool:
    """Whether a module may hold several models: it has no ``forward`` of its own, or somebody has said so."""
    kind = type(module)
    return getattr(kind, "forward", None) is nn.Module.forward or surroundings.is_container(kind)


def _are_apart(model: nn.Module, mine: set[int], others: list[set[int]]) -> bool:
    """Whether names tell of every other part that it has another loss: that one of the two is in a network without it.

    Args:
        model: that all parts are of.
        mine: part of one optimizer.
        others: parts of others.
    """
    named = [_below(module) for name, module in model.named_modules() if _APART.search(name)]

    def divides(network: set[int], other: set[int]) -> bool:
        return (mine <= network and not other & network) or (other <= network and not mine & network)

    return all(any(divides(network, other) for network in named) for other in others)


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

    def shared_model(self, parts: list[set[int]]) -> nn.Module | None:
        """The smallest model with parameters of the first optimizer and of another one, if there is one.

        Args:
            parts: for each optimizer its parameters.
        """
        above = [self.above(part) for part in parts]
        shared = {key for key in above[0] if any(key in other for other in above[1:])}
        for key in shared:
            module: nn.Module = self._modules[key]
            if any(id(child) in shared for child in _members(module, "_modules")):
                continue
            model = self._user(module)
            below = _below(model)
            mine, *others = [part & below for part in parts]
            others = [other for other in others if other]
            is_one = self._are_layers([mine, *others]) if _is_container(model) else True
            if is_one and not _are_apart(model, mine, others):
                return model
        return None

    def _user(self, module: nn.Module) -> nn.Module:
        """The module that uses one: itself, or of a list the nearest that it is in, one with a ``forward`` first."""
        waiting, users, seen = [module], [], {id(module)}
        while waiting:
            one = waiting.pop(0)
            if not (isinstance(one, _LISTS) and _is_container(one)):
                users.append(one)
                continue
            parents = [key for key in self._parents.get(id(one), ()) if key not in seen]
            seen.update(parents)
            waiting += [self._modules[key] for key in parents]
        return min(users, key=_is_container, default=module)

    def _are_layers(self, parts: list[set[int]]) -> bool:
        """Whether so many of the parts are of one layer each that they can be no networks."""
        owners = [{owner for param in part for owner in self._owners.get(param, ())} for part in parts]
        return sum(len(found) == 1 for found in owners) > SEPARATE

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
