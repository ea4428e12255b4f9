"""All that is measured on a CUDA device, by one command: parity, time, memory, launches, graphs.

    python -m recipes.benchmarks.gpu                  # or: make bench-gpu

First the tests that need a device run: every pass against the pure functions, whole steps against the eager passes,
captured steps against steps. Then AdamW and another optimizer step by turns, on copies of the same weights and with the
same gradients, so that a device that warms up touches both alike; one pair after another, so that a model of a billion
weights fits. Written are ``figures.json`` and ``table.md``, with hardware and versions.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from rich.console import Console

from recipes.arguments import Parser, listing, nearest, path, positive
from recipes.benchmarks.gpu_measures import (
    BASELINE,
    OPTIMIZERS,
    SETS,
    environment,
    fine_tuning,
    measure,
    missing,
)
from recipes.folders import try_folder, write
from recipes.text.errors import InputError, exit_code, reason

#: Of the weights.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

FILES = ("figures.json", "table.md")

_ROOT = Path(__file__).parents[2]


def parity() -> dict[str, Any]:
    """Numbers of the tests that need a device, by outcome, and the names of those that fail."""
    if not (_ROOT / "tests" / "core" / "test_triton_step.py").exists():
        return {"not run": "the tests are not part of this installation; clone the repository"}
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={found}"]
        run = subprocess.run([*command, "tests/core"], cwd=_ROOT, capture_output=True, text=True, check=False)
        if not found.exists():
            return {"not run": (run.stderr or run.stdout).strip().splitlines()[-1:]}
        return counted(ElementTree.parse(found).getroot())


def counted(report: ElementTree.Element) -> dict[str, Any]:
    """Outcomes of the tests in a report of JUnit's form."""
    outcomes: dict[str, Any] = {"passed": 0, "failed": [], "skipped": 0}
    for case in report.iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            outcomes["failed"].append(f"{case.get('classname')}.{case.get('name')}")
        elif case.find("skipped") is not None:
            outcomes["skipped"] += 1
        else:
            outcomes["passed"] += 1
    return outcomes


def figures(
    sets: Sequence[str], dtypes: Sequence[str], names: Sequence[str], rounds: int, device: str, console: Console
) -> list[dict[str, Any]]:
    """One row for each set, dtype and optimizer; what cannot be measured says why."""
    rows = []
    for title in sets:
        for dtype in dtypes:
            for name in names:
                row: dict[str, Any] = {"set": title, "weights": dtype, "optimizer": name}
                if why := missing(name, DTYPES[dtype], device):
                    row["not measured"] = why
                else:
                    try:
                        row |= measure(SETS[title], DTYPES[dtype], name, rounds, device)
                    except torch.OutOfMemoryError:
                        row["not measured"] = "it does not fit into the device's memory"
                    except Exception as error:  # of somebody else's optimizer, too: the others are still wanted
                        row["not measured"] = reason(error)
                console.print(f"{title}, {dtype}, {name}: {row.get('not measured') or _time(row)}", highlight=False)
                rows.append(row)
                if device == "cuda":
                    torch.cuda.empty_cache()
    return rows


def _time(row: dict[str, Any]) -> str:
    low, high = row["ratio_quartiles"]
    return f"{row['median_ms']:.2f} ms, {row['ratio']:.2f} ({low:.2f} to {high:.2f}) x {BASELINE}"


def markdown(results: dict[str, Any]) -> str:
    """Tables, with what they were measured on."""
    lines = [", ".join(f"{key} {value}" for key, value in results["environment"].items()), ""]
    tests = results["tests"]
    if "passed" in tests:
        failed = f"; failed: {', '.join(tests['failed'])}" if tests["failed"] else ""
        said = f"{tests['passed']} passed, {len(tests['failed'])} failed, {tests['skipped']} skipped{failed}"
    else:
        said = "; ".join(f"{key}: {value}" for key, value in tests.items())
    lines += [f"Tests on the device: {said}.", ""]
    for title, dtype in dict.fromkeys((row["set"], row["weights"]) for row in results["steps"]):
        lines += [
            f"{title}, {dtype} weights:",
            "",
            f"| | ms a step | × {BASELINE} (quartiles) | ms of the host | in a graph, ms | state, bytes/weight | "
            "peak of a step, bytes/weight | launches | waits |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in results["steps"]:
            if (row["set"], row["weights"]) == (title, dtype):
                lines.append(_line(row))
        lines.append("")
    if results["fine_tuning"]:
        lines += ["A fine-tuning step of BERT-base's size:", "", "| | ms a step | optimizer, ms | its share |"]
        lines.append("|---|---|---|---|")
        for row in results["fine_tuning"]:
            cells = [row["optimizer"], f"{row['step_ms']:.1f}", f"{row['optimizer_ms']:.2f}", f"{row['share']:.1%}"]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    if "not measured" in row:
        return f"| {row['optimizer']} | not measured: {row['not measured']} | | | | | | | |"
    low, high = row["ratio_quartiles"]
    cells = [
        row["optimizer"],
        f"{row['median_ms']:.2f}",
        f"{row['ratio']:.2f} ({low:.2f}–{high:.2f})",
        f"{row['host_ms']:.2f}",
        row["graph_ms"] if isinstance(row["graph_ms"], str) else f"{row['graph_ms']:.2f}",
        f"{row['state_bytes_per_weight']:.2f}",
        f"{row['peak_bytes_per_weight']:.3f}",
        str(row["launches"]),
        str(row["waits"]),
    ]
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see ``--help``."""
    return exit_code(lambda: work(arguments))


def work(arguments: Sequence[str] | None) -> None:
    """Test, measure, print and write."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=path, default=Path("runs/gpu"), help="folder of the results (runs/gpu)")
    parser.add_argument("--rounds", type=positive, default=30, help="turns of each pair of optimizers (default 30)")
    parser.add_argument("--sets", default=",".join(SETS), help=f"of {', '.join(SETS)}; all by default")
    parser.add_argument("--weights", default=",".join(DTYPES), help=f"of {', '.join(DTYPES)}; both by default")
    parser.add_argument("--optimizers", default=",".join(OPTIMIZERS), help="names with commas between; all by default")
    parser.add_argument("--no-tests", action="store_true", help="measure only")
    options = parser.parse_args(arguments)
    chosen = {}
    for option, known in (("sets", SETS), ("weights", DTYPES), ("optimizers", OPTIMIZERS)):
        names = chosen[option] = listing(getattr(options, option))
        for name in names:
            if name not in known:
                parser.error(f"--{option} {name}: choose of {', '.join(known)}{nearest(name, known)}")
        if not names:
            parser.error(f"--{option} needs at least one entry")
    if options.rounds < 2:
        parser.error("--rounds must be at least 2: the spread needs two")
    if not torch.cuda.is_available():
        raise InputError(
            "there is no CUDA device here, and this measures one: run it where torch.cuda.is_available() (make bench "
            "measures the CPU)"
        )
    try_folder(options.output, files=FILES)
    console = Console()
    results: dict[str, Any] = {"environment": environment(), "rounds": options.rounds}
    console.print(", ".join(f"{key} {value}" for key, value in results["environment"].items()), highlight=False)
    results["tests"] = {"not run": "--no-tests"} if options.no_tests else parity()
    results["steps"] = figures(chosen["sets"], chosen["weights"], chosen["optimizers"], options.rounds, "cuda", console)
    results["fine_tuning"] = fine_tuning(chosen["optimizers"], options.rounds, "cuda")
    write(options.output / FILES[0], json.dumps(results, indent=1) + "\n")
    write(options.output / FILES[1], markdown(results))
    console.print(markdown(results), highlight=False, markup=False, soft_wrap=True)
    if results["tests"].get("failed"):
        raise InputError(f"{len(results['tests']['failed'])} of the tests on the device failed: see {FILES[1]}")


if __name__ == "__main__":
    sys.exit(main())
