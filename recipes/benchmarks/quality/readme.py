"""The summary in the repository's README: written from the records, so that it cannot drift from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from recipes.benchmarks.quality.analysis import BASELINE, Results
from recipes.benchmarks.quality.bars import OURS, bars
from recipes.benchmarks.quality.optimizers import OPTIMIZERS
from recipes.benchmarks.quality.report import NOTHING, number, steps_text, table, with_error

BEGIN, END = "<!-- quality: begin -->", "<!-- quality: end -->"
DIGITS = ".3f"


def summary(results: Results) -> str:
    """One row a task: AdamW and arTuRO at default and tuned learning rates, the best of the others, speed."""
    peers = [name for name in results.optimizers if name not in (BASELINE, OURS)]
    rows = []
    for task in results.tasks:
        losses = []
        for which in ("default", "best"):
            losses += [with_error(results.final(task, name, which), DIGITS) for name in (BASELINE, OURS)]
            losses.append(best_of(results, task, peers, which))
        rows.append(
            [
                task,
                *losses,
                steps_text(results.steps_ratio(task, OURS, "best")),
                number(results.time_ratio(task, OURS, "cpu_s"), ".2f"),
            ]
        )
    titles = (
        "task",
        "AdamW, default lr",
        "arTuRO, same lr",
        "best other, its default",
        "AdamW, tuned",
        "arTuRO, tuned",
        "best other, tuned",
        "steps",
        "time",
    )
    lines = table(titles, rows)
    lines += [
        f"* {bar.verdict}: {bar.claim}" + (f"; {bar.evidence}." if bar.verdict == "fail" else ".")
        for bar in bars(results)
    ]
    shown = [name for name in OPTIMIZERS if name in peers]
    lines += ["", f"Others: {', '.join(shown) or 'not run yet'}."]
    return "\n".join(lines)


def best_of(results: Results, task: str, names: Sequence[str], which: str) -> str:
    """The lowest test loss among some optimizers, and whose it is."""
    found = {name: results.final(task, name, which) for name in names}
    finite = [name for name, value in found.items() if math.isfinite(value.mean)]
    if not finite:
        return NOTHING
    best = min(finite, key=lambda name: found[name].mean)
    return f"{with_error(found[best], DIGITS)} ({best})"


def has_place(readme: Path) -> bool:
    """Whether a file has both markers."""
    try:
        if not readme.is_file():
            return False
        text = readme.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return BEGIN in text and END in text


def insert(readme: Path, results: Results) -> None:
    """Replace what stands between the markers.

    Raises:
        ValueError: the file lacks a marker. It is left as it is.
    """
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{readme} has no {BEGIN} … {END} to write between")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    readme.write_text(f"{before}{BEGIN}\n{summary(results)}\n{END}{after}", encoding="utf-8")
