"""The figures of losses, learning rate, trust region and filter, each from the series it is made for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from arturo_integrations.report import style
from arturo_integrations.report.layers import percent
from arturo_integrations.report.meanings import MEANINGS
from arturo_integrations.report.panels import Panel, axes_of, choose_scale, describe, drawable, line, mark_missing
from arturo_integrations.report.run import Run, Series

MOST_LINES = 8  # of one kind in a figure: validation losses, learning rates of groups


def losses(run: Run) -> Panel | None:
    """Training loss, and every validation loss."""
    validation = dict(list(run.validation.items())[:MOST_LINES])
    series = {**run.loss, **validation}
    if not series:
        return None
    figure, axes = axes_of()
    for key, one in run.loss.items():
        line(axes, key, one, label=f"training ({key})")
    for index, (key, one) in enumerate(validation.items(), start=1):
        line(axes, key, one, index, label=f"validation ({style.printable(key)})", marker="o", markersize=3.5)
    choose_scale(axes, series)
    axes.set_ylabel("loss")
    missing = mark_missing(axes, series)
    _legend(axes)
    more = len(run.validation) - len(validation)
    caption = "Training loss, and validation loss where it was evaluated." + missing
    if more:
        caption += f" {more} further validation losses are not drawn."
    return Panel("loss", "Loss", _alt(series), caption, figure, series)


def learning_rate(run: Run) -> Panel | None:
    """The learning rate of every parameter group that was logged."""
    series = dict(list(run.learning_rate.items())[:MOST_LINES])
    if not series:
        return None
    figure, axes = axes_of()
    for index, (key, one) in enumerate(series.items()):
        line(axes, key, one, index, label=style.printable(key))
    axes.set_ylabel("learning rate")
    missing = mark_missing(axes, series)
    if len(series) > 1 or missing:
        _legend(axes)
    caption = f"As logged under {', '.join(series)}.{missing}"
    return Panel("learning_rate", "Learning rate", _alt(series), caption, figure, series)


def kl_ratio(run: Run) -> Panel | None:
    """KL divergence spent over the bound, and the steps at which the bound was active."""
    if "kl_ratio" not in run.numbers:
        return None
    figure, axes = axes_of()
    ratio = run.numbers["kl_ratio"]
    series = {"kl_ratio": ratio}
    line(axes, "arturo/kl_ratio", ratio, label="KL / bound")
    _reference(axes, 1.0, "bound")
    finite = drawable(ratio)[np.isfinite(drawable(ratio))]
    axes.set_ylim(-0.09, max(1.2, 1.1 * float(finite.max(initial=0.0))))
    caption = MEANINGS["kl_ratio"][1]
    active = run.numbers.get("bound_active")
    if active is not None:
        series["bound_active"] = active
        _strip(axes, active)
        share = float(np.mean(active.values > 0.5))
        caption += f" The bound was active at {percent(share)} of the logged steps (strip below the curve)."
    axes.set_ylabel("KL / bound")
    caption += mark_missing(axes, {"kl_ratio": ratio})
    _legend(axes)
    return Panel("kl_ratio", "KL divergence over its bound", _alt(series), caption, figure, series)


def quantiles(name: str, title: str, unit: str) -> Callable[[Run], Panel | None]:
    """A figure of the band between the 5 % and 95 % quantiles of a number over the weights, with the median."""

    def draw(run: Run) -> Panel | None:
        series = {
            key: run.numbers[key] for key in (f"{name}_q{level}" for level in ("05", "50", "95")) if key in run.numbers
        }
        if not series:
            return None
        figure, axes = axes_of()
        looks: dict[str, dict[str, Any]] = {
            f"{name}_q95": {"color": style.BLUE, "linestyle": "--", "linewidth": 0.9, "label": "95 %"},
            f"{name}_q50": {"color": style.BLUE, "linestyle": "-", "label": "median"},
            f"{name}_q05": {"color": style.BLUE, "linestyle": ":", "linewidth": 0.9, "label": "5 %"},
        }
        for key, look in looks.items():
            if key in series:
                line(axes, f"arturo/{key}", series[key], **look)
        _band(axes, series.get(f"{name}_q05"), series.get(f"{name}_q95"))
        choose_scale(axes, series)
        if name == "curvature":
            _reference(axes, 1.0, "prior")
        axes.set_ylabel(unit)
        caption = "Nine tenths of the weights lie in the band; the line is their median." + mark_missing(axes, series)
        _legend(axes)
        return Panel(name, title, _alt(series), caption, figure, series)

    return draw


def single(
    name: str, title: str, label: str, reference: tuple[float, str] | None = None, log: bool = False
) -> Callable[[Run], Panel | None]:
    """A figure of one diagnostic, with a reference line if there is a value it should have.

    ``log``: on a logarithmic axis, with gaps at 0; else only if all values are positive and differ much.
    """

    def draw(run: Run) -> Panel | None:
        if name not in run.numbers:
            return None
        figure, axes = axes_of()
        series = {name: run.numbers[name]}
        line(axes, f"arturo/{name}", series[name], label=label)
        if log and np.nanmax(drawable(series[name]), initial=0.0) > 0.0:
            axes.set_yscale("log", nonpositive="mask")
        else:
            choose_scale(axes, series)
        if reference is not None:
            _reference(axes, *reference)
            if axes.get_yscale() == "log":
                axes.set_ylim(bottom=min(axes.get_ylim()[0], reference[0] / 2))
        axes.set_ylabel(label)
        caption = MEANINGS[name][1] + mark_missing(axes, series)
        if axes.get_yscale() == "log" and (series[name].values == 0.0).any():
            caption += " Steps at which it is 0, as skipped ones, are gaps."
        if len(axes.get_lines()) > 1:
            _legend(axes)
        return Panel(name, title, _alt(series), caption, figure, series)

    return draw


def skipped_steps(run: Run) -> Panel | None:
    """The counter of skipped steps, as the staircase it is."""
    if "skipped_steps" not in run.numbers:
        return None
    figure, axes = axes_of()
    counter = run.numbers["skipped_steps"]
    line(axes, "arturo/skipped_steps", counter, color=style.ORANGE, drawstyle="steps-post")
    finite = drawable(counter)[np.isfinite(drawable(counter))]
    axes.set_ylim(-0.05 * max(1.0, float(finite.max(initial=0.0))), 1.1 * max(1.0, float(finite.max(initial=0.0))))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.set_ylabel("skipped so far")
    caption = MEANINGS["skipped_steps"][1] + mark_missing(axes, {"": counter})
    if finite.size and finite.max() == 0:
        caption += " None was skipped."
    series = {"skipped_steps": counter}
    return Panel("skipped_steps", "Skipped steps", _alt(series), caption, figure, series)


#: Sections of the page and the figures in them, in order.
SECTIONS: dict[str, tuple[Callable[[Run], Panel | None], ...]] = {
    "Training": (losses, learning_rate),
    "Trust region": (
        kl_ratio,
        single("eta", "Multiplier η", "η"),
        single("step_rms", "Length of the steps", "step RMS (weight units)"),
        single(
            "step_resolution",
            "Steps beside the weights' spacing",
            "step / half spacing",
            (1.0, "half a spacing"),
            log=True,
        ),
    ),
    "Filter": (
        single("innovation_ratio", "Innovation ratio", "e² / expected", (1.0, "consistent")),
        quantiles("curvature", "Curvature", "relative to its prior"),
        quantiles("precision", "Precision", "1 / weight²"),
        skipped_steps,
    ),
}


def draw_all(run: Run) -> Iterator[tuple[str, Panel]]:
    """Every figure whose numbers were logged, with its section."""
    with style.styled():
        for section, functions in SECTIONS.items():
            for function in functions:
                panel = function(run)
                if panel is not None:
                    yield section, panel


def cell_edges(steps: np.ndarray) -> np.ndarray:
    """Borders half-way between logged steps, one more than steps."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middles = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[steps[0] - (middles[0] - steps[0])], middles, [steps[-1] + (steps[-1] - middles[-1])]])


def _strip(axes: Axes, active: Series) -> None:
    """A bar at the foot of the axes over every stretch of steps at which the bound was active."""
    edges = cell_edges(active.steps)
    changes = np.diff(np.concatenate([[0], (active.values > 0.5).astype(int), [0]]))
    begins, ends = edges[np.flatnonzero(changes > 0)], edges[np.flatnonzero(changes < 0)]
    axes.broken_barh(
        list(zip(begins, ends - begins, strict=True)),
        (0.0, 0.05),
        transform=axes.get_xaxis_transform(),
        color=style.GREEN,
        linewidth=0,
        label="active",
        zorder=3,
        gid="arturo/bound_active",
    )


def _band(axes: Axes, low: Series | None, high: Series | None) -> None:
    if low is None or high is None:
        return
    both, of_low, of_high = np.intersect1d(low.steps, high.steps, return_indices=True)
    axes.fill_between(both, drawable(low)[of_low], drawable(high)[of_high], color=style.BLUE, alpha=0.18, linewidth=0)


def _reference(axes: Axes, value: float, label: str) -> None:
    axes.axhline(value, color=style.INK, linewidth=0.9, linestyle=(0, (5, 3)), label=label, gid="reference", zorder=1.5)


def _legend(axes: Axes) -> None:
    """Above the axes, where it hides no data."""
    figure = axes.get_figure(root=True)
    handles, labels = axes.get_legend_handles_labels()
    if figure is None or not labels:
        return
    widths = [8 + len(label) for label in labels]  # in letters; about 60 fit across
    columns = len(labels) if sum(widths) <= 60 else max(1, 60 // max(widths))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, handlelength=1.8)


def _alt(series: dict[str, Series]) -> str:
    return " ".join(describe(name, one) for name, one in series.items())
