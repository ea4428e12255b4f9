"""What the records say: best learning rates, means and standard errors over seeds, steps to a loss."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from recipes.benchmarks.quality.optimizers import OPTIMIZERS, grid_lr, rounded
from recipes.benchmarks.quality.plan import BUDGET, TUNING_SEED
from recipes.benchmarks.quality.records import Record, code_digest, failed, score, task_digest

BASELINE = "adamw"


class Estimate(NamedTuple):
    """Mean over seeds with its standard error (NaN for fewer than two seeds)."""

    mean: float
    error: float
    seeds: int


def estimate(values: Sequence[float]) -> Estimate:
    """Infinite values, of failed runs, make the mean infinite and leave no error."""
    if not values:
        return Estimate(math.nan, math.nan, 0)
    if not all(map(math.isfinite, values)):
        return Estimate(math.inf if math.inf in values else math.nan, math.nan, len(values))
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(statistics.fmean(values), error, len(values))


def steps_to_loss(curve: Sequence[Sequence[float]], target: float) -> float | None:
    """Step at which a curve of [step, loss, ...] first reaches `target`, linear between its points; None if never.

    Nothing is known before the first point: a loss reached there counts from its step, to the curve's disadvantage.
    """
    before: Sequence[float] | None = None
    for point in curve:
        if point[1] <= target:
            if before is None:
                return float(point[0])
            share = (before[1] - target) / (before[1] - point[1])
            return before[0] + share * (point[0] - before[0])
        before = point
    return None


def mean_curve(records: Sequence[Record]) -> list[list[float]]:
    """[step, mean validation loss, its standard error] over seeds; empty if there is none or one has failed."""
    if not records or any(failed(record) for record in records):
        return []
    curves = [{point[0]: point[1] for point in record["curve"]} for record in records]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    means = [estimate([curve[step] for curve in curves]) for step in steps]
    return [[step, mean.mean, mean.error] for step, mean in zip(steps, means, strict=True)]


class Results:
    """The records that count: of each task its newest settings, of our own optimizer its newest code.

    Args:
        records: as read.
        tasks: names of all tasks of the benchmark, with or without records.
        code: digest of an own optimizer's behaviour to show instead of its newest.
    """

    def __init__(self, records: Iterable[Record], tasks: Sequence[str], code: str | None = None) -> None:
        records = sorted(records, key=lambda record: record.get("date", ""))
        settings = {record["task"]: task_digest(record) for record in records}
        current = [record for record in records if task_digest(record) == settings[record["task"]]]
        self.codes: dict[str, list[str]] = {}  # of our own optimizers, the one run last is last
        for record in current:
            if (own := code_digest(record)) != "published":
                known = self.codes.setdefault(record["optimizer"], [])
                if own in known:
                    known.remove(own)
                known.append(own)
        self.code = {name: code if code in codes else codes[-1] for name, codes in self.codes.items()}
        self.records = [
            record for record in current if code_digest(record) in ("published", self.code.get(record["optimizer"]))
        ]
        self.left_out = len(records) - len(self.records)
        self.tasks = [*tasks, *(name for name in settings if name not in tasks)]
        present = {record["optimizer"] for record in self.records}
        self.optimizers = [name for name in OPTIMIZERS if name in present]
        self._of: dict[tuple[str, str], list[Record]] = {}
        for record in self.records:
            self._of.setdefault((record["task"], record["optimizer"]), []).append(record)

    def runs(self, task: str, optimizer: str) -> list[Record]:
        return self._of.get((task, optimizer), [])

    def tuning(self, task: str, optimizer: str) -> dict[float, float]:
        """Final validation loss of the tuning seed by learning rate, ascending."""
        runs = [record for record in self.runs(task, optimizer) if record["seed"] == TUNING_SEED]
        return dict(sorted((rounded(record["lr"]), score(record, "validation", "loss")) for record in runs))

    def tuned(self, task: str, optimizer: str) -> bool:
        """Whether as many learning rates were tried as of AdamW (at most the budget: some earn an extension)."""
        return len(self.tuning(task, optimizer)) >= min(BUDGET, len(self.tuning(task, BASELINE)) or BUDGET)

    def best_lr(self, task: str, optimizer: str) -> float | None:
        """The smallest of the learning rates with the lowest validation loss; None before the tuning is done."""
        losses = self.tuning(task, optimizer)
        finite = [lr for lr in losses if math.isfinite(losses[lr])]
        return min(finite, key=lambda lr: (losses[lr], lr)) if finite and self.tuned(task, optimizer) else None

    def at_edge(self, task: str, optimizer: str) -> bool:
        """Whether the best is the outermost of what was tried, so that a better one may lie beyond."""
        tried = list(self.tuning(task, optimizer))
        return bool(tried) and self.best_lr(task, optimizer) in (tried[0], tried[-1])

    def default_lr(self, task: str, optimizer: str) -> float | None:
        """The untouched default."""
        runs = self.runs(task, optimizer)
        return grid_lr(OPTIMIZERS[optimizer], runs[0]["family"], 0) if runs else None

    def lr(self, task: str, optimizer: str, which: str) -> float | None:
        return self.best_lr(task, optimizer) if which == "best" else self.default_lr(task, optimizer)

    def seeds(self, task: str, optimizer: str, lr: float | None) -> list[Record]:
        """Runs that are reported: every seed but the tuning's, by seed."""
        runs = [record for record in self.runs(task, optimizer) if record["seed"] != TUNING_SEED]
        return sorted(
            (record for record in runs if lr is not None and rounded(record["lr"]) == rounded(lr)),
            key=lambda record: record["seed"],
        )

    def final(
        self,
        task: str,
        optimizer: str,
        which: str,
        name: str = "loss",
        part: str = "test",
        seeds: Collection[int] | None = None,
    ) -> Estimate:
        """A final score at the "best" or the "default" learning rate, over all seeds that are reported or some."""
        runs = self.seeds(task, optimizer, self.lr(task, optimizer, which))
        return estimate([score(record, part, name) for record in runs if seeds is None or record["seed"] in seeds])

    def steps_ratio(self, task: str, optimizer: str, which: str) -> float | None:
        """Steps to AdamW's final validation loss over those AdamW itself takes to first reach it.

        Infinite if it is not reached, None if runs are missing. Both at their best or both at their default rates.
        """
        base = mean_curve(self.seeds(task, BASELINE, self.lr(task, BASELINE, which)))
        runs = self.seeds(task, optimizer, self.lr(task, optimizer, which))
        if not base or not runs:
            return None
        target = base[-1][1]
        own = steps_to_loss(base, target)
        reached = steps_to_loss(mean_curve(runs), target)
        return math.inf if reached is None or own is None else reached / own

    def mean_of(self, task: str, optimizer: str, name: str) -> float:
        """Mean of a measured number over all finished runs: time and memory do not depend on lr or seed."""
        values = [record[name] for record in self.runs(task, optimizer) if not failed(record) and name in record]
        return statistics.fmean(values) if values else math.nan

    def time_ratio(
        self, task: str, optimizer: str, name: str, statistic: Callable[[list[float]], float] = statistics.median
    ) -> float:
        """Median of a time, or another statistic of the runs, over AdamW's."""
        ours, base = (
            [record[name] for record in self.runs(task, one) if not failed(record) and name in record]
            for one in (optimizer, BASELINE)
        )
        return statistic(ours) / statistic(base) if ours and base else math.nan
