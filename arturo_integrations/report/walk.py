"""Looks for logs below a folder, by their names, and says which of them cannot be read."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from arturo_integrations.report import sources
from arturo_integrations.report.errors import ReportError
from arturo_integrations.report.read import STEP
from arturo_integrations.report.sources import BrokenJSON, TooDeep

LOOKED_FOR = (
    "trainer_state.json (Hugging Face Trainer, also in checkpoint-*), metrics.csv (Lightning's CSVLogger), "
    'events.out.tfevents.* (TensorBoard), *.jsonl with a "step" in its records'
)
CHECKPOINT = re.compile(r"checkpoint-(\d{1,15})")
OWN = -1  # where a state lies in the output folder itself, not in a checkpoint
_PASSED_OVER = {"__pycache__", "node_modules", "site-packages"}  # and hidden folders


@dataclass
class Logs:
    """What was found.

    Attributes:
        states: by output folder of a Trainer, its states and the number of their checkpoint, or ``OWN``.
        folders: by folder, its metrics.csv and its event files, by kind.
        singles: JSON lines with steps.
        modified: when each of them was last written.
        left_out: a sentence on everything that has the name of a log and cannot be read.
    """

    states: dict[Path, dict[Path, int]] = field(default_factory=dict)
    folders: dict[Path, dict[str, list[Path]]] = field(default_factory=dict)
    singles: list[Path] = field(default_factory=list)
    modified: dict[Path, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def walk(root: Path) -> Logs:
    """The logs in and below a folder.

    Raises:
        ReportError: it does not exist, or is none.
    """
    sources.folder(root)
    logs = Logs()

    def unreadable(error: OSError) -> None:
        logs.left_out.append(f"{error.filename} cannot be read: {error.strerror}.")

    for folder, below, names in os.walk(root, onerror=unreadable):
        below[:] = sorted(name for name in below if not name.startswith(".") and name not in _PASSED_OVER)
        for name in sorted(names):
            file = Path(folder, name)
            if kind := _kind(name):
                try:
                    logs.modified[file] = sources.regular(file).st_mtime
                    _sort(file, kind, root, logs)
                except ReportError as error:
                    logs.left_out.append(str(error))
    return logs


def global_step(state: Path) -> float:
    """The step a state was saved at; infinite if that cannot be read, so that the reader says what is wrong with it."""
    try:
        return float(sources.decode(sources.whole(state))["global_step"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return float("inf")


def _kind(name: str) -> str | None:
    if name == "trainer_state.json":
        return "trainer"
    if name == "metrics.csv":
        return "csv"
    if name.startswith("events.out.tfevents."):
        return "tensorboard"
    return "jsonl" if name.endswith((".jsonl", ".ndjson")) else None


def _sort(file: Path, kind: str, root: Path, logs: Logs) -> None:
    if kind == "trainer":
        checkpoint = CHECKPOINT.fullmatch(file.parent.name) if file.parent != root else None
        output = file.parent.parent if checkpoint else file.parent
        logs.states.setdefault(output, {})[file] = int(checkpoint[1]) if checkpoint else OWN
    elif kind != "jsonl":
        logs.folders.setdefault(file.parent, {}).setdefault(kind, []).append(file)
    elif _has_steps(file):
        logs.singles.append(file)


def _has_steps(file: Path) -> bool:
    """Whether a record among the first has a step: data sets are JSON lines too.

    Raises:
        ReportError: it cannot be read.
    """
    for number, line in zip(range(1, 21), sources.lines(file), strict=False):
        try:
            record = sources.decode(line)
        except TooDeep as error:
            raise ReportError(f"{file}, line {number}: {error}.") from error
        except BrokenJSON:
            continue
        if isinstance(record, dict) and any(name in record for name in STEP):
            return True
    return False
