"""Optimizers' results, not speed, on small real tasks: tuned alike, several seeds, test scores.

    python -m recipes.benchmarks.quality run --full --jobs 2     # or: make bench-quality-full (hours; resumable)
    python -m recipes.benchmarks.quality run --short             # or: make bench-quality (minutes)
    python -m recipes.benchmarks.quality report                  # or: make bench-quality-report
    python -m recipes.benchmarks.quality list

Runs are recorded one by one as JSON lines; the same command goes on where an earlier one stopped.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from recipes.arguments import Parser, natural, nearest, path, positive, rate, seed
from recipes.benchmarks.quality import records as store
from recipes.benchmarks.quality.analysis import Results
from recipes.benchmarks.quality.optimizers import FAMILIES, OPTIMIZERS
from recipes.benchmarks.quality.plan import BUDGET, EXTENSION, FRESH_SEEDS, STAGES, Plan
from recipes.benchmarks.quality.progress import Progress
from recipes.benchmarks.quality.tasks import TASKS
from recipes.folders import try_file, try_folder
from recipes.text.errors import InputError, exit_code

RESULTS = Path(__file__).parent / "results" / "records.jsonl"
SHORT_RESULTS = Path("runs/quality/records.jsonl")
SHORT_TASKS = ("diamonds-mlp", "fashion-cnn", "lm-python", "trec")
SHORT_OPTIMIZERS = ("adamw", "arturo")
FRESH = " ".join(map(str, FRESH_SEEDS))
#: Tasks in the order of what a run costs; those not named come last.
CHEAPEST_FIRST = (
    "diamonds-mlp",
    "fashion-cnn",
    "fashion-vit",
    "lm-python",
    "lm-dialogue",
    "trec-lora",
    "sms-lora",
    "movie-lora",
    "trec",
    "sms",
    "movie",
)


def names(given: Sequence[str], known: Sequence[str], what: str, parser: argparse.ArgumentParser) -> list[str]:
    """Names, given apart or with commas between them, in the order of `known`."""
    wanted = [name for part in given for name in part.split(",") if name]
    if unknown := [name for name in wanted if name not in known]:
        hint = nearest(unknown[0], known)
        parser.error(f"unknown {what} {', '.join(unknown)}: choose from {', '.join(known)}{hint}")
    return [name for name in known if name in wanted]


def in_order() -> list[str]:
    """Names of all tasks, cheapest first."""
    return [name for name in CHEAPEST_FIRST if name in TASKS] + [name for name in TASKS if name not in CHEAPEST_FIRST]


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m recipes.benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="do the runs that are not recorded yet")
    form = run.add_mutually_exclusive_group()
    form.add_argument(
        "--full",
        action="store_true",
        help=f"all tasks and optimizers, budget {BUDGET}, seeds 1 2 3, for adamw and arturo {FRESH} too (default)",
    )
    form.add_argument("--short", action="store_true", help="adamw and arturo on four tasks, budget 3, seed 1")
    run.add_argument("--tasks", nargs="+", metavar="NAME", help="subset of the tasks")
    run.add_argument("--optimizers", nargs="+", metavar="NAME", help="subset of the optimizers")
    run.add_argument("--stages", nargs="+", metavar="STAGE", help="of tune, seeds, bar, fresh (default all)")
    run.add_argument("--jobs", type=positive, default=1, help="worker processes of one thread each (default 1)")
    run.add_argument(
        "--seeds",
        nargs="+",
        type=seed,
        help=f"seeds whose test scores are reported, instead of 1 2 3 and the fresh {FRESH}",
    )
    run.add_argument("--budget", type=positive, help=f"learning rates tried in tuning (default {BUDGET})")
    run.add_argument(
        "--extension",
        type=natural,
        help=f"more of them while the best is the outermost (default {EXTENSION}, short form 0)",
    )
    run.add_argument("--results", type=path, help=f"records, appended to (default {RESULTS.name} of the benchmark)")
    run.add_argument("--max-minutes", type=rate, help="hand out no run after this long")
    run.add_argument("--rerun-failed", action="store_true", help="do again what raised an exception")
    run.add_argument("--dry-run", action="store_true", help="say what could start now, and stop")
    tables = commands.add_parser("report", help="tables and figures from records")
    tables.add_argument("--results", nargs="+", type=path, default=[RESULTS], help="files of records")
    tables.add_argument("--readme", nargs="+", type=path, default=[], help="pages whose marked parts become summaries")
    tables.add_argument("--out", type=path, help="folder (default: that of the first file)")
    tables.add_argument(
        "--code", help="digest of an own optimizer's behaviour whose records count (default: each one's newest)"
    )
    commands.add_parser("list", help="the tasks and optimizers")
    return parser


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """The grid; 0 if nothing is left to do."""
    from recipes.benchmarks.quality.environment import installed
    from recipes.benchmarks.quality.runner import Grid

    tasks = options.tasks or (SHORT_TASKS if options.short else in_order())
    optimizers = options.optimizers or (SHORT_OPTIMIZERS if options.short else list(OPTIMIZERS))
    seeds = options.seeds or ([1] if options.short else [1, 2, 3])
    budget = options.budget if options.budget is not None else (3 if options.short else BUDGET)
    extension = options.extension if options.extension is not None else (0 if options.short else EXTENSION)
    if min(seeds) < 1:
        parser.error("--seeds must be 1 or more: seed 0 is the tuning's")
    progress = Progress()
    chosen = names(optimizers, list(OPTIMIZERS), "optimizer", parser)
    absent = {
        name: f'install {OPTIMIZERS[name].package} (pip install -e ".[bench]")'
        for name in chosen
        if not installed(OPTIMIZERS[name])
    }
    for name, why in absent.items():
        chosen.remove(name)
        progress.say(f"{name} is skipped: {why}")
    plan = Plan(
        [TASKS[name] for name in names(tasks, in_order(), "task", parser)],
        chosen,
        budget,
        extension,
        seeds,
        () if options.short or options.seeds else FRESH_SEEDS,
        names(options.stages or STAGES, STAGES, "stage", parser),
    )
    path = options.results or (SHORT_RESULTS if options.short else RESULTS)
    if os.path.lexists(path) and not os.path.isfile(path):
        parser.error(f"--results {path} is no file: give a file of records, or a name for a new one")
    if options.dry_run:
        for planned in plan.todo(store.read([path])):
            progress.say(
                f"{planned.purpose:<5} {planned.task:<14} {planned.optimizer:<13} {planned.lr:<9.3g} {planned.seed}"
            )
        return 0
    try_file(path, "--results")
    grid = Grid(plan, path, options.jobs, options.max_minutes, options.rerun_failed)
    with interruptible():
        complete = grid.carry_out(progress)
    skipped = grid.unavailable | absent
    for name, why in skipped.items():
        progress.say(f"Not run: {name} ({why})")
    progress.say(f"Records: {path}")
    return 0 if complete and not skipped else 1


@contextmanager
def interruptible() -> Iterator[None]:
    """A job scheduler's SIGTERM ends the grid as Ctrl-C does, and Ctrl-C works in the background, too."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show() -> None:
    """The tasks and the optimizers with their default learning rates."""
    console = Console()
    table = Table("task", "family", "steps", "what", box=box.SIMPLE_HEAD)
    for name in in_order():
        task = TASKS[name]
        table.add_row(name, task.family, str(task.steps), task.description)
    console.print(table)
    table = Table("optimizer", "package", *FAMILIES, box=box.SIMPLE_HEAD)
    for name, entry in OPTIMIZERS.items():
        table.add_row(name, entry.package, *(f"{entry.default[family]:.3g}" for family in FAMILIES))
    console.print(table)
    for name, entry in OPTIMIZERS.items():
        console.print(f"{name}: {entry.why}", highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see ``--help``."""
    complete = 0

    def work() -> None:
        nonlocal complete
        parser = make_parser()
        options = parser.parse_args(arguments)
        if options.command == "run":
            complete = run(options, parser)
        elif options.command == "report":
            report(options)
        else:
            show()

    return exit_code(work) or complete


def report(options: argparse.Namespace) -> None:
    """Tables and figures, and the summary in a README."""
    from recipes.benchmarks.quality import readme
    from recipes.benchmarks.quality.report import write

    if missing := [str(path) for path in options.results if not os.path.isfile(path)]:
        raise InputError(f"--results {missing[0]}: there is no such file of records; `run` makes one")
    if not store.read(options.results):
        raise InputError(f"--results {', '.join(map(str, options.results))}: no record of this benchmark in it")
    for page in options.readme:
        if not readme.has_place(page):
            markers = " or ".join(" … ".join(pair) for pair in (readme.WHOLE, readme.SHORT))
            raise InputError(f"--readme {page} has no {markers} to write between")
    folder = options.out or options.results[0].parent
    try_folder(folder, option="--out")
    write(options.results, folder, code=options.code)
    for page in options.readme:
        readme.insert(page, Results(store.read(options.results), list(TASKS), options.code))


if __name__ == "__main__":
    sys.exit(main())
