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

#: Names of the step in a record.
STEP = ("step", "global_step")
#: Steps beyond it are no whole numbers of float64 any more.
LAST_STEP = 1 << 53


class Log:
    """What has been read: ``columns[key][step]``, and notes on what was left out.

    A step that was logged twice, as after a resume, has the later value.
    """

    def __init__(self) -> None:
        self.columns: dict[str, dict[int, float]] = {}
        self.notes: list[str] = []

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

    def add_record(self, record: dict[str, Any]) -> bool:
        """Every number of a record; False if it has no step."""
        step = next((step for step in map(record.get, STEP) if step is not None), None)
        at = None if isinstance(step, bool) else number(step)
        if at is None or not at.is_integer() or abs(at) > LAST_STEP:
            return False
        for key, value in record.items():
            converted = number(value)
            if key not in STEP and converted is not None:
                self.add(key, int(at), converted)
        return True


def number(value: Any) -> float | None:
    """A float from a number, a bool or a numeric text ("0.5", "NaN"); None from anything else, and from a whole number
    too large for a float."""
    if not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


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
    if not isinstance(history, list) or not all(isinstance(record, dict) for record in history):
        raise ReportError(f'{path} has no list "log_history": it is not a trainer_state.json of Hugging Face Trainer.')
    for record in history:
        log.add_record(record)


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
            if filled and not log.add_record(filled):
                log.notes.append(f"{path.name}, line {rows.line_num}: no whole-number step; left out.")
    except csv.Error as error:
        raise ReportError(f"{path}, line {rows.line_num}: not a table of comma-separated values ({error}).") from error


def json_lines(path: Path, log: Log) -> None:
    """A record a line: ``{"step": 10, "loss": 0.5, "arturo/eta": 2.1}``; a half-written last line is left out."""
    without_step = records = 0
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
        without_step += not log.add_record(record)
    if broken is not None and not records:
        raise ReportError(f"{path}, line {broken[0]}: not JSON ({broken[1]}), and no record before it.")
    if broken is not None:
        log.notes.append(
            f"{path.name}: the last line ({broken[0]}) is half written and was left out: the run goes on, or stopped."
        )
    if records and without_step == records:
        raise ReportError(f'{path}: none of its {records} records has a whole number under "step".')
    if without_step:
        log.notes.append(f'{path.name}: {without_step} of {records} records have no "step" and were left out.')


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
    return log
