"""Numbers of a log: which values are some, and a count of those that are none and why."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from arturo_integrations.report.names import one_line, some

#: Steps beyond it are no whole numbers of float64 any more.
LAST_STEP = 1 << 53
#: What :func:`sources.decode` puts in the place of a number that no float holds.
TOO_LARGE = object()

_TOO_LARGE = "too large for a number of 64 bits"
_MOST_KEYS = 8  # named in a note


class NoNumber(ValueError):
    """A value is no number; says why in a few words."""


def number(value: Any) -> float:
    """A float from a number, a bool or a numeric text ("0.5", "NaN").

    Raises:
        NoNumber: it is something else, or too large for a float.
    """
    if value is None:
        raise NoNumber("null")
    if value is TOO_LARGE:
        raise NoNumber(_TOO_LARGE)
    if not isinstance(value, (int, float, str)):
        raise NoNumber("a list or an object")
    try:
        found = float(value)
    except OverflowError:
        raise NoNumber(_TOO_LARGE) from None
    except ValueError:
        raise NoNumber("a text that is no number") from None
    if math.isinf(found) and isinstance(value, str) and "inf" not in value.lower():
        raise NoNumber(_TOO_LARGE)
    return found


def whole_step(value: Any) -> int:
    """A step.

    Raises:
        NoNumber: it is no whole number, or beyond ``LAST_STEP``.
    """
    if isinstance(value, bool):
        raise NoNumber("true or false")
    found = number(value)
    if not math.isfinite(found):
        raise NoNumber("not finite")
    if abs(found) > LAST_STEP:
        raise NoNumber(f"beyond {LAST_STEP:,}")
    if not found.is_integer():
        raise NoNumber("no whole number")
    return int(found)


class LeftOut:
    """Values and records that a log holds and no column does, counted by the reason.

    Attributes:
        keys: of the values.
    """

    def __init__(self) -> None:
        self.keys: dict[str, None] = {}
        self._values: dict[str, Counter[str]] = {}
        self._records: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def value(self, key: str, reason: str) -> None:
        self.keys[one_line(key)] = None
        self._values.setdefault(reason, Counter())[one_line(key)] += 1

    def record(self, reason: str, place: str) -> None:
        self._records[reason] += 1
        self._first.setdefault(reason, place)

    @property
    def records(self) -> int:
        return self._records.total()

    def notes(self, name: str) -> list[str]:
        """A sentence for every reason, the file's name first."""
        told = [
            f"{name}: {_count(count, 'record')} left out: {reason} ({'the first: ' if count > 1 else ''}"
            f"{self._first[reason]})."
            for reason, count in self._records.items()
        ]
        for reason, keys in self._values.items():
            more = f" and {len(keys) - _MOST_KEYS} more" if len(keys) > _MOST_KEYS else ""
            total = _count(keys.total(), "value")
            told.append(f"{name}: {total} left out: {reason} ({some(list(keys), _MOST_KEYS)}{more}).")
        return told


def _count(count: int, what: str) -> str:
    return f"{count:,} {what} was" if count == 1 else f"{count:,} {what}s were"
