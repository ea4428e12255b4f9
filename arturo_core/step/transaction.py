"""All or nothing: a step that breaks off in the middle is undone, or, of a large model, finished.

A step writes weights and statistics chunk by chunk, so an exception between two of these writes would leave a mixture
that no later step could tell from a sound state. For models of up to :data:`UNDOABLE` weights a :class:`Journal` keeps
what every write replaces until the step is over, and puts it back. For larger ones that copy would cost too much; the
step is finished after the exception instead, and what was done already is not done again. Either way the exception goes
on. Where neither is possible (an exception inside an eager pass of a large model, or one that keeps coming back), the
step raises :class:`TornStep`, and no other is taken until a checkpoint is loaded.

Interrupts (Ctrl-C, and whatever else raises in a Python signal handler) wait until a step is over, in the main thread,
where such handlers run.
"""

from __future__ import annotations

import functools
import importlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

#: Weights on a rank up to which all that a step replaces is kept until it is over: about 20 MB in float32.
UNDOABLE = 1 << 20

_T = TypeVar("_T")


class TornStep(RuntimeError):
    """A step could be neither undone nor finished: weights and statistics are a mixture of two steps."""


class Journal:
    """What a step has done so far: results by their order, and how to undo its writes.

    Args:
        undoable: keep what is replaced.
    """

    def __init__(self, undoable: bool) -> None:
        self.undoable = undoable
        self.wrote = False
        self.torn = False
        self._results: list[Any] = []
        self._next = 0
        self._undo: list[Callable[[], Any]] = []

    def once(self, work: Callable[[], _T]) -> _T:
        """The result of a part of the step that changes nothing, or that other ranks take part in.

        It is worked out now, unless that was done before the step broke off.
        """
        if self._next == len(self._results):
            self._results.append(work())
        result: _T = self._results[self._next]
        self._next += 1
        return result

    def write(
        self,
        work: Callable[[], _T],
        changes: Sequence[Tensor] = (),
        *,
        undo: Callable[[], Any] | None = None,
        temporary: bool = False,
        atomic: bool = False,
    ) -> _T:
        """The result of a part of the step that changes tensors, once.

        Args:
            work: the part; called in the same order in every attempt.
            changes: the tensors.
            undo: puts back what they were, instead of copies that are made now.
            temporary: whether the tensors are gone with the step.
            atomic: whether an exception in it comes before the first change.
        """
        return self.once(partial(self._write, work, list(changes), undo, temporary, atomic))

    def _write(
        self,
        work: Callable[[], _T],
        changes: list[Tensor],
        undo: Callable[[], Any] | None,
        temporary: bool,
        atomic: bool,
    ) -> _T:
        if self.undoable and not temporary:
            if undo is None:
                copies = [torch.empty_like(tensor) for tensor in changes]
                torch._foreach_copy_(copies, changes)
                undo = partial(torch._foreach_copy_, changes, copies)
            self._undo.append(undo)
        try:
            result = work()
        except BaseException:
            self.torn = not atomic
            self.wrote = self.wrote or not (temporary or atomic)
            raise
        self.wrote = self.wrote or not temporary
        return result

    def undo(self) -> None:
        """Put back all that was replaced."""
        for undo in reversed(self._undo):
            undo()

    def rewind(self) -> None:
        """Begin another attempt at the step: what has been done is not done again."""
        self._next = 0


class Unjournaled(Journal):
    """For a step that is being compiled: its graph has no place for exceptions between two writes."""

    def __init__(self) -> None:
        super().__init__(undoable=False)

    def once(self, work: Callable[[], _T]) -> _T:
        return work()

    def _write(self, work: Callable[[], _T], *_: Any) -> _T:
        return work()


def carry_out(attempts: Sequence[Callable[[Journal], _T]], undoable: bool) -> _T:
    """Carry out a step so that an exception leaves nothing half done.

    Args:
        attempts: the step as it is wanted, and ways to finish it if it breaks off and cannot be undone.
        undoable: whether to keep what it replaces.

    Raises:
        BaseException: whatever the first attempt raised. Nothing has changed, or the step has been taken all the same.
        TornStep: the step could be neither undone nor finished.
    """
    if torch.compiler.is_compiling():
        return attempts[0](Unjournaled())
    journal = Journal(undoable)
    with uninterrupted():
        try:
            return attempts[0](journal)
        except BaseException as error:
            if not (_undone(journal) if undoable else _settled(attempts, journal)):
                raise TornStep(
                    "Arturo: a step broke off in the middle and could be neither undone nor finished: weights and "
                    "statistics are a mixture of two steps. Go back to the last checkpoint."
                ) from error
            raise


def _undone(journal: Journal) -> bool:
    try:
        journal.undo()
    except BaseException:  # what broke the step off may still be there
        return False
    return True


def _settled(attempts: Sequence[Callable[[Journal], Any]], journal: Journal) -> bool:
    return not journal.wrote or (not journal.torn and _finish(attempts, journal))


def _finish(attempts: Sequence[Callable[[Journal], Any]], journal: Journal) -> bool:
    for attempt in attempts:
        journal.rewind()
        try:
            attempt(journal)
        except Exception:
            if journal.torn:
                return False
            continue
        return True
    return False


#: Python's own module names what it finds, which takes as long as a step of a small model.
_raw: Any = importlib.import_module("_signal")


@functools.cache
def _signals() -> tuple[int, ...]:
    return tuple(map(int, signal.valid_signals()))


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Python's signal handlers wait until the end; they run in the main thread alone, and may raise there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[tuple[int, Any]] = []
    waiting = True
    handlers: dict[int, Any] = {}
    for number in _signals():
        if callable(handler := _raw.getsignal(number)):
            handlers[number] = handler

    def wait(number: int, frame: Any) -> None:
        if waiting:
            arrived.append((number, frame))
        else:
            handlers[number](number, frame)

    try:
        for number in handlers:
            signal.signal(number, wait)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        waiting = False
        for number, frame in arrived:
            handlers[number](number, frame)
