"""The runs on disk: JSON lines, appended one at a time, so that an interruption loses the run in hand and no other."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from recipes.benchmarks.quality.optimizers import rounded
from recipes.text.record import plain

Record = dict[str, Any]
#: task, optimizer, lr to six digits, seed, digest of task settings and optimizer code
Key = tuple[str, str, float, int, str]


def key(record: Record) -> Key:
    """What makes two records the same run. The purpose does not: a run serves every purpose it fits."""
    return record["task"], record["optimizer"], rounded(record["lr"]), record["seed"], record["digest"]


def task_digest(record: Record) -> str:
    """The part of the digest that stands for the task's settings."""
    return str(record["digest"].split("-")[0])


def code_digest(record: Record) -> str:
    """The part that stands for what our own optimizer does; "published" for the others."""
    return str(record["digest"].split("-")[-1])


def read(paths: Sequence[Path]) -> list[Record]:
    """All records, oldest first, the last of each key only. Files that do not exist are empty.

    A line that was cut off while being written is passed over: its run is not finished.
    """
    found = []
    for path in paths:
        if not path.exists():
            continue
        for line in path.read_bytes().splitlines():
            try:
                record = json.loads(line)
                key(record)
            except (ValueError, KeyError, TypeError):
                continue
            found.append(record)
    return latest(found)


def latest(records: Iterable[Record]) -> list[Record]:
    """The last record of each key."""
    kept: dict[Key, Record] = {}
    for record in records:
        kept.pop(key(record), None)
        kept[key(record)] = record
    return list(kept.values())


def append(path: Path, record: Record) -> None:
    """Add one line in one write; a torn line before it stays alone. Numbers JSON lacks become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(plain(record), allow_nan=False).encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def failed(record: Record) -> bool:
    """Whether the run ended without scores: it diverged or raised."""
    return bool(record.get("diverged") or record.get("failed"))


def score(record: Record, part: str, name: str) -> float:
    """A number of the final scores; infinity for a run that failed (NaN for its accuracy and calibration)."""
    value = (record.get(part) or {}).get(name)
    if failed(record) or value is None:
        return math.inf if name == "loss" else math.nan
    return float(value)


def reread(record: Record) -> Record:
    """A record as `read` will give it back."""
    content: Record = json.loads(json.dumps(plain(record), allow_nan=False))
    return content
