"""What a narrow state does to results: arTuRO's state in bfloat16 and 8 bits beside float32, same seeds and rates.

    python -m recipes.benchmarks.quality.storage run --jobs 2      # an hour; resumable
    python -m recipes.benchmarks.quality.storage report

Five tasks, at the default learning rate and at the best of the benchmark's tuning, seeds 1 to 3. The same seed gives
the same data order and first weights, so losses are compared seed by seed.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import as_completed
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from torch import nn

from arturo_core import Arturo
from recipes.arguments import Parser, path, positive
from recipes.benchmarks.quality import records as store
from recipes.benchmarks.quality.__main__ import RESULTS
from recipes.benchmarks.quality.analysis import Results
from recipes.benchmarks.quality.environment import digest
from recipes.benchmarks.quality.optimizers import OPTIMIZERS, Entry, trainable
from recipes.benchmarks.quality.progress import Progress, line
from recipes.benchmarks.quality.records import Record
from recipes.benchmarks.quality.runner import processes
from recipes.benchmarks.quality.tasks import TASKS
from recipes.folders import try_file, write

STORAGES = ("float32", "bfloat16", "8bit")
CHOSEN = ("diamonds-mlp", "fashion-cnn", "lm-python", "trec-lora", "trec")
SEEDS = (1, 2, 3)
FILE = RESULTS.with_name("storage.jsonl")


class Planned(NamedTuple):
    """A run to do."""

    task: str
    storage: str
    lr: float
    seed: int


def name_of(storage: str) -> str:
    return f"arturo {storage}"


def planned() -> list[Planned]:
    """All runs: cheap tasks first, the storages of one seed side by side."""
    results = Results(store.read([RESULTS]), list(TASKS))
    found = []
    for task in CHOSEN:
        rates = {results.default_lr(task, "arturo"), results.best_lr(task, "arturo")} - {None}
        for lr, seed, storage in itertools.product(sorted(rates), SEEDS, STORAGES):  # type: ignore[type-var]
            found.append(Planned(task, storage, lr, seed))  # type: ignore[arg-type]
    return found


def work(run: Planned) -> Record:
    """In a worker: one run."""
    from recipes.benchmarks.quality.training import run as train

    def build(model: nn.Module, lr: float, examples: int) -> Arturo:
        return Arturo(trainable(model), lr=lr, state_dtype=run.storage)

    # What tells code apart is a training in float64, which is never kept in less: that of the float32 form counts.
    entry: Entry = replace(OPTIMIZERS["arturo"], build=build, own_code=False)
    task = TASKS[run.task]
    record = train(task, name_of(run.storage), run.lr, run.seed, "storage", entry)
    return record | {"digest": digest(task, OPTIMIZERS["arturo"])}


def carry_out(file: Path, jobs: int) -> None:
    """What is not recorded yet."""
    done = {(one["task"], one["optimizer"], one["lr"], one["seed"]) for one in store.read([file])}
    todo = [run for run in planned() if (run.task, name_of(run.storage), run.lr, run.seed) not in done]
    progress = Progress()
    progress.start(len(todo))
    with processes(jobs) as pool:
        futures = {pool.submit(work, run): run for run in todo}
        for future in as_completed(futures):
            if (error := future.exception()) is not None:  # the task could not be made: its data are missing
                progress.say(f"{futures[future].task} seed {futures[future].seed} was not run: {error}")
                continue
            record = future.result()
            store.append(file, record)
            progress.say(line(record))
    progress.stop()


class Difference(NamedTuple):
    """Of test losses from those of float32, seed by seed."""

    mean: float
    error: float
    seeds: int

    @property
    def is_clear(self) -> bool:
        """Worse or better by more than two standard errors."""
        return abs(self.mean) > 2.0 * self.error


def difference(records: Sequence[Record], task: str, lr: float, storage: str) -> Difference | None:
    """None before two seeds are recorded."""

    def losses(kept: str) -> dict[int, float]:
        return {
            one["seed"]: store.score(one, "test", "loss")
            for one in records
            if (one["task"], one["optimizer"], one["lr"]) == (task, name_of(kept), lr)
        }

    ours, theirs = losses(storage), losses("float32")
    apart = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if len(apart) < 2:
        return None
    return Difference(statistics.mean(apart), statistics.stdev(apart) / math.sqrt(len(apart)), len(apart))


def table(records: Sequence[Record]) -> str:
    """Bytes of state a weight, and test losses beside float32's; in bold what is apart by more than 2 s.e."""
    rows = ["| task | lr | float32 | bfloat16 − float32 | 8 bits − float32 |", "|---|---|---|---|---|"]
    held: dict[str, list[float]] = {storage: [] for storage in STORAGES}
    for one in records:
        if "state_bytes" in one:
            held[one["optimizer"].removeprefix("arturo ")].append(one["state_bytes"] / one["params"])
    spans = [f"{storage}: {min(sizes):.2f} to {max(sizes):.2f}" for storage, sizes in held.items() if sizes]
    for task, lr in _pairs(records):
        base = [
            store.score(one, "test", "loss")
            for one in records
            if (one["task"], one["optimizer"], one["lr"]) == (task, name_of("float32"), lr)
        ]
        cells = [_cell(difference(records, task, lr, storage)) for storage in STORAGES[1:]]
        rows.append(f"| {task} | {lr:.3g} | {statistics.mean(base):.4f} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n\nBytes of state a weight, scalars included: " + "; ".join(spans) + ".\n"


def _pairs(records: Iterable[Record]) -> list[tuple[str, float]]:
    found = {(one["task"], one["lr"]) for one in records}
    return sorted(found, key=lambda pair: (CHOSEN.index(pair[0]), pair[1]))


def _cell(found: Difference | None) -> str:
    if found is None:
        return "–"
    text = f"{found.mean:+.4f} ± {found.error:.4f}"
    return f"**{text}**" if found.is_clear else text


HEAD = """# The state in less memory

Test losses of arTuRO with its state in bfloat16 and in 8 bits, beside float32: mean difference over seeds 1 to 3 and
its standard error, seed by seed. Bold: apart by more than two standard errors (negative is better than float32). With
three seeds one in five differences of nothing is that far apart. Rates: the default, and the best of the benchmark's
tuning. Made by `python -m recipes.benchmarks.quality.storage`.

"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see ``--help``."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--jobs", type=positive, default=1, help="worker processes of one thread each (default 1)")
    parser.add_argument("--results", type=path, default=FILE, help="records, appended to")
    options = parser.parse_args(arguments)
    if options.command == "run":
        try_file(options.results, "--results")
        carry_out(options.results, options.jobs)
    records = store.read([options.results])
    if not records:
        parser.error(f"{options.results} has no records: run first")
    found = HEAD + table(records)
    write(options.results.with_suffix(".md"), found)
    Console().print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
