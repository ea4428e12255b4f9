"""Scalars from TensorBoard's event files, each as long as it was at the beginning."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arturo_integrations.report import sources
from arturo_integrations.report.errors import ReportError

if TYPE_CHECKING:
    from arturo_integrations.report.read import Log

FRAME = 16  # bytes around every event: its length and two checksums
NAME = "events.out.tfevents."


def tensorboard(path: Path, log: Log) -> None:
    """Scalars of one event file, or of all event files in a folder, in the order of their names."""
    try:
        import tensorboard.backend.event_processing.event_file_loader  # noqa: F401
    except ImportError as error:
        raise ReportError(
            f"{path} holds TensorBoard event files, and tensorboard is not installed: pip install tensorboard"
        ) from error
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    files = sorted(file for file in path.iterdir() if file.name.startswith(NAME)) if path.is_dir() else [path]
    plugins: dict[str, str] = {}  # by tag: only its first value says whose it is
    unusable: list[str] = []
    for file in files:
        try:
            for event in _events(file, log):
                _add(event, plugins, log)
        except ReportError as error:
            unusable.append(str(error))
    if len(unusable) == len(files):
        raise ReportError(unusable[0] if unusable else f"{path} holds no event files any more.")
    log.notes += unusable


def _events(path: Path, log: Log) -> Iterator[Any]:
    """The events of a file, up to the first that is damaged; the log's notes say so.

    Raises:
        ReportError: there is not one, or the file cannot be read.
    """
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto import event_pb2

    size = left = sources.regular(path).st_size
    reason = "cut off, or damaged"
    try:
        for record in RawEventFileLoader(str(path)).Load() if size else ():
            yield event_pb2.Event.FromString(record)
            left -= len(record) + FRAME
            if left <= 0:
                return
    except Exception as error:  # of any type: what a foreign file is taken for decides
        reason = f"{type(error).__name__}: {error}"
    if left == size > 0:
        raise ReportError(f"{path}: TensorBoard cannot read any event of it ({reason}).")
    if left:
        log.notes.append(f"{path.name}: read up to byte {size - left:,} of {size:,}; the rest is left out ({reason}).")


def _add(event: Any, plugins: dict[str, str], log: Log) -> None:
    """The scalars of an event. One that begins a resumed run takes back the steps which that run repeats."""
    if event.HasField("session_log") and event.session_log.status == event.session_log.START:
        log.forget_from(event.step)
    for value in event.summary.value:
        plugin = plugins.setdefault(value.tag, value.metadata.plugin_data.plugin_name)
        found = value.simple_value if value.HasField("simple_value") else _scalar(value, plugin)
        if found is not None:
            log.add(value.tag, event.step, found)
        elif plugin == "scalars":
            log.left_out.value(value.tag, "not one number")


def _scalar(value: Any, plugin: str) -> float | None:
    """The one number of a tensor that was logged as a scalar."""
    from tensorboard.util import tensor_util

    if plugin != "scalars" or not value.HasField("tensor"):
        return None
    if any(dim.size != 1 for dim in value.tensor.tensor_shape.dim):
        return None
    try:
        return float(tensor_util.make_ndarray(value.tensor).reshape(()))
    except (TypeError, ValueError):
        return None
