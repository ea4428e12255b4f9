"""One exception for everything the user can put right; the command line prints it without a traceback."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.markup import escape


class InputError(Exception):
    """Something is missing or contradictory in what the user gave; the message names the fix."""


def exit_code(work: Callable[[], None]) -> int:
    """Do the work of a command line; a wrong input ends it with its message and status 2."""
    try:
        work()
    except InputError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    return 0
