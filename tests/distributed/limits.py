"""How long a test waits for something before it takes it to hang: the only place that says so.

Ten minutes are no measurement: on a machine that is busy with other work everything may take many times as long.
"""

from __future__ import annotations

import contextlib
import datetime
import signal
from collections.abc import Iterator

HANGS = 600.0  # seconds
#: The same for process groups: a collective that only some ranks have reached.
PATIENCE = datetime.timedelta(seconds=HANGS)


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    """Work in this process that must come to an end: TimeoutError if it does not."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"hangs for {HANGS:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, HANGS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
