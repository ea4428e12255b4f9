"""curves.png: loss and accuracy against steps, and what arTuRO's trust region did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no window, no display needed

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from recipes.text.report import headline
from recipes.text.summary import Run, by_optimizer, curve

# Okabe and Ito's palette, told apart with every form of colour blindness; markers and dashes repeat the cue.
STYLES = (
    {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    {"color": "#009E73", "linestyle": "-.", "marker": "^"},
    {"color": "#CC79A7", "linestyle": ":", "marker": "D"},
    {"color": "#E69F00", "linestyle": "-", "marker": "v"},
    {"color": "#56B4E9", "linestyle": "--", "marker": "P"},
)
TITLES = {
    "loss": ("Training loss", "cross-entropy (nats)"),
    "eval_loss": ("Validation loss", "cross-entropy (nats)"),
    "eval_accuracy": ("Validation accuracy", "correct (%)"),
    "arturo/eta": ("Multiplier η of the trust region", "η"),
    "arturo/kl_ratio": ("Use of the trust region", "KL used / bound"),
}


def draw(axes: Axes, runs: Sequence[Run], key: str, label: str, style: dict[str, Any], scale: float = 1) -> None:
    """One curve of means, with a band of ± one standard error if there are several runs."""
    steps, mean, error = curve(runs, key)
    marker_every = max(1, len(steps) // 12)
    axes.plot(steps, mean * scale, label=label, markersize=4, markevery=marker_every, linewidth=1.8, **style)
    if len(runs) > 1:
        low, high = (mean - error) * scale, (mean + error) * scale
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.2, linewidth=0)


def label_axes(axes: Axes, key: str) -> None:
    title, unit = TITLES[key]
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_ylabel(unit)
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def trust_region(panels: dict[str, Axes], runs: Sequence[Run], label: str, style: dict[str, Any]) -> None:
    """η, on a logarithmic axis, and KL used / bound with the bound marked."""
    for key, axes in panels.items():
        draw(axes, runs, key, label, style)
    _, eta, _ = curve(runs, "arturo/eta")
    used = eta[eta > 0]
    if len(used):  # η is 0 where the bound is inactive, which a purely logarithmic axis cannot show
        axes = panels["arturo/eta"]
        if len(used) == len(eta):
            axes.set_yscale("log")
        else:
            axes.set_yscale("symlog", linthresh=float(used.min()))
    bound = panels["arturo/kl_ratio"]
    bound.axhline(1, color="black", linewidth=1, linestyle=(0, (2, 2)), label="bound")
    bound.set_ylim(0, max(1.2, bound.get_ylim()[1]))
    bound.legend(frameon=False)


def plot_curves(content: dict[str, Any], path: Path) -> None:
    """Draw what metrics.json holds into the PNG file `path`."""
    groups = by_optimizer(content["runs"])
    measured = [name for name, runs in groups.items() if all(len(curve([r], "arturo/eta")[0]) for r in runs)]
    layout: list[Any] = [["loss", "eval_loss"], ["loss", "eval_accuracy"]]
    if measured:
        layout = [[*layout[0], "arturo/eta"], [*layout[1], "arturo/kl_ratio"]]
    figure, panels = plt.subplot_mosaic(layout, figsize=(4.4 * len(layout[0]), 6.6), layout="constrained")
    for index, (name, runs) in enumerate(groups.items()):
        style = STYLES[index % len(STYLES)]
        label = f"{name}, lr {runs[0]['learning_rate']:.3g}"
        label += f" (mean ± s.e. of {len(runs)} seeds)" if len(runs) > 1 else ""
        for key, scale in (("loss", 1), ("eval_loss", 1), ("eval_accuracy", 100)):
            draw(panels[key], runs, key, label, style, scale)
        if name in measured:
            trust_region({key: panels[key] for key in panels if "arturo" in key}, runs, name, style)
    for key, axes in panels.items():
        label_axes(axes, key)
    for key in ("loss", "eval_loss"):
        panels[key].set_ylim(0, 1.04 * panels[key].get_ylim()[1])
    baseline = content["data"]["majority"]["validation"]["accuracy"]
    accuracy = panels["eval_accuracy"]
    accuracy.axhline(100 * baseline, color="grey", linewidth=1)
    accuracy.annotate(
        "majority class", (1, 100 * baseline), (0, 3), ("axes fraction", "data"), "offset points", ha="right"
    )
    panels["loss"].legend(frameon=False)
    figure.suptitle(headline(content), x=0.01, ha="left")
    figure.savefig(path, dpi=150)
    plt.close(figure)
