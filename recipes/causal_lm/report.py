"""The end of a run: metrics.json, a table on the screen, curves.png."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from recipes.folders import write as write_whole
from recipes.text.errors import InputError
from recipes.text.record import plain, read_json

Run = dict[str, Any]


def write(run: Run, folder: Path) -> None:
    """metrics.json, whole or not at all."""
    write_whole(folder / "metrics.json", json.dumps(plain(run), indent=1, allow_nan=False) + "\n")


def read(folder: Path) -> Run:
    """An earlier run, for comparison; InputError if there is none."""
    path = folder / "metrics.json"
    fix = f"give --against the --output of a finished run, not {folder}"
    if not os.path.isfile(path):
        raise InputError(f"--against {folder}: there is no metrics.json; give the --output of a finished run")
    run: Run = read_json(path, fix)
    settings, history = run.get("settings"), run.get("history")
    named = isinstance(settings, dict) and isinstance(settings.get("optimizer"), str) and is_number(settings.get("lr"))
    logged = isinstance(history, list) and all(isinstance(one, dict) and "step" in one for one in history)
    if not (named and logged and is_number(run.get("step")) and is_number(run.get("seconds"))):
        raise InputError(f"{path} is no record of a run of this recipe; {fix}")
    return run


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def label(run: Run) -> str:
    return f"{run['settings']['optimizer']}, lr {run['settings']['lr']:.3g}"


def points(run: Run, key: str) -> tuple[list[int], list[float]]:
    """Steps at which a number was logged, and its values."""
    logged = [(entry["step"], entry[key]) for entry in run["history"] if entry.get(key) is not None]
    return [step for step, _ in logged], [value for _, value in logged]


def print_table(runs: Sequence[Run], console: Console) -> None:
    """A row for every run: its last losses, its perplexity, its time."""
    first = runs[0]
    title = f"{first['settings']['model']} on {first['data']['name']}, {first['parameters']:,} parameters"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, column in enumerate(("run", "steps", "train loss", "valid. loss", "perplexity", "time (s)")):
        table.add_column(column, justify="right" if index else "left")
    for run in runs:
        (_, train), (_, valid) = points(run, "loss"), points(run, "eval_loss")
        perplexity = f"{math.exp(min(valid[-1], 700.0)):.2f}" if valid else "–"
        losses = [f"{values[-1]:.4f}" if values else "diverged" for values in (train, valid)]
        table.add_row(label(run), str(run["step"]), *losses, perplexity, f"{run['seconds']:.1f}")
    console.print(table)
    console.print("One run each ranks nothing: losses per token, in nats.", style="dim", highlight=False)


def plot(runs: Sequence[Run], path: Path) -> None:
    """Losses against steps, and what arTuRO's trust region did."""
    import matplotlib

    matplotlib.use("Agg")  # no window, no display needed
    import matplotlib.pyplot as plt

    from recipes.text.plot import STYLES

    panels = {"loss": "Training loss (nats)", "eval_loss": "Validation loss (nats)"}
    if any("arturo/eta" in entry for run in runs for entry in run["history"]):
        panels |= {"arturo/eta": "Multiplier η", "arturo/kl_ratio": "KL used / bound"}
    figure, grid = plt.subplots(len(panels) // 2, 2, figsize=(9, 3.3 * len(panels) // 2), layout="constrained")
    for axes, (key, title) in zip(grid.flat, panels.items(), strict=True):
        for index, run in enumerate(runs):
            steps, values = points(run, key)
            if steps:
                style = STYLES[index % len(STYLES)]
                axes.plot(steps, values, label=label(run), markersize=3, markevery=max(1, len(steps) // 12), **style)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("optimizer step")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if key == "arturo/eta" and all(value > 0 for run in runs for value in points(run, key)[1]):
            axes.set_yscale("log")  # from a few units to millions, as the learning rate falls
        if key == "arturo/kl_ratio":
            axes.set_ylim(0, 1.2)
    grid.flat[0].legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
