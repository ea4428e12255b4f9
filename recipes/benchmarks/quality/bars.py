"""What arTuRO is held to, judged by the records: pass, fail, or incomplete while runs are missing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection
from typing import NamedTuple

from recipes.benchmarks.quality.analysis import BASELINE, Estimate, Results
from recipes.benchmarks.quality.optimizers import OPTIMIZERS, rounded
from recipes.benchmarks.quality.plan import FRESH_SEEDS, NEIGHBOUR_SEED, TUNING_SEED
from recipes.benchmarks.quality.records import failed, score

OURS = "arturo"
ERRORS = 2.0  # standard errors of a difference that count as a difference
LARGEST_STEPS_RATIO = 0.8


class Bar(NamedTuple):
    """A requirement, its verdict and what it rests on."""

    claim: str
    verdict: str
    evidence: str


def compare(ours: Estimate, base: Estimate) -> float | None:
    """Difference of the means in standard errors of the difference: below 0, ours is lower; None if unknown."""
    if min(ours.seeds, base.seeds) < 2:
        return None
    if not math.isfinite(ours.mean) or not math.isfinite(base.mean):
        if ours.mean == base.mean:
            return 0.0
        return math.inf if not math.isfinite(ours.mean) else -math.inf
    difference, error = ours.mean - base.mean, math.hypot(ours.error, base.error)
    if error == 0.0:
        return 0.0 if difference == 0.0 else math.copysign(math.inf, difference)
    return difference / error


def verdict(violated: bool, known: int, total: int) -> str:
    """A violation fails at once; passing takes all data."""
    if violated:
        return "fail" if known == total else f"fail ({known} of {total} known)"
    return "pass" if known == total and total else f"incomplete ({known} of {total})"


def bars(results: Results) -> list[Bar]:
    """All of them, in order."""
    checks: tuple[Callable[[Results], Bar], ...] = (at_default, tuned, speed, too_large_a_rate, no_failure)
    return [check(results) for check in checks]


def _differences(results: Results, which: str, seeds: Collection[int] | None = None) -> dict[str, float]:
    found = {
        task: compare(*(results.final(task, name, which, seeds=seeds) for name in (OURS, BASELINE)))
        for task in results.tasks
    }
    return {task: value for task, value in found.items() if value is not None}


def _list(values: dict[str, float], form: str = "+.1f") -> str:
    texts = (f"{task} {'not reached' if value == math.inf else format(value, form)}" for task, value in values.items())
    return ", ".join(texts) or "–"


def seed_sets(results: Results) -> dict[str, tuple[int, ...]]:
    """The seeds seen in development and the fresh ones, of those on record; empty unless there are some of both."""
    used = sorted({record["seed"] for record in results.records if record["seed"] != TUNING_SEED})
    seen, fresh = (tuple(seed for seed in used if (seed in FRESH_SEEDS) is new) for new in (False, True))
    return {", ".join(map(str, seeds)): seeds for seeds in (seen, fresh)} if seen and fresh else {}


def at_default(results: Results, seeds: Collection[int] | None = None) -> Bar:
    """The first bar, on all seeds or some; both defaults are the same number."""
    found = _differences(results, "default", seeds)
    return Bar(
        "At AdamW's default lr, test loss no worse than AdamW's at the same lr by more than 2 s.e. on any task",
        verdict(any(value > ERRORS for value in found.values()), len(found), len(results.tasks)),
        "difference in s.e. (negative: arTuRO is better): " + _list(found).replace("not reached", "failed"),
    )


def tuned(results: Results, seeds: Collection[int] | None = None) -> Bar:
    """The second bar, on all seeds or some."""
    found = _differences(results, "best", seeds)
    total = len(results.tasks)
    better = sum(value < -ERRORS for value in found.values())
    worse = any(value > ERRORS for value in found.values())
    hopeless = 2 * (better + total - len(found)) < total
    return Bar(
        "Both tuned, test loss no worse on any task by more than 2 s.e., and better by more than 2 s.e. on at least "
        "half of them",
        verdict(worse or hopeless, len(found), total),
        f"better on {better}; difference in s.e.: " + _list(found).replace("not reached", "failed"),
    )


def speed(results: Results) -> Bar:
    """The third bar."""
    ratios = {task: results.steps_ratio(task, OURS, "best") for task in results.tasks}
    known = {task: ratio for task, ratio in ratios.items() if ratio is not None}
    middle = statistics.median(known.values()) if known else math.nan
    complete = len(known) == len(results.tasks)
    said = "not reached" if middle == math.inf else format(middle, ".2f") if known else "–"
    return Bar(
        "Both tuned, median over tasks of steps to AdamW's final validation loss at most "
        f"{LARGEST_STEPS_RATIO} of AdamW's",
        verdict(complete and not middle <= LARGEST_STEPS_RATIO, len(known), len(results.tasks)),
        f"median {said}: " + _list(known, ".2f"),
    )


def too_large_a_rate(results: Results) -> Bar:
    """The fourth bar: one seed a point, so it compares the numbers as they are."""
    found = {}
    for task in results.tasks:
        best = results.best_lr(task, OURS)
        if best is None:
            continue
        high, low = (
            [
                score(record, "test", "loss")
                for record in results.seeds(task, OURS, rounded(best * OPTIMIZERS[OURS].factor ** k))
                if record["seed"] == NEIGHBOUR_SEED
            ]
            for k in (1, -1)
        )
        if high and low:
            found[task] = math.inf if not math.isfinite(high[0]) else high[0] - low[0]
    return Bar(
        "At √10 times its best lr, test loss no worse than at the best lr / √10, on every task (seed 1)",
        verdict(any(value > 0 for value in found.values()), len(found), len(results.tasks)),
        "difference of the losses: " + _list(found, "+.4f").replace("not reached", "failed"),
    )


def no_failure(results: Results) -> Bar:
    """The fifth bar, over every run of the optimizer, whatever its learning rate."""
    runs = [record for record in results.records if record["optimizer"] == OURS]
    bad = [record for record in runs if failed(record)]
    tasks = {record["task"] for record in runs}
    where = "; ".join(f"{one['task']} lr {one['lr']:.3g} seed {one['seed']}" for one in bad)
    return Bar(
        "No run with a loss that is not finite, and none with an exception",
        verdict(bool(bad), len(tasks), len(results.tasks)),
        f"{len(bad)} of {len(runs)} runs" + (f": {where}" if where else ""),
    )
