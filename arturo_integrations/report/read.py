"""Readers: one for each kind of log, from a file to columns of numbers by step."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arturo_integrations.report.errors import ReportError
from arturo_integrations.report.events import tensorboard
from arturo_integrations.report.names import one_line, some
from arturo_integrations.report.sources import BrokenJSON, TooDeep, decode, lines, whole
from arturo_integrations.report.values import LeftOut, NoNumber, number, whole_step

#: Names of the step in a record.
STEP = ("step", "global_step")


class Log:
    """What has been read: ``columns[key][step]``, and notes on what was left out.

    A step that was logged twice, as after a resume, has the later value.
    """

    def __init__(self) -> None:
        self.columns: dict[str, dict[int, float]] = {}
        self.notes: list[str] = []
        self.left_out = LeftOut()

    def add(self, key: str, step: int, value: float) -> None:
        self.columns.setdefault(one_line(key), {})[step] = value

    def forget_from(self, step: int) -> None:
        """Leave out what was logged at a step and after it."""
        for key, column in list(self.columns.items()):
            kept = {at: value for at, value in column.items() if at < step}
            if kept:
                self.columns[key] = kept
            else:
                del self.columns[key]

    def add_record(self, record: Any, place: str) -> None:
        """Every number of a record. What is left out is counted: all of it if it is none, or has no step.

        Args:
            record: by name.
            place: where it stands, for a note.
        """
        if not isinstance(record, dict):
            self.left_out.record("null" if record is None else "no object of names and numbers", place)
            return
        name = next((name for name in STEP if record.get(name) is not None), None)
        if name is None:
            self.left_out.record(f'no "{STEP[0]}"', place)
            return
        try:
            at = whole_step(record[name])
        except NoNumber as error:
            self.left_out.record(f'a "{name}" that is {error}', place)
            return
        for key, value in record.items():
            if key not in STEP:
                try:
                    self.add(key, at, number(value))
                except NoNumber as error:
                    self.left_out.value(key, str(error))

    def check_steps(self, path: Path, records: int) -> None:
        """Raise a ReportError if none of the records could be used."""
        if records and self.left_out.records == records:
            told = " ".join(self.left_out.notes(path.name))
            raise ReportError(f'{path}: none of its {records} records has a whole number under "step". {told}')


def trainer_state(path: Path, log: Log) -> None:
    """``log_history`` of a trainer_state.json."""
    try:
        content = decode(whole(path))
    except TooDeep as error:
        raise ReportError(f"{path}: {error}; no trainer_state.json is.") from error
    except BrokenJSON as error:
        raise ReportError(
            f"{path} is not whole JSON ({error}); it may have been cut off while it was written. Give an older "
            "checkpoint's trainer_state.json instead."
        ) from error
    history = content.get("log_history") if isinstance(content, dict) else None
    if not isinstance(history, list):
        raise ReportError(f'{path} has no list "log_history": it is not a trainer_state.json of Hugging Face Trainer.')
    for place, record in enumerate(history, start=1):
        log.add_record(record, f"number {place} of log_history")
    log.check_steps(path, len(history))


def csv_metrics(path: Path, log: Log) -> None:
    """Lightning's metrics.csv: rows of different kinds in turn, cells empty where a row has no such number."""
    rows = csv.DictReader(lines(path), restkey="", strict=True)
    try:
        if "step" not in (rows.fieldnames or ()):
            raise ReportError(
                f'{path} has no column "step" in its first line ({some(list(rows.fieldnames or [])) or "empty"}): '
                "it is not a metrics.csv of Lightning's CSVLogger."
            )
        for row in rows:
            if row.get(""):
                raise ReportError(f"{path}, line {rows.line_num}: more cells than the first line has names.")
            filled = {key: cell for key, cell in row.items() if cell}
            if filled:
                log.add_record(filled, f"line {rows.line_num}")
    except csv.Error as error:
        raise ReportError(f"{path}, line {rows.line_num}: not a table of comma-separated values ({error}).") from error


def json_lines(path: Path, log: Log) -> None:
    """A record a line: ``{"step": 10, "loss": 0.5, "arturo/eta": 2.1}``; a half-written last line is left out."""
    records = 0
    broken: tuple[int, BrokenJSON] | None = None
    for at, line in enumerate(lines(path), start=1):
        if not line.strip():
            continue
        if broken is not None:
            raise ReportError(f"{path}, line {broken[0]}: not JSON ({broken[1]}). Every line has to be one record.")
        try:
            record = decode(line)
        except TooDeep as error:
            raise ReportError(f"{path}, line {at}: {error}; no record of a log is.") from error
        except BrokenJSON as error:
            broken = (at, error)
            continue
        if not isinstance(record, dict):
            raise ReportError(
                f'{path}, line {at}: not a record {{"step": ..., "loss": ...}} but {line.strip()[:40]!r}.'
            )
        records += 1
        log.add_record(record, f"line {at}")
    if broken is not None and not records:
        raise ReportError(f"{path}, line {broken[0]}: not JSON ({broken[1]}), and no record before it.")
    if broken is not None:
        log.notes.append(
            f"{path.name}: the last line ({broken[0]}) is half written and was left out: the run goes on, or stopped."
        )
    log.check_steps(path, records)


#: By the kind of a source (:mod:`find`): who writes it, in words, and its reader.
READERS: dict[str, tuple[str, Callable[[Path, Log], None]]] = {
    "trainer": ("Hugging Face Trainer", trainer_state),
    "csv": ("Lightning CSVLogger", csv_metrics),
    "tensorboard": ("TensorBoard", tensorboard),
    "jsonl": ("JSON lines", json_lines),
}


def read(kind: str, path: Path) -> Log:
    """What a log holds.

    Raises:
        ReportError: it is broken, cannot be opened, or is not of this kind.
    """
    log = Log()
    READERS[kind][1](path, log)
    log.notes += log.left_out.notes(path.name)
    return log
