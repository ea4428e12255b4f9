"""The summary in the repository's README: written from the records, so that it cannot drift from them."""

from __future__ import annotations

import math
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
        others = {name: results.test(task, name, "best") for name in peers}
        finite = [name for name, value in others.items() if math.isfinite(value.mean)]
        best = min(finite, key=lambda name: others[name].mean) if finite else None
        rows.append(
            [
                task,
                *(
                    with_error(results.test(task, name, which), DIGITS)
                    for which in ("default", "best")
                    for name in (BASELINE, OURS)
                ),
                f"{with_error(others[best], DIGITS)} ({best})" if best else NOTHING,
                steps_text(results.steps_ratio(task, OURS, "best")),
                number(results.time_ratio(task, OURS, "cpu_s"), ".2f"),
            ]
        )
    titles = (
        "task",
        "AdamW, default lr",
        "arTuRO, same lr",
        "AdamW, tuned",
        "arTuRO, tuned",
        "best other, tuned",
        "steps",
        "time",
    )
    lines = table(titles, rows)
    lines += [f"* {bar.verdict}: {bar.claim}." for bar in bars(results)]
    shown = [name for name in OPTIMIZERS if name in peers]
    lines += ["", f"Others: {', '.join(shown) or 'not run yet'}."]
    return "\n".join(lines)


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
