"""The figures, as PNG and SVG: a panel a task, one style an optimizer throughout."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no window, no display needed

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recipes.benchmarks.quality.analysis import BASELINE, Results, mean_curve

# Okabe and Ito's palette, told apart with every form of colour blindness; markers and dashes repeat the cue.
STYLES: dict[str, dict[str, Any]] = {
    "adamw": {"color": "#000000", "marker": "s", "linestyle": "-", "linewidth": 2.0, "zorder": 4},
    "arturo": {"color": "#D55E00", "marker": "o", "linestyle": "-", "linewidth": 2.4, "zorder": 5},
    "arturo-paper": {"color": "#E69F00", "marker": "v", "linestyle": "--"},
    "muon": {"color": "#0072B2", "marker": "^", "linestyle": "-."},
    "soap": {"color": "#009E73", "marker": "D", "linestyle": "--"},
    "schedule-free": {"color": "#56B4E9", "marker": "P", "linestyle": "-"},
    "ivon": {"color": "#CC79A7", "marker": "X", "linestyle": "-."},
    "sgd": {"color": "#8C8C8C", "marker": "*", "linestyle": ":"},
}
PANELS_ACROSS = 4
LARGEST_RATIO = 1.5  # of test losses that a figure shows in place


def style(name: str) -> dict[str, Any]:
    return {"linewidth": 1.3, "markersize": 4.5, "zorder": 3, **STYLES[name]}


def save(figure: Figure, folder: Path, name: str) -> None:
    figure.savefig(folder / f"{name}.png", dpi=150)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def panels(results: Results, draw: Callable[[Axes, str], None], x: str, y: str) -> Figure:
    """A panel for each task that has runs, and the legend below all."""
    tasks = [task for task in results.tasks if any(results.runs(task, name) for name in results.optimizers)]
    across = min(PANELS_ACROSS, max(1, len(tasks)))
    down = max(1, math.ceil(len(tasks) / across))
    size = (max(6.0, 3.3 * across), 2.7 * down + 0.9)
    figure, grid = plt.subplots(down, across, figsize=size, layout="constrained", squeeze=False)
    for axes in grid.flat[len(tasks) :]:
        axes.set_visible(False)
    handles: dict[str, Any] = {}
    for index, (axes, task) in enumerate(zip(grid.flat, tasks, strict=False)):
        draw(axes, task)
        axes.set_title(task, loc="left", fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        if index % across == 0:
            axes.set_ylabel(y, fontsize=9)
        if index + across >= len(tasks):
            axes.set_xlabel(x, fontsize=9)
        found, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, found, strict=True))
    order = [name for name in results.optimizers if name in handles]
    if order:
        figure.legend(
            [handles[name] for name in order],
            order,
            loc="outside lower center",
            ncols=4 if size[0] < 8 else len(order),
            frameon=False,
            fontsize=9,
        )
    return figure


def limit(axes: Axes, losses: list[float]) -> float:
    """Set the range so that the good half fills the panel; returns its top, where worse points are put."""
    finite = sorted(loss for loss in losses if math.isfinite(loss))
    if not finite:
        return 1.0
    low, middle, high = finite[0], finite[len(finite) // 2], finite[-1]
    top = min(high, low + 2.5 * max(middle - low, 0.02 * abs(low)))
    margin = 0.06 * max(top - low, 1e-6)
    axes.set_ylim(low - margin, top + 2 * margin)
    return top + margin


def lr_curves(results: Results) -> Figure:
    """Tuning losses; what lies above the panel is an arrow at its top, a failed run a cross."""

    def draw(axes: Axes, task: str) -> None:
        found = {name: results.tuning(task, name) for name in results.optimizers}
        top = limit(axes, [loss for losses in found.values() for loss in losses.values()])
        axes.set_xscale("log")
        for name, losses in found.items():
            default = results.default_lr(task, name)
            if not losses or default is None:
                continue
            x = [lr / default for lr in losses]
            y = list(losses.values())
            axes.plot(x, [loss if math.isfinite(loss) else math.nan for loss in y], label=name, **style(name))
            for position, loss in zip(x, y, strict=True):
                if loss > top:
                    marker = "$\\uparrow$" if math.isfinite(loss) else "x"
                    axes.plot(position, top, marker=marker, markersize=7, color=STYLES[name]["color"], zorder=6)
        axes.axvline(1, color="grey", linewidth=0.8, zorder=1)

    return panels(results, draw, "learning rate / default", "validation loss (nats)")


def curves(results: Results) -> Figure:
    """Validation losses during training at the best learning rate."""

    def draw(axes: Axes, task: str) -> None:
        found = {
            name: mean_curve(results.seeds(task, name, results.best_lr(task, name))) for name in results.optimizers
        }
        limit(axes, [point[1] for curve in found.values() for point in curve])
        for name, curve in found.items():
            if not curve:
                continue
            steps, mean, error = map(list, zip(*curve, strict=True))
            axes.plot(steps, mean, label=name, **{**style(name), "markersize": 3.5})
            if not any(map(math.isnan, error)):
                low = [value - spread for value, spread in zip(mean, error, strict=True)]
                high = [value + spread for value, spread in zip(mean, error, strict=True)]
                axes.fill_between(steps, low, high, color=STYLES[name]["color"], alpha=0.15, linewidth=0)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))

    return panels(results, draw, "step", "validation loss (nats)")


def differences(results: Results) -> Figure:
    """Test loss over AdamW's, tasks down, with two standard errors of the ratio."""
    tasks = [task for task in results.tasks if any(results.runs(task, name) for name in results.optimizers)]
    others = [name for name in results.optimizers if name != BASELINE]
    size = (9.5, 1.3 + max(1, len(tasks)) * (0.3 + 0.09 * len(others)))
    figure, pair = plt.subplots(1, 2, figsize=size, layout="constrained", sharey=True)
    handles = {}
    for axes, which, title in zip(
        pair, ("best", "default"), ("learning rates tuned", "default learning rates"), strict=True
    ):
        shown = [1.0]
        for line, task in enumerate(tasks):
            base = results.final(task, BASELINE, which)
            for place, name in enumerate(others):
                ours = results.final(task, name, which)
                if not (ours.seeds and base.seeds and math.isfinite(base.mean)):
                    continue
                y = line + 0.72 * ((place + 0.5) / len(others) - 0.5)
                ratio = ours.mean / base.mean
                look = {"color": STYLES[name]["color"], "marker": STYLES[name]["marker"], "markersize": 5}
                if ratio > LARGEST_RATIO:
                    text = f"{ratio:.1f} x" if math.isfinite(ratio) else "failed"
                    axes.plot(LARGEST_RATIO, y, linestyle="none", **look)
                    axes.annotate(text, (LARGEST_RATIO, y), (4, 0), textcoords="offset points", va="center", fontsize=6)
                    shown.append(LARGEST_RATIO)
                    continue
                error = ratio * math.hypot(ours.error / ours.mean, base.error / base.mean)
                spread = None if math.isnan(error) else 2 * error
                shown += [ratio - (spread or 0), ratio + (spread or 0)]
                handles[name] = axes.errorbar(ratio, y, xerr=spread, linestyle="none", elinewidth=1.1, **look)
        axes.axvline(1, color="black", linewidth=1)
        low, high = max(0.0, min(shown)), min(LARGEST_RATIO * 1.08, max(shown))
        axes.set_xlim(low - 0.04 * (high - low) - 1e-3, high + 0.06 * (high - low) + 1e-3)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("test loss / AdamW's (left: better)", fontsize=9)
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        for line in range(1, len(tasks), 2):
            axes.axhspan(line - 0.5, line + 0.5, color="black", alpha=0.04, linewidth=0)
    pair[0].set_yticks(range(len(tasks)), tasks, fontsize=9)
    pair[0].set_ylim(max(1, len(tasks)) - 0.5, -0.5)
    if order := [name for name in others if name in handles]:
        figure.legend(
            [handles[name] for name in order], order, loc="outside lower center", ncols=7, frameon=False, fontsize=9
        )
    return figure


def draw_all(results: Results, folder: Path) -> None:
    """All figures into `folder`."""
    with plt.rc_context({"svg.hashsalt": "arturo"}):  # the same file for the same results
        save(differences(results), folder, "differences")
        save(lr_curves(results), folder, "lr_curves")
        save(curves(results), folder, "curves")
