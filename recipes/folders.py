"""Output folders, tried before training: what cannot be written should not be found out hours later."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path

from recipes.text.errors import InputError


def try_folder(folder: Path, files: Sequence[str] = (), folders: Sequence[str] = (), option: str = "--output") -> None:
    """Make a folder and write into it, as a test.

    Args:
        folder: made if missing, with those above it.
        files, folders: names of what will be written there; what is in the way of one is an error.
        option: that names the folder.

    Raises:
        InputError: it cannot be made or written to, or something is in the way.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as trial:
            trial.write(b"x" * 4096)
            trial.flush()
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
        raise _unusable(option, folder, error) from error
    for name in (*files, *folders):
        try:
            os.lstat(folder / name)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:  # a name too long, or with a NUL in it
            raise _unusable(option, folder / name, error) from error
    for name in files:
        if os.path.isdir(folder / name):
            raise InputError(f"{option} {folder}: {name} is a folder there, in the way of a file; choose another")
    for name in folders:
        if os.path.lexists(folder / name) and not os.path.isdir(folder / name):
            raise InputError(f"{option} {folder}: {name} is in the way of a folder; move it or choose another folder")
        if os.path.isdir(folder / name):
            try_folder(folder / name, option=option)


def try_file(path: Path, option: str) -> None:
    """The same for a file."""
    try_folder(path.parent, files=[path.name], option=option)


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all: a new one beside it, of a name that nobody else uses, then put in its place.

    Raises:
        InputError: it cannot be written.
    """
    fresh = path.with_name(f".{secrets.token_hex(16)}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise _unusable("", path, error) from error


def _unusable(option: str, folder: Path, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or str(error)
    return InputError(f"{option} {folder} cannot be written to ({reason}): choose another place".strip())
