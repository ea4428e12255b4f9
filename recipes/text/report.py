"""The table at the end, on the screen and in results.md."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from recipes.text.summary import Run, by_optimizer, mean_and_error


class Column(NamedTuple):
    """A column: its title, where its number is in a run, and the format of the number."""

    title: str
    value: Callable[[Run], float | None]
    form: str


COLUMNS = (
    Column("lr", lambda run: run["learning_rate"], ".3g"),
    Column("valid. loss", lambda run: run["validation"]["loss"], ".3f"),
    Column("test acc.", lambda run: run["test"]["accuracy"], ".1%"),
    Column("test F1, macro", lambda run: run["test"]["macro_f1"], ".3f"),
    Column("train time (s)", lambda run: run["train_seconds"], ".1f"),
    Column("bytes of state / weight", lambda run: run["state_bytes"] / run["trainable_parameters"], ".1f"),
)


def cells(content: dict[str, Any]) -> list[list[str]]:
    """The rows of the table as text: one per optimizer, then the majority baseline."""
    rows = []
    for optimizer, runs in by_optimizer(content["runs"]).items():
        row = [optimizer, str(len(runs))]
        for column in COLUMNS:
            mean, error = mean_and_error([column.value(run) for run in runs])
            text = "diverged" if math.isnan(mean) else format(mean, column.form)
            # Rates and sizes are the same for every seed, and then need no error.
            row.append(text if math.isnan(error) or error == 0 else f"{text} ± {format(error, column.form)}")
        rows.append(row)
    scores = content["data"]["majority"]["test"]
    baseline = [f"{scores['accuracy']:.1%}", f"{scores['macro_f1']:.3f}"]
    rows.append(["majority class", "–", "–", "–", *baseline, "–", "–"])
    return rows


def titles() -> list[str]:
    return ["optimizer", "seeds", *(column.title for column in COLUMNS)]


def headline(content: dict[str, Any]) -> str:
    """Model, data and budget in one line."""
    settings, data = content["settings"], content["data"]
    steps = sorted({run["steps"] for run in content["runs"]})
    return (
        f"{settings['model']} on {data['name']}: {data['rows']['train']} training rows, "
        f"{len(data['label_names'])} classes, {', '.join(map(str, steps))} steps of "
        f"batch {settings['batch_size']}"
    )


def notes(content: dict[str, Any]) -> list[str]:
    """How to read the numbers."""
    rows, seeds = content["data"]["rows"], sorted({run["seed"] for run in content["runs"]})
    accuracies = [run["test"]["accuracy"] for run in content["runs"]]
    middle = sum(accuracies) / len(accuracies)
    sampling = math.sqrt(middle * (1 - middle) / rows["test"])
    clipping = {run["optimizer"]: run["max_grad_norm"] for run in content["runs"]}
    found = [
        f"Seeds {', '.join(map(str, seeds))}. All optimizers share data order, initial weights and schedule; "
        f"the test part ({rows['test']} rows) was read once per run, after training.",
        "Gradient clipping: " + ", ".join(f"{name} {norm or 'off'}" for name, norm in clipping.items()) + ".",
        f"A test part of this size leaves any accuracy uncertain by {sampling:.1%} (one standard error).",
    ]
    if len(seeds) == 1:
        found.append(
            "One seed ranks nothing: use `--seeds 0,1,2` before you conclude. Eleven tasks, several seeds, learning "
            "rates and optimizers: recipes/benchmarks/quality/results/report.md."
        )
    else:
        found.append("± is one standard error of the mean over the seeds.")
    return found


def print_table(content: dict[str, Any], console: Console) -> None:
    """Show the comparison on `console`."""
    table = Table(title=headline(content), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, title in enumerate(titles()):
        table.add_column(title, justify="right" if index else "left", no_wrap=not index)
    for row in cells(content):
        table.add_row(*row, style="dim" if row[0] == "majority class" else "")
    console.print(table)
    for note in notes(content):
        console.print(note, style="dim", highlight=False)


def write_markdown(content: dict[str, Any], path: Path) -> None:
    """Write the comparison to `path` as Markdown."""
    environment = content["runs"][-1]["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    lines = [
        f"# {headline(content)}",
        "",
        "| " + " | ".join(titles()) + " |",
        "|---|" + "---:|" * (len(titles()) - 1),
        *("| " + " | ".join(row) + " |" for row in cells(content)),
        "",
        *(f"- {note}" for note in notes(content)),
        f"- Data: {content['data']['citation']}.",
        f"- {environment['device']}, {environment['threads']} threads; {versions}.",
        "",
        "![curves](curves.png)",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
