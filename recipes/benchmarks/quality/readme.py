"""Summaries on the repository's pages: written from the records, so that they cannot drift from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from recipes.benchmarks.quality.analysis import BASELINE, Results
from recipes.benchmarks.quality.bars import OURS, bars
from recipes.benchmarks.quality.optimizers import OPTIMIZERS
from recipes.benchmarks.quality.report import NOTHING, number, steps_text, table, with_error

#: Markers of the whole summary, and of the one on the first page.
WHOLE = ("<!-- quality: begin -->", "<!-- quality: end -->")
SHORT = ("<!-- quality-short: begin -->", "<!-- quality-short: end -->")
DIGITS = ".3f"

#: Tasks of the first page, two of each kind, and what each is.
FIRST_PAGE = {
    "trec": "MiniLM on questions, all weights",
    "sms": "MiniLM on spam, all weights",
    "trec-lora": "MiniLM on questions, LoRA",
    "sms-lora": "MiniLM on spam, LoRA",
    "lm-python": "language model, from scratch",
    "fashion-cnn": "CNN on images, from scratch",
}


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


def short(results: Results) -> str:
    """Six tasks: AdamW and arTuRO at AdamW's default rate and tuned, and the best of the others tuned."""
    peers = [name for name in results.optimizers if name not in (BASELINE, OURS)]
    rows = []
    for task, what in FIRST_PAGE.items():
        if task in results.tasks:
            losses = [
                with_error(results.final(task, name, which), DIGITS)
                for which in ("default", "best")
                for name in (BASELINE, OURS)
            ]
            rows.append([what, *losses, best_of(results, task, peers, "best")])
    titles = ("", "AdamW, its default rate", "arTuRO, same rate", "AdamW, tuned", "arTuRO, tuned", "best other, tuned")
    return "\n".join(table(titles, rows))


def has_place(page: Path) -> bool:
    """Whether a file has a pair of markers."""
    try:
        if not page.is_file():
            return False
        text = page.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return any(begin in text and end in text for begin, end in (WHOLE, SHORT))


def insert(page: Path, results: Results) -> None:
    """Replace what stands between the markers.

    Raises:
        ValueError: the file lacks them. It is left as it is.
    """
    if not has_place(page):
        raise ValueError(f"{page} has no {' … '.join(WHOLE)} or {' … '.join(SHORT)} to write between")
    text = page.read_text(encoding="utf-8")
    for (begin, end), made in ((WHOLE, summary), (SHORT, short)):
        if begin in text and end in text:
            before, rest = text.split(begin, 1)
            after = rest.split(end, 1)[1]
            text = f"{before}{begin}\n{made(results).rstrip()}\n{end}{after}"
    page.write_text(text, encoding="utf-8")
