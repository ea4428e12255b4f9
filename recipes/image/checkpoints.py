"""Checkpoints of an unfinished run: each whole or absent, the newest that can be read found again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console

from recipes.image.history import History
from recipes.text.errors import InputError
from recipes.text.record import plain

#: Newest checkpoints left in place: should a disk lose the last one, there is one before it.
KEEP = 2


def folder(output: Path, run: str) -> Path:
    return output / "checkpoints" / run


def callback(output: Path, run: str, every: int) -> ModelCheckpoint:
    """Saves at the end of every so many epochs: to a temporary file that takes its name when it is complete.

    Only then the oldest of more than KEEP goes.
    """
    return ModelCheckpoint(
        dirpath=folder(output, run),
        filename="step-{step:07d}",
        auto_insert_metric_name=False,
        enable_version_counter=False,
        monitor="step",  # which makes the best of them the newest
        mode="max",
        save_top_k=KEEP,
        every_n_epochs=every,
        save_on_train_epoch_end=True,
    )


def complete(output: Path, run: str) -> list[Path]:
    """The checkpoints of an unfinished run, oldest first."""
    return sorted(folder(output, run).glob("step-*.ckpt"))


def find(output: Path, run: str, settings: dict[str, Any], console: Console) -> Path | None:
    """The newest checkpoint of a run that can be read; None if it has none.

    Raises:
        InputError: it is of a run with other settings, or there are some and none can be read.
    """
    found = complete(output, run)
    for path in reversed(found):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            earlier = content["callbacks"][History.state_key]["settings"]
        except Exception as error:  # of a damaged file, anything can be wrong
            console.print(f"{path} cannot be read ({type(error).__name__}); trying the one before", style="yellow")
            continue
        differing = [
            f"{key} was {earlier.get(key)!r}, now {value!r}"
            for key, value in plain(settings).items()
            if earlier.get(key) != value
        ]
        if differing:
            raise InputError(f"{path} cannot be resumed: {'; '.join(differing)}. Choose another --output")
        return path
    if found:
        raise InputError(f"no checkpoint in {folder(output, run)} can be read; delete it to start that run anew")
    return None
