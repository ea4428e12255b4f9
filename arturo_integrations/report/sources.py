"""Opens logs, and nothing that only has the name of one: no pipe, no device, no more than was there at opening.

Logs come from running programs, other machines and unpacked archives. Whatever is wrong with one becomes a
:class:`ReportError` of one line.
"""

from __future__ import annotations

import io
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arturo_integrations.report.errors import ReportError
from arturo_integrations.report.values import TOO_LARGE

#: Characters of a line; a metrics.csv of a model with ten thousand layers has a few million.
LONGEST_LINE = 1 << 26
#: Bytes of a file that has to be read in one piece.
LARGEST = 1 << 30
#: Digits of a whole number that can still be a float.
MOST_DIGITS = 310

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a file",
}


class BrokenJSON(ValueError):
    """A text that is not JSON; says why in a few words."""


class TooDeep(BrokenJSON):
    """JSON of more nested lists and objects than Python reads."""


def status(path: Path) -> os.stat_result:
    """What the file system says of a file, links followed.

    Raises:
        ReportError: there is nothing, or it may not be looked at.
    """
    try:
        return path.stat()
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
        raise ReportError(f"{path} {_why(path, error)}.") from error


def regular(path: Path) -> os.stat_result:
    """The same of a file that can be read to an end.

    Raises:
        ReportError: there is none, or it is a pipe, a device, a folder.
    """
    found = status(path)
    if not stat.S_ISREG(found.st_mode):
        raise ReportError(f"{path} is {_kind(found)}, not a log.")
    return found


def folder(path: Path) -> None:
    """Raise a ReportError unless there is a folder."""
    found = status(path)
    if not stat.S_ISDIR(found.st_mode):
        raise ReportError(f"{path} is {_kind(found)}, not a folder.")


def lines(path: Path) -> Iterator[str]:
    """The lines of a text file.

    Raises:
        ReportError: it cannot be read, is not text, or has a line without end.
    """
    try:
        with _open(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            for number, line in enumerate(iter(lambda: text.readline(LONGEST_LINE), ""), start=1):
                if len(line) >= LONGEST_LINE:
                    raise ReportError(f"{path}, line {number}: longer than {LONGEST_LINE:,} characters; not a log.")
                yield line
    except UnicodeDecodeError as error:
        raise ReportError(f"{path} is not text ({error.reason} at byte {error.start}).") from error
    except (OSError, ValueError) as error:
        if isinstance(error, ReportError):
            raise
        raise ReportError(f"{path} {_why(path, error)}.") from error


def whole(path: Path) -> str:
    """The text of a file.

    Raises:
        ReportError: as above, or it is larger than any log.
    """
    if regular(path).st_size > LARGEST:
        raise ReportError(f"{path} is larger than {LARGEST:,} bytes, too large to be read in one piece.")
    return "".join(lines(path))


def decode(text: str) -> Any:
    """A value from JSON. Numbers that no float holds become :data:`values.TOO_LARGE`.

    Raises:
        BrokenJSON: it is none.
    """
    try:
        return json.loads(text, parse_int=_integer, parse_float=_float)
    except json.JSONDecodeError as error:
        raise BrokenJSON(str(error)) from error
    except RecursionError as error:
        raise TooDeep("lists or objects nested too deep") from error


def _integer(digits: str) -> Any:
    return int(digits) if len(digits) <= MOST_DIGITS else TOO_LARGE


def _float(digits: str) -> Any:
    value = float(digits)
    return TOO_LARGE if math.isinf(value) else value


class _Opened(io.RawIOBase):
    """A file as long as it was when it was opened: one that grows while it is read has an end, too."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._left = os.fstat(file.fileno()).st_size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._file.read(min(self._left, len(buffer)))
        buffer[: len(part)] = part
        self._left -= len(part)
        return len(part)

    def close(self) -> None:
        self._file.close()
        super().close()


def _open(path: Path) -> io.BufferedReader:
    regular(path)
    # Should a pipe have taken its place since, opening it must not wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    file = os.fdopen(descriptor, "rb", buffering=0)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise ReportError(f"{path} is no file any more.")
    return io.BufferedReader(_Opened(file), 1 << 20)


def _kind(found: os.stat_result) -> str:
    return _KINDS.get(stat.S_IFMT(found.st_mode), "something else")


def _why(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        try:
            return f"is a link to {os.readlink(path)}, which does not exist"
        except OSError:
            return "does not exist"
    return f"cannot be read: {getattr(error, 'strerror', None) or error}"
