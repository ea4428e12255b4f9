"""Which runs are still to do, read off the records alone: an interrupted grid goes on where it stopped.

Tuning, the same for every optimizer: points k of a logarithmic grid around the default learning rate, k = -1, 0, 1
first, then outward from the best until the budget is spent; a best that is then still at an edge of the points tried
earns a few more beyond it. Judged by the final validation loss of seed 0. Then the seeds at the best and at the default
learning rate, whose scores are reported, and for the two that the bars compare a second set of seeds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from recipes.benchmarks.quality.environment import digest
from recipes.benchmarks.quality.optimizers import OPTIMIZERS, Entry, grid_lr, rounded
from recipes.benchmarks.quality.records import Key, Record, key, score
from recipes.benchmarks.quality.tasks.base import Task

#: Stages of a plan, and what their records say they were for.
PURPOSES = {"tune": "tune", "seeds": "seed", "bar": "bar", "fresh": "fresh"}
STAGES = tuple(PURPOSES)
TUNING_SEED = 0
#: Learning rates every optimizer may try, and how many more while its best is the outermost of them.
BUDGET = 5
EXTENSION = 3
#: Seeds that no choice in the development of the default form was made by; run for `FIRST`.
FRESH_SEEDS = (4, 5, 6)
#: Done first, task by task, so that an interrupted grid already compares these two.
FIRST = ("adamw", "arturo")
#: Seed of the runs three times above and below the best learning rate, and the optimizer that makes them.
NEIGHBOUR_SEED = 1
NEIGHBOURS_OF = ("arturo",)
FARTHEST = 40  # grid points looked at on either side of the default when records are read


@dataclass(frozen=True)
class Planned:
    """A run to do."""

    task: str
    optimizer: str
    lr: float
    seed: int
    purpose: str
    digest: str

    @property
    def key(self) -> Key:
        return self.task, self.optimizer, rounded(self.lr), self.seed, self.digest


def best_point(losses: Mapping[int, float]) -> int:
    """Grid point of the lowest loss; of equals (all diverged) the smallest learning rate."""
    return min(losses, key=lambda k: (losses[k], k))


def next_points(losses: Mapping[int, float], budget: int, extension: int = 0) -> list[int]:
    """Grid points to run next, given the losses known; empty when the budget, at least 1, is spent.

    The first three do not depend on each other; each later one follows from all before it. While the best is at an
    edge the walk goes on beyond that edge. If the best is interior, the side with the lower neighbour is looked at
    first, two points from the best, then the other side, then farther out. Beyond the budget, up to `extension` points
    more, the walk goes on only while the best is at an edge: an optimum outside of the points says nothing of the best.
    """
    first = [0, 1, -1][:budget]
    if missing := [k for k in first if k not in losses]:
        return missing
    best = best_point(losses)
    if len(losses) >= budget + (extension if best in (min(losses), max(losses)) else 0):
        return []
    below, above = losses.get(best - 1), losses.get(best + 1)
    if below is None or above is None:
        return [best - 1 if below is None else best + 1]
    side = 1 if above < below else -1
    distance = 2
    while True:
        for k in (best + side * distance, best - side * distance):
            if k not in losses:
                return [k]
        distance += 1


def grid_losses(records: Iterable[Record], task: Task, optimizer: str, entry: Entry) -> dict[int, float]:
    """Final validation losses of the tuning seed by grid point."""
    lrs = {grid_lr(entry, task.family, k): k for k in range(-FARTHEST, FARTHEST + 1)}
    return {
        lrs[rounded(record["lr"])]: score(record, "validation", "loss")
        for record in records
        if (record["task"], record["optimizer"], record["seed"]) == (task.name, optimizer, TUNING_SEED)
        and rounded(record["lr"]) in lrs
    }


@dataclass(frozen=True)
class Plan:
    """What to run: tasks (cheapest first) times optimizers, with a tuning budget and seeds."""

    tasks: Sequence[Task]
    optimizers: Sequence[str]
    budget: int = BUDGET
    extension: int = EXTENSION
    seeds: Sequence[int] = (1, 2, 3)
    fresh: Sequence[int] = FRESH_SEEDS
    stages: Collection[str] = STAGES

    def todo(self, records: Iterable[Record], running: Collection[Key] = ()) -> list[Planned]:
        """Runs that can start now, most wanted first: not recorded, not running, and waiting for nothing."""
        done = {key(record): record for record in records}
        found: dict[Key, Planned] = {}
        for planned in self._wanted(list(done.values())):
            if planned.key not in done and planned.key not in running:
                found.setdefault(planned.key, planned)
        return list(found.values())

    def _wanted(self, records: Sequence[Record]) -> Iterator[Planned]:
        ahead = [name for name in FIRST if name in self.optimizers]
        behind = [name for name in self.optimizers if name not in FIRST]
        for names in (ahead, behind):
            for task in self.tasks:
                for stage in STAGES:
                    for name in names:
                        if stage in self.stages:
                            yield from self._stage(records, task, name, stage)

    def _stage(self, records: Sequence[Record], task: Task, name: str, stage: str) -> Iterator[Planned]:
        entry = OPTIMIZERS[name]
        code = digest(task, entry)
        losses = grid_losses([record for record in records if record["digest"] == code], task, name, entry)

        def planned(lr: float, seed: int) -> Planned:
            return Planned(task.name, name, rounded(lr), seed, PURPOSES[stage], code)

        open_points = next_points(losses, self.budget, self.extension)
        if stage == "tune":
            for k in open_points:
                yield planned(grid_lr(entry, task.family, k), TUNING_SEED)
        elif stage in ("seeds", "fresh"):
            # The default does not wait for the tuning.
            points = [0] if open_points or not losses else [0, best_point(losses)]
            for seed in self.seeds if stage == "seeds" else self._fresh(name):
                for k in reversed(points):
                    yield planned(grid_lr(entry, task.family, k), seed)
        elif name in NEIGHBOURS_OF and losses and not open_points:
            for k in (best_point(losses) + 1, best_point(losses) - 1):
                yield planned(grid_lr(entry, task.family, k), NEIGHBOUR_SEED)

    def _fresh(self, name: str) -> Sequence[int]:
        return [seed for seed in self.fresh if seed not in self.seeds] if name in FIRST else []

    def left(self, records: Sequence[Record]) -> int:
        """About how many runs are left: open tuning points count, and the seeds they lead to."""
        wanted = {planned.key for planned in self.todo(records)}
        more = 0
        for task in self.tasks:
            for name in self.optimizers:
                entry = OPTIMIZERS[name]
                code = digest(task, entry)
                losses = grid_losses([record for record in records if record["digest"] == code], task, name, entry)
                open_points = next_points(losses, self.budget, self.extension)
                if open_points and "tune" in self.stages:
                    more += max(0, self.budget - len(losses) - len(open_points))
                    more += len(self.seeds) * ("seeds" in self.stages)
                    more += len(self._fresh(name)) * ("fresh" in self.stages)
                    more += 2 * ("bar" in self.stages and name in NEIGHBOURS_OF)
        return len(wanted) + more
