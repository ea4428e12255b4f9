"""What arTuRO's one multiplier costs when a model is split: collectives counted on real ranks, calculated for clusters.

    python -m recipes.benchmarks.scaling                      # or: make bench-scaling (count, calculate, draw)
    python -m recipes.benchmarks.scaling --records FILE       # from counts made before
    python -m recipes.benchmarks.scaling --set mfu=0.5 --set tokens_per_gpu=2048 --out runs/scaling

Every assumption of the calculation is printed; ``--set`` changes one (names as printed).
"""

from __future__ import annotations

import json
import math
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from recipes.arguments import Parser, nearest, path, positive
from recipes.benchmarks.scaling.layouts import LAYOUTS
from recipes.benchmarks.scaling.model import GPUS, SIZES, Assumptions, cost, sensitivity
from recipes.benchmarks.scaling.optimizers import OPTIMIZERS
from recipes.folders import try_folder
from recipes.folders import write as write_whole
from recipes.text.errors import InputError, exit_code, read_bytes, reason

RESULTS = Path(__file__).parent / "results"
WORLDS = (2, 4)


def changed(given: Assumptions, settings: Sequence[str]) -> Assumptions:
    """Assumptions with some set anew.

    Raises:
        ValueError: no such assumption, or no number.
    """
    known = {one.name: type(getattr(given, one.name)) for one in fields(given)}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in known:
            raise ValueError(f"{name} is none of the assumptions: {', '.join(known)}{nearest(name, known)}")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            raise ValueError(f"{name}={value}: give a positive, finite number")
        given = replace(given, **{name: known[name](number)})
        if not getattr(given, name):
            raise ValueError(f"{name}={value}: give a whole number of at least 1")
    return given


def read(path: Path) -> list[dict[str, Any]]:
    """Records from JSON lines; an InputError if there are none."""
    try:
        records = [json.loads(line) for line in read_bytes(path).decode("utf-8").splitlines()]
    except (ValueError, RecursionError) as error:
        raise InputError(f"--records {path}: not JSON lines ({reason(error)}); leave it out to count anew") from error
    if not all(isinstance(record, dict) for record in records):
        raise InputError(f"--records {path}: not the records of this benchmark; leave it out to count anew")
    return records


def write(path: Path, records: Sequence[dict[str, Any]]) -> None:
    write_whole(path, "".join(json.dumps(record) + "\n" for record in records))


def calculated(given: Assumptions) -> list[dict[str, Any]]:
    """Every size on every cluster under every set of assumptions."""
    return [
        {"assumptions": title, **asdict(cost(params, gpus, one))}
        for title, one in sensitivity(given).items()
        for params in SIZES
        for gpus in GPUS
    ]


def make_parser() -> Parser:
    parser = Parser(
        prog="python -m recipes.benchmarks.scaling",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--ranks", nargs="+", type=positive, default=list(WORLDS), help="numbers of ranks (default 2 4)"
    )
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS), metavar="NAME")
    parser.add_argument("--optimizers", nargs="+", choices=list(OPTIMIZERS), default=list(OPTIMIZERS), metavar="NAME")
    parser.add_argument("--records", type=path, help="counts made before, instead of counting")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER", help="change an assumption")
    parser.add_argument("--out", type=path, default=RESULTS, help="folder (default: the benchmark's results)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see ``--help``."""
    return exit_code(lambda: work(arguments))


def work(arguments: Sequence[str] | None) -> None:
    """Count, calculate, write."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        given = changed(Assumptions(), options.set)
    except ValueError as error:
        parser.error(str(error))
    names = ("records.jsonl", "calculated.jsonl", "scaling.md", "scaling.png", "scaling.svg")
    try_folder(options.out, files=names, option="--out")
    # Every rank imports this module, but only this process needs these.
    from recipes.benchmarks.scaling.figures import draw
    from recipes.benchmarks.scaling.measure import measure
    from recipes.benchmarks.scaling.report import markdown
    from recipes.benchmarks.scaling.traffic import BUILDERS, bytes_per_parameter

    console = Console()
    if options.records:
        records = read(options.records)
    else:
        console.print(f"Counting on {' and '.join(map(str, options.ranks))} ranks (minutes)")
        records = measure(options.ranks, options.layouts, options.optimizers)
        records += [{"optimizer": name, "bytes_per_param": bytes_per_parameter(name)} for name in BUILDERS]
    counts = [record for record in records if "layout" in record]
    traffic = [record for record in records if "bytes_per_param" in record]
    if not counts:
        parser.error("no layout has these numbers of ranks")
    try:
        text = markdown(counts, traffic, given)
    except (KeyError, TypeError, ValueError) as error:
        if options.records:
            raise InputError(f"--records {options.records}: not the records of this benchmark; count anew") from error
        raise
    write(options.out / "records.jsonl", records)
    write(options.out / "calculated.jsonl", calculated(given))
    write_whole(options.out / "scaling.md", text)
    draw(counts, given, options.out)
    shown = Table("assumption", "value", "source", box=box.SIMPLE_HEAD)
    for line in given.lines():
        shown.add_row(*line)
    console.print(shown)
    console.print(f"Written: {options.out}/scaling.md, scaling.png, scaling.svg, records.jsonl, calculated.jsonl")


if __name__ == "__main__":
    sys.exit(main())
