"""What every figure is made of: a picture, what it shows in words, and the numbers that were drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from arturo_integrations.report import style
from arturo_integrations.report.run import Series

LARGEST = 1e300  # beyond it the axes themselves overflow
MARKED = 40  # series of at most as many points show each of them
DECADES = 30.0  # a largest value over the smallest from which an axis is logarithmic


@dataclass(frozen=True)
class Panel:
    """A figure of the page.

    Attributes:
        slug: its file name, unique.
        title: its heading.
        alt: what a reader who does not see it should know.
        caption: what it means.
        figure: the picture.
        series: what was drawn, by label; empty for heat maps.
        wide: whether it needs the whole width of the page, and scrolls on a narrow one.
        folded: whether it is long, and shown when asked for.
    """

    slug: str
    title: str
    alt: str
    caption: str
    figure: Figure
    series: Mapping[str, Series]
    wide: bool = False
    folded: bool = False

    def __post_init__(self) -> None:
        style.settle(self.figure)


def axes_of(size: tuple[float, float] = (4.3, 2.75)) -> tuple[Figure, Axes]:
    """An empty figure, without a window or global state."""
    figure = Figure(figsize=size, dpi=style.DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    return figure, axes


def drawable(series: Series) -> np.ndarray:
    """Its values, with NaN, where a line breaks, for those that are not finite or too large for an axis."""
    return np.where(np.abs(series.values) < LARGEST, series.values, np.nan)


def line(axes: Axes, key: str, series: Series, index: int = 0, **look: Any) -> None:
    """One series; its group in the SVG has the key as its id, for whoever looks for the numbers drawn."""
    marker = {"marker": "o", "markersize": 3.2} if len(series.steps) <= MARKED else {}
    settings = {"linewidth": 1.4, **style.CYCLE[index % len(style.CYCLE)], **marker, **look}
    axes.plot(series.steps, drawable(series), gid=key, **settings)


def mark_missing(axes: Axes, series: Mapping[str, Series]) -> str:
    """Crosses at the top where a value is not finite; returns a sentence on them, or nothing."""
    steps = [step for one in series.values() for step in one.steps[np.isnan(drawable(one))]]
    if not steps:
        return ""
    axes.plot(
        steps,
        [0.97] * len(steps),
        transform=axes.get_xaxis_transform(),
        linestyle="none",
        marker="x",
        markersize=5,
        color=style.RED,
        label="not finite",
        gid="not-finite",
    )
    one = len(steps) == 1
    return f" {len(steps)} value{'' if one else 's'} {'is' if one else 'are'} not finite (red crosses)."


def choose_scale(axes: Axes, series: Mapping[str, Series]) -> None:
    """A logarithmic axis for positive values of very different size."""
    values = np.concatenate([drawable(one) for one in series.values()])
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() / values.min() > DECADES:
        axes.set_yscale("log")


def describe(name: str, series: Series) -> str:
    """``Training loss: from 2.31 at step 1 to 0.52 at step 400, lowest 0.49 at step 390, highest ...``"""
    finite = series.finite()
    if not len(finite.steps):
        return f"{name}: {len(series.steps)} values, none of them finite."
    if len(finite.steps) == 1:
        return f"{name}: {short(finite.last)} at step {finite.steps[0]:.0f}."
    low, high = int(np.argmin(finite.values)), int(np.argmax(finite.values))
    return (
        f"{name}: from {short(finite.values[0])} at step {finite.steps[0]:.0f} to {short(finite.last)} at step "
        f"{finite.steps[-1]:.0f}; lowest {short(finite.values[low])} at step {finite.steps[low]:.0f}, highest "
        f"{short(finite.values[high])} at step {finite.steps[high]:.0f}."
    )


def short(value: float) -> str:
    """Four digits; whole numbers of up to nine digits in full."""
    value = float(value)
    if math.isfinite(value) and value.is_integer() and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:.4g}"
