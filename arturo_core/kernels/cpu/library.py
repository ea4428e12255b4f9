"""The compiled library: found, loaded and checked once; nothing is ever compiled here."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path

#: Names of the paths, in the order of the library's levels.
LEVELS = ("plain", "avx2", "avx512")

#: Environment variable that names the path to take; one that the machine lacks is an error, said by :func:`why_not`.
VARIABLE = "ARTURO_CPU"

#: What ``arturo_interface`` returns; another number is a library that was built from other sources.
INTERFACE = 2

_SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")

#: Where an installation puts it.
FILE = Path(__file__).with_name("libarturo_cpu" + _SUFFIX)

_POINTER, _NUMBER, _INT, _REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_double

#: Tables of sources, kinds and blocks, the path, the number of threads.
_TABLES = (_POINTER, _POINTER, _NUMBER, _POINTER, _NUMBER, _INT, _INT)

_FUNCTIONS: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "arturo_level": (_INT, ()),
    "arturo_count_blocks": (_NUMBER, (_POINTER, _NUMBER)),
    "arturo_make_blocks": (None, (_POINTER, _NUMBER, _POINTER)),
    "arturo_survey": (_INT, (*_TABLES, _POINTER)),
    "arturo_squares": (_INT, (*_TABLES, _POINTER)),
    "arturo_observe": (_INT, (*_TABLES, _POINTER, _POINTER, _REAL, _REAL, _INT, _POINTER)),
    "arturo_apply": (_INT, (*_TABLES, _POINTER, _REAL, _REAL, _POINTER)),
}


def available() -> bool:
    """Whether the library can be used."""
    return not isinstance(_found(), str)


def why_not() -> str:
    """Why the library cannot be used; empty if it can."""
    found = _found()
    return found if isinstance(found, str) else ""


def loaded() -> ctypes.CDLL:
    """The library; an error if it is not :func:`available`."""
    found = _found()
    if isinstance(found, str):
        raise RuntimeError(f"Arturo: {found}")
    return found


def levels() -> tuple[str, ...]:
    """Paths that this machine can run, the best last."""
    return LEVELS[: int(loaded().arturo_level()) + 1]


@functools.cache
def level() -> int:
    """The path to take."""
    asked = os.environ.get(VARIABLE, "")
    return LEVELS.index(asked or levels()[-1])


@functools.cache
def _found() -> ctypes.CDLL | str:
    if not FILE.exists():
        return (
            "there is no compiled CPU kernel. An installation compiles it where it finds a C++ compiler: install one "
            "(g++ or clang++), then arturo-optim again."
        )
    try:
        found = ctypes.CDLL(str(FILE))
        interface = int(found.arturo_interface())
    except (OSError, AttributeError) as error:
        return f"the compiled CPU kernel cannot be loaded ({error})."
    if interface != INTERFACE:
        return "the compiled CPU kernel belongs to another version: install arturo-optim again."
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    asked = os.environ.get(VARIABLE, "")
    usable = LEVELS[: int(found.arturo_level()) + 1]
    if asked and asked not in usable:
        return f"{VARIABLE}={asked} asks for a path that this machine lacks; it has {', '.join(usable)}."
    return found
