"""Hands runs to worker processes, one thread each, and writes down what comes back."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path

from recipes.benchmarks.quality import records as store
from recipes.benchmarks.quality.plan import Plan, Planned
from recipes.benchmarks.quality.progress import Progress
from recipes.benchmarks.quality.records import Record

#: Read by the workers when they start. glibc gives large temporaries back to the system and takes them anew unless told
#: to keep them: page faults, not arithmetic, were then half of the time of optimizers that make one per parameter.
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 33),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
}


def work(planned: Planned) -> Record:
    """In a worker: one run. Imports and what a task has read stay with the worker."""
    from recipes.benchmarks.quality.tasks import TASKS
    from recipes.benchmarks.quality.training import run

    return run(TASKS[planned.task], planned.optimizer, planned.lr, planned.seed, planned.purpose)


def _quiet_worker() -> None:
    """Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def processes(jobs: int) -> ProcessPoolExecutor:
    """Workers that live as long as the grid. Spawned: threads of torch do not survive a fork."""
    os.environ.update(WORKER_ENVIRONMENT)
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_quiet_worker)


@dataclass
class Grid:
    """A plan being carried out.

    Args:
        plan: what to run.
        path: the records, read at the start and appended to.
        jobs: runs at a time.
        max_minutes: after that long no run is handed out any more; those under way finish.
        rerun_failed: do again what raised an exception (divergences stand).
        executor: makes the workers.
        work: does one run.
    """

    plan: Plan
    path: Path
    jobs: int = 1
    max_minutes: float | None = None
    rerun_failed: bool = False
    executor: Callable[[int], Executor] = processes
    work: Callable[[Planned], Record] = work
    unavailable: dict[str, str] = field(default_factory=dict)  # task: why it could not be made
    records: list[Record] = field(default_factory=list, init=False)  # of the file, and of the runs done since

    def carry_out(self, progress: Progress) -> bool:
        """Run until nothing is left (True), time is up or Ctrl-C (False)."""
        self.records = store.read([self.path])
        if self.rerun_failed:
            self.records = [record for record in self.records if not record.get("failed")]
        begin = time.monotonic()
        running: dict[Future[Record], Planned] = {}
        pool = self.executor(self.jobs)
        progress.start(self.left())
        try:
            while True:
                late = self.max_minutes is not None and time.monotonic() - begin > 60 * self.max_minutes
                if not late:
                    self._hand_out(pool, running)
                if not running:
                    return not late or not self._open(running)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    self._take(running.pop(future), future, progress)
        except KeyboardInterrupt:
            progress.say("Interrupted: finished runs are recorded; the same command goes on from here.")
            self._abandon(pool)
            return False
        except BrokenProcessPool:
            progress.say("A worker died (out of memory?): finished runs are recorded; the same command goes on.")
            return False
        finally:
            progress.stop()
            pool.shutdown(wait=False, cancel_futures=True)

    def left(self) -> int:
        tasks = [task for task in self.plan.tasks if task.name not in self.unavailable]
        return replace(self.plan, tasks=tasks).left(self.records)

    def _open(self, running: dict[Future[Record], Planned]) -> list[Planned]:
        under_way = {planned.key for planned in running.values()}
        return [one for one in self.plan.todo(self.records, under_way) if one.task not in self.unavailable]

    def _hand_out(self, pool: Executor, running: dict[Future[Record], Planned]) -> None:
        for planned in self._open(running)[: self.jobs - len(running)]:
            running[pool.submit(self.work, planned)] = planned

    def _take(self, planned: Planned, future: Future[Record], progress: Progress) -> None:
        try:
            record = future.result()
        except BrokenProcessPool:
            raise
        except Exception as error:  # the task could not be made
            self._skip(planned.task, f"{type(error).__name__}: {error}", progress)
        else:
            if other := self._other_data(record):
                self._skip(planned.task, other, progress)
                return
            store.append(self.path, record)
            self.records = store.latest([*self.records, store.reread(record)])
            progress.finished(record, self.left())

    def _skip(self, task: str, why: str, progress: Progress) -> None:
        if task not in self.unavailable:
            self.unavailable[task] = why
            progress.say(f"{task} is skipped: {why}")

    def _other_data(self, record: Record) -> str | None:
        """Why a run does not belong to the records of its task: lm-python, say, reads the library of this Python."""
        settings = record["task"], store.task_digest(record)
        known = [
            one["data"] for one in self.records if (one["task"], store.task_digest(one)) == settings if "data" in one
        ]
        if not known or known[-1] == record.get("data"):
            return None
        return (
            f"its data (sha256 {str(record.get('data'))[:8]}…) are not those of the runs in {self.path} "
            f"({str(known[-1])[:8]}…); give --results another file"
        )

    @staticmethod
    def _abandon(pool: Executor) -> None:
        """End this pool's own workers; their runs are lost, which no record shows."""
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            process.terminate()
