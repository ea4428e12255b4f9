"""Sees which of the logs below a folder belong to one run, and chooses the run to show."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arturo_integrations.report import run as runs
from arturo_integrations.report import sources
from arturo_integrations.report.errors import NothingLogged, ReportError
from arturo_integrations.report.names import shortened, some
from arturo_integrations.report.read import READERS, read
from arturo_integrations.report.run import Run
from arturo_integrations.report.walk import LOOKED_FOR, OWN, Logs, global_step, walk


@dataclass(frozen=True)
class Source:
    """A log: its kind (of :data:`READERS`), the file or folder of event files to read, when it was last written."""

    kind: str
    path: Path
    modified: float


@dataclass(frozen=True)
class RunLogs:
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
        found = runs.sort(
            self.name, str(source.path), READERS[source.kind][0], log.columns, notes, optimizer, log.left_out.keys
        )
        found.unread.extend((str(other.path), READERS[other.kind][0]) for other in self.sources[1:])
        return found


@dataclass(frozen=True)
class Found:
    """The runs in and below a folder, the one written to last first, and a sentence on each log that is left out."""

    runs: list[RunLogs]
    left_out: list[str]


def load(path: Path, wanted: str | None = None, optimizer: int | None = None) -> Run:
    """The run at a path: a log, or a folder with logs in or below it.

    Args:
        path: a file is read as it is; below a folder runs are looked for.
        wanted: name of the run, as :func:`find` gives them, or an end of it that only one has; by default the one
            written to last. What others there are stands in the run's notes, and what could not be read.
        optimizer: where a run has several, the index of the one to show; by default the first.

    Raises:
        ReportError: nothing there, no such run, or a log that is broken or holds nothing to show.
    """
    if not stat.S_ISDIR(sources.status(path).st_mode):
        modified = sources.regular(path).st_mtime
        return RunLogs(path.name, (Source(kind_of(path), path, modified),)).load(optimizer)
    found = find(path)
    if wanted is not None:
        loaded = _named(found.runs, wanted, path).load(optimizer)
    else:
        loaded = _newest(found.runs, path, optimizer)
    loaded.notes.extend(found.left_out)
    return loaded


def find(root: Path) -> Found:
    """The runs in and below a folder.

    One run are: the checkpoints of a Trainer's output folder and the event files below it; a metrics.csv and event
    files in the same folder. A JSON lines file is a run of its own.

    Raises:
        ReportError: the folder does not exist or cannot be read, or has no log in or below it.
    """
    logs = walk(root)
    found: list[RunLogs] = []
    for folder, files in logs.states.items():
        state, notes = _newest_state(files, logs)
        own = [Source("trainer", state, logs.modified[state])]
        for below in [other for other in logs.folders if _owner(other, logs) == folder]:
            own += _of_folder(below, logs)
            del logs.folders[below]
        found.append(RunLogs(_name(folder, root), tuple(own), notes))
    found += [RunLogs(_name(folder, root), tuple(_of_folder(folder, logs))) for folder in logs.folders]
    found += [RunLogs(_name(file, root), (Source("jsonl", file, logs.modified[file]),)) for file in logs.singles]
    if not found:
        unread = f" Left out: {' '.join(logs.left_out[:3])}" if logs.left_out else ""
        raise ReportError(f"{root}: no log of a training run in it or below. Looked for {LOOKED_FOR}.{unread}")
    return Found(sorted(found, key=lambda run: (-run.modified, run.name)), logs.left_out)


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


def _newest(found: Sequence[RunLogs], root: Path, optimizer: int | None) -> Run:
    """The run written to last of those that hold something to show."""
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
            loaded.notes.insert(0, f"{len(found)} runs below {root}: this one was written to last. {_choice(others)}")
        loaded.notes[:0] = empty
        return loaded
    raise AssertionError("find() returns at least one run")


def _newest_state(files: dict[Path, int], logs: Logs) -> tuple[Path, tuple[str, ...]]:
    """Of the states of one output folder, that of the highest checkpoint, or the folder's own if it is as far."""
    highest = max(files, key=files.__getitem__)
    own = next((file for file, checkpoint in files.items() if checkpoint == OWN), None)
    if own is not None and global_step(own) >= files[highest]:
        return own, ()
    latest = max(files, key=logs.modified.__getitem__)
    if logs.modified[latest] > logs.modified[highest]:
        return highest, (f"{latest} was written later than the highest checkpoint, which is shown: is it another run?",)
    return highest, ()


def _owner(folder: Path, logs: Logs) -> Path | None:
    """The nearest Trainer output folder that a folder is or lies in."""
    return next((parent for parent in (folder, *folder.parents) if parent in logs.states), None)


def _of_folder(folder: Path, logs: Logs) -> list[Source]:
    """A table before event files: these hold float32."""
    files = logs.folders[folder]
    found = [Source("csv", file, logs.modified[file]) for file in files.get("csv", [])]
    if events := files.get("tensorboard"):
        found.append(Source("tensorboard", folder, max(logs.modified[file] for file in events)))
    return found


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path != root else root.resolve().name or str(root)


def _named(found: Sequence[RunLogs], wanted: str, root: Path) -> RunLogs:
    wanted = wanted.strip("/")
    exact = [run for run in found if run.name == wanted]
    ends = exact or [run for run in found if run.name.endswith("/" + wanted)]
    if len(ends) != 1:
        what = "several runs end in" if ends else "no run is called"
        raise ReportError(f"{root}: {what} {shortened(wanted, 200)!r}. {_choice([run.name for run in found])}")
    return ends[0]


def _choice(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more (--list)" if len(names) > 10 else ""
    return f"Choose with --run: {some(list(names), 10)}{more}."
