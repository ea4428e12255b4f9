"""One exception for everything the user can put right; the command line prints it without a traceback."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape


class InputError(Exception):
    """Something is missing or contradictory in what the user gave; the message names the fix."""


def one_line(text: str, longest: int = 1000) -> str:
    """A text as one line that a terminal can show: the middle of a long one, and what is not printable, give way."""
    text = " ".join(text.split())
    if len(text) > longest:
        text = f"{text[: longest // 2]}…{text[-longest // 2 :]}"
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def reason(error: BaseException, longest: int = 300) -> str:
    """What another library's error says, in a few words: its first line that says anything."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(lines[0] if lines else type(error).__name__, longest)


def read_bytes(path: Path) -> bytes:
    """A whole file; an InputError if it cannot be read, or never ends."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise InputError(f"{path} is no file to read")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
        raise InputError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error


def exit_code(work: Callable[[], None]) -> int:
    """Do the work of a command line; a wrong input ends it with its message and status 2."""
    try:
        work()
    except InputError as error:
        Console(stderr=True).print(
            f"[bold red]error:[/] {escape(one_line(str(error)))}", highlight=False, soft_wrap=True
        )
        return 2
    return 0
