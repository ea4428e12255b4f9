"""Checkpoints of a run: complete ones only, the newest found again, old ones removed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from recipes.folders import write
from recipes.text.errors import InputError
from recipes.text.record import plain, read_json

FORMAT = 1
MARK = "complete.json"  # written last: a checkpoint without it was interrupted


class Progress:
    """How far a run is and what it has logged; saved in every checkpoint, as `accelerator` asks of custom objects."""

    def __init__(self) -> None:
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "history": self.history, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.history, self.seconds = state["step"], state["history"], state["seconds"]


def folder(output: Path, step: int) -> Path:
    return output / "checkpoints" / f"step-{step:07d}"


def complete(output: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(mark.parent for mark in (output / "checkpoints").glob(f"step-*/{MARK}"))


def save(accelerator: Any, output: Path, step: int, settings: dict[str, Any], keep: int) -> None:
    """Write a checkpoint, mark it complete, and remove all but the newest `keep`."""
    path = folder(output, step)
    if accelerator.is_main_process and path.exists():
        shutil.rmtree(path)  # an interrupted one, or one that this run has come back to
    accelerator.wait_for_everyone()
    accelerator.save_state(str(path))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        mark = json.dumps({"format": FORMAT, "settings": plain(settings)})
        write(path / MARK, mark)
        for old in complete(output)[:-keep]:
            shutil.rmtree(old)


def find(output: Path, settings: dict[str, Any]) -> Path:
    """The newest complete checkpoint.

    Raises:
        InputError: there is none, or it is of a run with other settings.
    """
    found = complete(output)
    if not found:
        raise InputError(f"{output} has no complete checkpoint; start without --resume, and with --checkpoint-every")
    earlier = read_json(found[-1] / MARK, "delete this checkpoint to go on from the one before")
    if not isinstance(earlier.get("settings"), dict):
        raise InputError(f"{found[-1] / MARK} has no settings; delete this checkpoint to go on from the one before")
    wanted = json.loads(json.dumps(plain(settings)))
    differing = [
        f"{key} was {earlier['settings'].get(key)!r}, now {value!r}"
        for key, value in wanted.items()
        if earlier["settings"].get(key) != value
    ]
    if differing or earlier.get("format") != FORMAT:
        told = "; ".join(differing) or f"its format is {earlier.get('format')}, not {FORMAT}"
        raise InputError(f"{found[-1]} cannot be resumed: {told}. Choose another --output")
    return found[-1]
