"""One run: train, look at the validation part on the way, measure, and read the test part once at the end."""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from recipes.benchmarks.quality import environment
from recipes.benchmarks.quality.optimizers import OPTIMIZERS, Entry, rounded, state_bytes, trainable
from recipes.benchmarks.quality.records import Record
from recipes.benchmarks.quality.tasks.base import Problem, Task

#: Validations on the way, the last step's included; those of pretrained transformers are slow.
POINTS = {"from scratch": 8, "fine-tuning": 4, "lora": 4}
LAST_SHARE = 0.1  # of the steps, whose mean training loss is reported


class Diverged(Exception):
    """A loss was not finite."""


def evaluation_steps(steps: int, points: int) -> list[int]:
    """Evenly spaced counts of steps taken, the last one included."""
    return sorted({max(1, round(steps * point / points)) for point in range(1, points + 1)})


def lr_factor(task: Task, entry: Entry, step: int) -> float:
    """The task's schedule, or its warm-up alone for a schedule-free method."""
    if entry.constant:
        return min(1.0, (step + 1) / max(1, task.warmup))
    return task.factor(step)


@contextmanager
def one_thread() -> Iterator[None]:
    """Every run gets one thread, whatever else runs: wall times stay comparable, results the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(task: Task, optimizer: str, lr: float, seed: int, purpose: str, entry: Entry | None = None) -> Record:
    """Train once and return the record.

    What goes wrong in training is recorded: ``diverged`` holds the reason if a loss was not finite, ``failed`` the
    message of an exception. Exceptions of ``task.make`` (missing data) are the caller's.
    """
    entry = entry or OPTIMIZERS[optimizer]
    begin = time.perf_counter()
    with one_thread():
        problem = task.make(seed)
        record: Record = {
            "task": task.name,
            "optimizer": optimizer,
            "lr": rounded(lr),
            "seed": seed,
            "purpose": purpose,
            "digest": environment.digest(task, entry),
            "family": task.family,
            "steps": task.steps,
            "params": sum(param.numel() for param in trainable(problem.model)),
            "data": problem.data_sha256,
            "diverged": None,
            "failed": None,
            "curve": [],
        }
        try:
            Run(task, entry, problem, lr, record).train()
        except Diverged as error:
            record["diverged"] = str(error)
        except Exception as error:
            record["failed"] = f"{type(error).__name__}: {error}"
    record |= {
        "total_s": round(time.perf_counter() - begin, 3),
        "versions": environment.versions(entry),
        "commit": environment.commit(),
        "threads": 1,
        "cpu": environment.cpu(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    return record


class Run:
    """The training loop; results go into `record` as they come, so that a failed run keeps what it had."""

    def __init__(self, task: Task, entry: Entry, problem: Problem, lr: float, record: Record) -> None:
        self.task, self.entry, self.problem, self.record = task, entry, problem, record
        self.params = trainable(problem.model)
        self.optimizer: Any = entry.build(problem.model, rounded(lr), problem.examples)
        self.base = [group["lr"] for group in self.optimizer.param_groups]
        self.losses: list[float] = []
        self.stepping = self.stepping_cpu = self.training = self.training_cpu = 0.0

    def train(self) -> None:
        """All steps, then the final scores."""
        stops = set(evaluation_steps(self.task.steps, POINTS[self.task.family]))
        self.problem.model.train()
        self.entry.switch(self.optimizer, True)
        last = None
        begin, busy = time.perf_counter(), time.process_time()
        for step, batch in enumerate(self.problem.batches()):
            self._step(step, batch)
            if step + 1 in stops:
                self.training += time.perf_counter() - begin
                self.training_cpu += time.process_time() - busy
                last = self._scores("validation")
                self.record["curve"].append([step + 1, last["loss"], last["accuracy"]])
                begin, busy = time.perf_counter(), time.process_time()
        if len(self.losses) != self.task.steps:
            raise RuntimeError(f"{self.task.name} gave {len(self.losses)} batches, not its {self.task.steps}")
        tail = self.losses[-max(1, round(LAST_SHARE * self.task.steps)) :]
        self.record |= {
            "validation": last,
            "test": self._scores("test"),
            "train_loss": sum(tail) / len(tail),
            "wall_s": round(self.training, 3),
            # Unlike wall times these do not grow when the machine has other work.
            "cpu_s": round(self.training_cpu, 3),
            "optimizer_cpu_s": round(self.stepping_cpu, 3),
            "optimizer_s": round(self.stepping, 3),
            "state_bytes": state_bytes(self.optimizer),
        }
        if hasattr(self.optimizer, "diagnostics"):
            self.record["diagnostics"] = self.optimizer.diagnostics()

    def _step(self, step: int, batch: Any) -> None:
        factor = lr_factor(self.task, self.entry, step)
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base * factor
        self.optimizer.zero_grad()
        with self.entry.sampling(self.optimizer):
            loss = self.problem.loss(batch)
            self.losses.append(loss.item())
            if not math.isfinite(self.losses[-1]):
                raise Diverged(f"training loss {self.losses[-1]} at step {step + 1}")
            loss.backward()  # type: ignore[no-untyped-call]
            if self.task.clip is not None:
                clip_grad_norm_(self.params, self.task.clip)
        begin, busy = time.perf_counter(), time.process_time()
        self.optimizer.step()
        self.stepping += time.perf_counter() - begin
        self.stepping_cpu += time.process_time() - busy

    def _scores(self, part: str) -> dict[str, float]:
        self.entry.switch(self.optimizer, False)
        scores = asdict(self.problem.evaluate(part))
        self.entry.switch(self.optimizer, True)
        if not math.isfinite(scores["loss"]):
            raise Diverged(f"{part} loss {scores['loss']} after {len(self.losses)} steps")
        return scores
