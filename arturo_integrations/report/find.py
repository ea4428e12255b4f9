"""Finds the logs below a folder, sees which belong to one run, and chooses the run to show."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from arturo_integrations.report import run as runs
from arturo_integrations.report.errors import NothingLogged, ReportError
from arturo_integrations.report.read import READERS, STEP, read
from arturo_integrations.report.run import Run

LOOKED_FOR = (
    "trainer_state.json (Hugging Face Trainer, also in checkpoint-*), metrics.csv (Lightning's CSVLogger), "
    'events.out.tfevents.* (TensorBoard), *.jsonl with a "step" in its records'
)
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
OWN = -1  # where a state lies in the output folder itself, not in a checkpoint
_PASSED_OVER = {"__pycache__", "node_modules", "site-packages"}  # and hidden folders


@dataclass(frozen=True)
class Source:
    """A log: its kind (of :data:`READERS`), the file or folder of event files to read, when it was last written."""

    kind: str
    path: Path
    modified: float


@dataclass(frozen=True)
class Found:
    """A run: its name (a path relative to the folder that was searched) and its logs, the best first."""

    name: str
    sources: tuple[Source, ...]
    notes: tuple[str, ...] = ()

    @property
    def modified(self) -> float:
        return max(source.modified for source in self.sources)

    def load(self, optimizer: int | None = None) -> Run:
        """What its best log holds; of several optimizers, see :func:`run.sort`."""
        source = self.sources[0]
        log = read(source.kind, source.path)
        notes = [*self.notes, *log.notes]
        found = runs.sort(self.name, str(source.path), READERS[source.kind][0], log.columns, notes, optimizer)
        found.unread.extend((str(other.path), READERS[other.kind][0]) for other in self.sources[1:])
        return found


def load(path: Path, wanted: str | None = None, optimizer: int | None = None) -> Run:
    """The run at a path: a log, or a folder with logs in or below it.

    Args:
        path: a file is read as it is; below a folder runs are looked for.
        wanted: name of the run, as :func:`find` gives them, or an end of it that only one has; by default the one
            written to last. What others there are stands in the run's notes.
        optimizer: where a run has several, the index of the one to show; by default the first.

    Raises:
        ReportError: nothing there, no such run, or a log that is broken or holds nothing to show.
    """
    if path.is_file():
        return Found(path.name, (Source(kind_of(path), path, path.stat().st_mtime),)).load(optimizer)
    found = find(path)
    if wanted is not None:
        return _named(found, wanted, path).load(optimizer)
    empty: list[str] = []
    for index, candidate in enumerate(found):
        try:
            loaded = candidate.load(optimizer)
        except NothingLogged as error:
            if index == len(found) - 1:
                raise
            empty.append(f"{candidate.name} was written to later and holds nothing to show. {error}")
            continue
        others = [other.name for other in found if other is not candidate]
        if others:
            loaded.notes.insert(0, f"{len(found)} runs below {path}: this one was written to last. {_choice(others)}")
        loaded.notes[:0] = empty
        return loaded
    raise AssertionError("find() returns at least one run")


def find(root: Path) -> list[Found]:
    """The runs in and below a folder, the one written to last first.

    One run are: the checkpoints of a Trainer's output folder and the event files below it; a metrics.csv and event
    files in the same folder. A JSON lines file is a run of its own.

    Raises:
        ReportError: the folder does not exist, or has no log in or below it.
    """
    if not root.exists():
        raise ReportError(f"{root} does not exist.")
    states: dict[Path, dict[Path, int]] = {}  # by output folder, its states and the number of their checkpoint
    folders: dict[Path, dict[str, list[Path]]] = {}  # of csv and event files
    singles: list[Path] = []
    for file in _files(root):
        if file.name == "trainer_state.json":
            checkpoint = _CHECKPOINT.fullmatch(file.parent.name) if file.parent != root else None
            output = file.parent.parent if checkpoint else file.parent
            states.setdefault(output, {})[file] = int(checkpoint[1]) if checkpoint else OWN
        elif file.name == "metrics.csv":
            folders.setdefault(file.parent, {}).setdefault("csv", []).append(file)
        elif file.name.startswith("events.out.tfevents."):
            folders.setdefault(file.parent, {}).setdefault("tensorboard", []).append(file)
        elif file.suffix in (".jsonl", ".ndjson") and _has_steps(file):
            singles.append(file)
    found: list[Found] = []
    for folder, files in states.items():
        state, notes = _newest_state(files)
        own = [Source("trainer", state, state.stat().st_mtime)]
        for below in [other for other in folders if _owner(other, states) == folder]:
            own += _of_folder(below, folders.pop(below))
        found.append(Found(_name(folder, root), tuple(own), notes))
    found += [Found(_name(folder, root), tuple(_of_folder(folder, files))) for folder, files in folders.items()]
    found += [Found(_name(file, root), (Source("jsonl", file, file.stat().st_mtime),)) for file in singles]
    if not found:
        raise ReportError(f"{root}: no log of a training run in it or below. Looked for {LOOKED_FOR}.")
    return sorted(found, key=lambda run: (-run.modified, run.name))


def kind_of(file: Path) -> str:
    """The kind of a log that was given as a file, by its name.

    Raises:
        ReportError: the name is of none of them.
    """
    if ".tfevents." in file.name:
        return "tensorboard"
    kind = {".json": "trainer", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}.get(file.suffix)
    if kind is None:
        raise ReportError(
            f"{file}: its name is not that of a log. Looked for {LOOKED_FOR}; as a file also *.json, *.csv."
        )
    return kind


def _files(root: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith(".") and name not in _PASSED_OVER)
        yield from (Path(folder, name) for name in sorted(names))


def _has_steps(file: Path) -> bool:
    """Whether a record among the first has a step: data sets are JSON lines too."""
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as lines:
            for _, line in zip(range(20), lines, strict=False):
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if isinstance(record, dict) and any(name in record for name in STEP):
                    return True
    except OSError:
        return False
    return False


def _newest_state(files: dict[Path, int]) -> tuple[Path, tuple[str, ...]]:
    """Of the states of one output folder, that of the highest checkpoint, or the folder's own if it is as far."""
    highest = max(files, key=files.__getitem__)
    own = next((file for file, checkpoint in files.items() if checkpoint == OWN), None)
    if own is not None and _global_step(own) >= files[highest]:
        return own, ()
    latest = max(files, key=lambda file: file.stat().st_mtime)
    if latest.stat().st_mtime > highest.stat().st_mtime:
        return highest, (f"{latest} was written later than the highest checkpoint, which is shown: is it another run?",)
    return highest, ()


def _global_step(state: Path) -> float:
    """The step a state was saved at; infinite if that cannot be read, so that the reader says what is wrong with it."""
    try:
        return float(json.loads(state.read_text(encoding="utf-8"))["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return float("inf")


def _owner(folder: Path, states: dict[Path, dict[Path, int]]) -> Path | None:
    """The nearest Trainer output folder that a folder is or lies in."""
    return next((parent for parent in (folder, *folder.parents) if parent in states), None)


def _of_folder(folder: Path, files: dict[str, list[Path]]) -> list[Source]:
    """A table before event files: these hold float32."""
    sources = [Source("csv", file, file.stat().st_mtime) for file in files.get("csv", [])]
    if events := files.get("tensorboard"):
        sources.append(Source("tensorboard", folder, max(file.stat().st_mtime for file in events)))
    return sources


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path != root else root.resolve().name or str(root)


def _named(found: Sequence[Found], wanted: str, root: Path) -> Found:
    wanted = wanted.strip("/")
    exact = [run for run in found if run.name == wanted]
    ends = exact or [run for run in found if run.name.endswith("/" + wanted)]
    if len(ends) != 1:
        what = "several runs end in" if ends else "no run is called"
        raise ReportError(f"{root}: {what} {wanted!r}. {_choice([run.name for run in found])}")
    return ends[0]


def _choice(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more (--list)" if len(names) > 10 else ""
    return f"Choose with --run: {', '.join(names[:10])}{more}."
