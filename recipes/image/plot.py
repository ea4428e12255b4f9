"""curves.png and curves.svg: losses and accuracies of all optimizers, and what arTuRO's trust region did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no window, no display needed

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from recipes.image import published
from recipes.image.report import Content, headline, label
from recipes.text.plot import STYLES, draw
from recipes.text.summary import Run, by_optimizer

PANELS = {
    "loss": ("Training loss", "cross-entropy (nats)", 1.0),
    "val_loss": ("Validation loss", "cross-entropy (nats)", 1.0),
    "train_accuracy": ("Training accuracy", "correct (%)", 100.0),
    "val_accuracy": ("Validation accuracy", "correct (%)", 100.0),
    "arturo/eta": ("Multiplier η of the trust region", "η", 1.0),
    "arturo/kl_ratio": ("Use of the trust region", "KL used / bound", 1.0),
}


def by_epoch(run: Run) -> Run:
    """A run whose history counts epochs, which is what `draw` takes for steps."""
    return run | {"history": [entry | {"step": entry["epoch"]} for entry in run["history"]]}


def plot_curves(content: Content, folder: Path) -> None:
    """Draw what metrics.json holds into two files of the folder."""
    groups = {name: [by_epoch(run) for run in runs] for name, runs in by_optimizer(content["runs"]).items()}
    measured = any("arturo/eta" in entry for runs in groups.values() for run in runs for entry in run["history"])
    keys = list(PANELS) if measured else list(PANELS)[:4]
    figure, grid = plt.subplots(len(keys) // 2, 2, figsize=(9.6, 3.2 * len(keys) // 2), layout="constrained")
    panels: dict[str, Axes] = dict(zip(keys, grid.flat, strict=True))
    for index, (name, runs) in enumerate(groups.items()):
        style = dict(STYLES[index % len(STYLES)])
        for key in keys:
            shown = label(content, name, runs[0]) if key == "loss" else name
            shown += f" (mean ± s.e. of {len(runs)} seeds)" if key == "loss" and len(runs) > 1 else ""
            if any(key in entry for run in runs for entry in run["history"]):
                draw(panels[key], runs, key, shown, style, PANELS[key][2])
    entries = [entry for runs in groups.values() for run in runs for entry in run["history"]]
    positive = all(entry.get("arturo/eta", 1) > 0 for entry in entries)
    for key, axes in panels.items():
        finish(axes, key, content["settings"], positive)
    panels["loss"].legend(frameon=False)
    figure.suptitle(headline(content), x=0.01, ha="left", fontsize=11)
    for suffix in ("png", "svg"):
        figure.savefig(folder / f"curves.{suffix}", dpi=150)
    plt.close(figure)


def finish(axes: Axes, key: str, settings: dict[str, Any], positive: bool) -> None:
    """Titles, limits, the milestones of the published schedule, and a logarithmic axis for η if all are positive."""
    title, unit, _ = PANELS[key]
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_ylabel(unit)
    axes.set_xlabel("epoch")
    axes.set_xlim(0, 1.02 * settings["epochs"])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if settings["setting"] == "published":
        for milestone in published.MILESTONES:
            axes.axvline(milestone * settings["epochs"], color="grey", linewidth=1, linestyle=(0, (1, 2)))
    if key in ("loss", "val_loss"):
        axes.set_ylim(0, 1.04 * axes.get_ylim()[1])
    if key == "arturo/eta" and positive:
        axes.set_yscale("log")  # from a few units to thousands, as the learning rate falls
    if key == "arturo/kl_ratio":
        axes.axhline(1, color="black", linewidth=1, linestyle=(0, (2, 2)), label="bound")
        axes.set_ylim(0, 1.2)
        axes.legend(frameon=False)
