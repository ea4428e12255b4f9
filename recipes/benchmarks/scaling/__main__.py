"""What arTuRO's one multiplier costs when a model is split: collectives counted on real ranks, calculated for clusters.

    python -m recipes.benchmarks.scaling                      # or: make bench-scaling (count, calculate, draw)
    python -m recipes.benchmarks.scaling --records FILE       # from counts made before
    python -m recipes.benchmarks.scaling --set mfu=0.5 --set tokens_per_gpu=2048 --out runs/scaling

Every assumption of the calculation is printed; ``--set`` changes one (names as printed).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from recipes.benchmarks.scaling.layouts import LAYOUTS
from recipes.benchmarks.scaling.model import GPUS, SIZES, Assumptions, cost, sensitivity
from recipes.benchmarks.scaling.optimizers import OPTIMIZERS

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
            raise ValueError(f"{name} is none of the assumptions: {', '.join(known)}")
        given = replace(given, **{name: known[name](float(value))})
    return given


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, records: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def calculated(given: Assumptions) -> list[dict[str, Any]]:
    """Every size on every cluster under every set of assumptions."""
    return [
        {"assumptions": title, **asdict(cost(params, gpus, one))}
        for title, one in sensitivity(given).items()
        for params in SIZES
        for gpus in GPUS
    ]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ranks", nargs="+", type=int, default=list(WORLDS), help="numbers of ranks (default 2 4)")
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS), metavar="NAME")
    parser.add_argument("--optimizers", nargs="+", choices=list(OPTIMIZERS), default=list(OPTIMIZERS), metavar="NAME")
    parser.add_argument("--records", type=Path, help="counts made before, instead of counting")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER", help="change an assumption")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: the benchmark's results)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see ``--help``."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        given = changed(Assumptions(), options.set)
    except ValueError as error:
        parser.error(str(error))
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
    write(options.out / "records.jsonl", records)
    write(options.out / "calculated.jsonl", calculated(given))
    text = markdown(counts, traffic, given)
    (options.out / "scaling.md").write_text(text, encoding="utf-8")
    draw(counts, given, options.out)
    shown = Table("assumption", "value", "source", box=box.SIMPLE_HEAD)
    for line in given.lines():
        shown.add_row(*line)
    console.print(shown)
    console.print(f"Written: {options.out}/scaling.md, scaling.png, scaling.svg, records.jsonl, calculated.jsonl")
    return 0


if __name__ == "__main__":
    sys.exit(main())
