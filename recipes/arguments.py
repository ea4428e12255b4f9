"""What the command lines of the recipes and benchmarks share: errors of one line, and checks of every value.

A value that no run could use is refused when it is read, before data are loaded or anything is trained.
"""

from __future__ import annotations

import argparse
import difflib
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from recipes.text.errors import InputError, one_line

#: Counts beyond it fit no tensor's shape and no training.
LARGEST = 2**31 - 1
#: NumPy's and so `transformers.set_seed`'s limit.
LARGEST_SEED = 2**32 - 1
MOST_THREADS = 1024


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Appends default values to help texts where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        unset = action.default is None or action.default is False or action.default == []
        return action.help if unset else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An error is one line that says what was given and what is nearest to it; the exit status is 2.

    Options are written out: a short form of one would be another one's name tomorrow.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"error: {one_line(message)} (--help lists the options)\n")
        raise SystemExit(2)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            name = unknown[0].partition("=")[0]
            self.error(f"unknown option {unknown[0]}{nearest(name, known)}")
        return found


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?`, or nothing if no known name is like it."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def known(option: str, name: str, names: Sequence[str]) -> None:
    """Raise an InputError, with the nearest name, unless a name is one of those that there are."""
    if name not in names:
        raise InputError(f"{option} {name}: choose of {', '.join(names)}{nearest(name, names)}")


def listing(text: str) -> list[str]:
    """Names with commas between them, each once."""
    return list(dict.fromkeys(item.strip() for item in text.split(",") if item.strip()))


def seed(text: str) -> int:
    return _whole(text, "a seed", 0, LARGEST_SEED)


def seed_listing(text: str) -> list[int]:
    return list(dict.fromkeys(seed(item) for item in listing(text)))


def positive(text: str) -> int:
    return _whole(text, "a positive whole number", 1, LARGEST)


def several(text: str) -> int:
    """Tokens of a text: with one there is nothing to predict, and a classifier sees no word."""
    return _whole(text, "a whole number of tokens", 2, LARGEST)


def natural(text: str) -> int:
    return _whole(text, "a whole number", 0, LARGEST)


def threads(text: str) -> int:
    return _whole(text, "a number of threads", 1, MOST_THREADS)


def path(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty name: give that of a file or folder, . for this folder")
    return Path(text)


def rate(text: str) -> float:
    """Positive and finite: epochs, minutes."""
    return _number(text, "a positive, finite number", lambda value: value > 0)


def learning_rate(text: str) -> float:
    """What arTuRO takes: torch's optimizers take more, and no run survives it."""
    return _number(text, f"a learning rate: give one {_rates()}", _is_rate)


def decay(text: str) -> float:
    """Weight decay, of arTuRO's range too."""
    from arturo_core.options import LARGEST_DECAY  # here, as below: torch takes seconds to import

    within = f"a weight decay: give 0 for none, or a positive number up to {LARGEST_DECAY:g}"
    return _number(text, within, lambda value: 0 <= value <= LARGEST_DECAY)


def amount(text: str) -> float:
    """A number that may be 0: a norm."""
    return _number(text, "0 or a positive, finite number", lambda value: value >= 0)


def share(text: str) -> float:
    return _number(text, "a share from 0 to below 1", lambda value: 0 <= value < 1)


def rate_for(text: str) -> tuple[str, float]:
    """An exception to the learning rate; see `check_rates`."""
    name, equals, value = text.partition("=")
    try:
        lr = float(value)
    except ValueError:
        equals = ""
    if not (name.strip() and equals):
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: give OPTIMIZER=LR, such as arturo=1e-3")
    return name.strip(), lr


def check_rates(rates: Mapping[str, float], optimizers: Sequence[str], option: str) -> None:
    """Raise an InputError unless the exceptions to the learning rate are of optimizers chosen by `option`."""
    if strangers := sorted(set(rates) - set(optimizers)):
        hint = nearest(strangers[0], optimizers)
        raise InputError(f"--lr-for names {', '.join(strangers)}, not among {option}{hint}")
    for name, lr in rates.items():
        if not _is_rate(lr):
            raise InputError(f"--lr-for {name}={lr:g}: give a positive learning rate {_rates()}")


def _is_rate(value: float) -> bool:
    from arturo_core.options import LARGEST_LR, STANDSTILL

    return STANDSTILL <= value <= LARGEST_LR["rms"]


def _rates() -> str:
    from arturo_core.options import LARGEST_LR, STANDSTILL

    return f"from {STANDSTILL:g} to {LARGEST_LR['rms']:g}"


def _whole(text: str, what: str, least: int, most: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not {what}: give one from {least} to {most}")
    return value


def _number(text: str, what: str, allowed: Any) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and allowed(value)):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not {what}")
    return value
