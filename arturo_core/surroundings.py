"""What frameworks around an optimizer do to it: the core knows none of them, and is told here.

A framework may build an optimizer over a share of the parameters, or step a part of them, and nothing in the parameters
says so. Whoever knows such a framework adds a check here. ``arturo_integrations.surroundings`` does so for those that
this project knows; where it is installed it is imported with the first optimizer, for nobody else may do it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

#: Asked when an optimizer is built, with its parameters and its process group; before every step, with its groups.
CallerCheck = Callable[[Sequence[Any], Any], None]
StepCheck = Callable[[Iterable[dict[str, Any]]], None]

_KNOWN = "arturo_integrations.surroundings"

_caller_checks: list[CallerCheck] = []
_step_checks: list[StepCheck] = []
_containers: list[Callable[[type], bool]] = []


def add_caller_check(check: CallerCheck) -> None:
    """Have optimizers refused, by an exception of the check, that a framework builds in a way that cannot work."""
    _caller_checks.append(check)


def add_step_check(check: StepCheck) -> None:
    """Have steps refused, by an exception of the check, that a framework takes in a way that cannot work.

    Every step waits for it: it begins with something cheap, as whether the framework has been imported.
    """
    _step_checks.append(check)


def add_container(is_one: Callable[[type], bool]) -> None:
    """Tell of classes of modules that may hold several models, each with losses and optimizers of its own."""
    _containers.append(is_one)


def check_caller(params: Iterable[Any], process_group: Any) -> None:
    """Raise what the checks of an optimizer that is being built raise."""
    discover()
    given = list(params)
    for check in _caller_checks:
        check(given, process_group)


def check_step(groups: Iterable[dict[str, Any]]) -> None:
    """Raise what the checks of a step raise."""
    for check in _step_checks:
        check(groups)


def is_container(kind: type) -> bool:
    """Whether somebody has said that modules of a class may hold several models."""
    return any(is_one(kind) for is_one in _containers)


def callers() -> Iterator[str]:
    """Names of the modules whose functions are being called, the innermost first."""
    frame = sys._getframe(1)
    while frame is not None:
        yield str(frame.f_globals.get("__name__"))
        frame = frame.f_back  # type: ignore[assignment]


def discover() -> None:
    """Import what this project knows of frameworks, if it is installed; called wherever optimizers come into being."""
    if _KNOWN in sys.modules:
        return
    try:
        importlib.import_module(_KNOWN)
    except ModuleNotFoundError as error:
        if error.name not in (_KNOWN, _KNOWN.partition(".")[0]):
            raise
