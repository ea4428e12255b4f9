"""The table at the end, and how to read it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from recipes.image import published
from recipes.text.summary import Run, by_optimizer, mean_and_error

Content = dict[str, Any]


class Column(NamedTuple):
    """A column: its title, its number in a run, and the format of the number."""

    title: str
    value: Callable[[Run], float | None]
    form: str


COLUMNS = (
    Column("valid. loss", lambda run: run["validation"]["loss"], ".3f"),
    Column("valid. acc.", lambda run: run["validation"]["accuracy"], ".1%"),
    Column("test loss", lambda run: run["test"]["loss"], ".3f"),
    Column("test acc.", lambda run: run["test"]["accuracy"], ".1%"),
    Column("test ECE", lambda run: run["test"]["calibration_error"], ".1%"),
    Column("CPU (s)", lambda run: run["train_cpu_seconds"], ".0f"),
    Column("state, B / weight", lambda run: run["state_bytes"] / run["parameters"], ".1f"),
)


def published_bound(content: Content, optimizer: str) -> bool:
    """Whether an optimizer's lr is arTuRO's bound in nats."""
    return (optimizer, content["settings"]["setting"]) == ("arturo", "published")


def label(content: Content, optimizer: str, run: Run) -> str:
    """An optimizer with its learning rate."""
    name = "ε =" if published_bound(content, optimizer) else "lr"
    return f"{optimizer}, {name} {run['learning_rate']:.3g}"


def headline(content: Content) -> str:
    """Network, data and budget in one line."""
    settings, data = content["settings"], content["data"]
    return (
        f"{settings['network']} on {data['name']}: {data['rows']['train']:,} training rows, "
        f"{settings['epochs']} epochs of {content['runs'][0]['steps'] // settings['epochs']} batches of "
        f"{settings['batch_size']}, {settings['setting']} setting"
    )


def notes(content: Content) -> list[str]:
    """How to read the numbers."""
    rows, seeds = content["data"]["rows"], sorted({run["seed"] for run in content["runs"]})
    accuracies = [run["test"]["accuracy"] for run in content["runs"]]
    middle = sum(accuracies) / len(accuracies)
    found = [
        f"Seeds {', '.join(map(str, seeds))}. All optimizers share the split, the order of the batches, initial "
        f"weights and dropout; the test part ({rows['test']:,} rows) was read once per run, after training, with the "
        "last weights.",
        f"ECE: expected calibration error, 15 bins. A test part of this size leaves any accuracy uncertain by "
        f"{math.sqrt(middle * (1 - middle) / rows['test']):.1%} (one standard error).",
    ]
    if content["settings"]["setting"] == "published":
        found.append("Published are arTuRO's values and schedule alone; the others are at common defaults.")
        epochs = published.EPOCHS[content["data"]["name"]]
        if content["settings"]["epochs"] != epochs:
            found.append(f"The published values belong to {epochs} epochs: a run of another length reproduces nothing.")
    if len(seeds) == 1:
        found.append("One seed ranks nothing: use --seeds 0,1,2 before you conclude.")
    else:
        found.append("± is one standard error of the mean over the seeds.")
    return found


def print_table(content: Content, console: Console) -> None:
    """Show the comparison: a row for every optimizer, means over its seeds."""
    table = Table(title=headline(content), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, title in enumerate(("optimizer", *(column.title for column in COLUMNS))):
        table.add_column(title, justify="right" if index else "left", no_wrap=not index)
    for optimizer, runs in by_optimizer(content["runs"]).items():
        row = [label(content, optimizer, runs[0])]
        for column in COLUMNS:
            mean, error = mean_and_error([column.value(run) for run in runs])
            text = "diverged" if math.isnan(mean) else format(mean, column.form)
            row.append(text if math.isnan(error) or error == 0 else f"{text} ± {format(error, column.form)}")
        table.add_row(*row)
    console.print(table)
    for note in notes(content):
        console.print(note, style="dim", highlight=False)
