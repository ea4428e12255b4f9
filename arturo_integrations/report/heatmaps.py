"""Layers against steps: what each spends of the KL budget, and how much of its curvature was learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from arturo_integrations.report import style
from arturo_integrations.report.figures import cell_edges
from arturo_integrations.report.layers import MOST_ROWS, modules, percent
from arturo_integrations.report.panels import Panel
from arturo_integrations.report.run import Run

MOST_COLUMNS = 600  # logged steps that are drawn: more do not fit in the width of a page
MOST_LAYERS = 400  # drawn one by one; beyond that by module only, and in the table
DECADES = 5  # of shares that the colours tell apart
ROW_HEIGHT = 0.165  # inches


@dataclass(frozen=True)
class Grid:
    """Values of shape (rows, steps): NaN where nothing was logged."""

    names: list[str]
    steps: np.ndarray
    values: np.ndarray


def grid(run: Run, number: str) -> Grid | None:
    """A number of all layers that have it, at the steps at which any of them has."""
    series = {name: numbers[number] for name, numbers in run.layers.items() if number in numbers}
    if not series:
        return None
    steps = np.unique(np.concatenate([one.steps for one in series.values()]))
    values = np.full((len(series), len(steps)), np.nan)
    for row, one in zip(values, series.values(), strict=True):
        row[np.searchsorted(steps, one.steps)] = np.where(np.isfinite(one.values), one.values, np.nan)
    return Grid(list(series), steps, values)


def by_module(full: Grid, total: Callable[[np.ndarray], np.ndarray]) -> Grid:
    """Rows of one module put together by ``total``, from (layers, steps) to (steps)."""
    of = modules(full.names)
    names = list(dict.fromkeys(of.values()))
    rows = [full.values[[of[layer] == name for layer in full.names]] for name in names]
    return Grid(names, full.steps, np.stack([total(inside) for inside in rows]))


def sums(values: np.ndarray) -> np.ndarray:
    """Over rows, of what was logged; NaN where nothing was."""
    return np.where(np.isfinite(values).any(axis=0), np.nansum(values, axis=0), np.nan)


def means(values: np.ndarray) -> np.ndarray:
    """Over rows, of what was logged; NaN where nothing was."""
    logged = np.isfinite(values).sum(axis=0)
    return np.where(logged > 0, np.nansum(values, axis=0) / np.maximum(logged, 1), np.nan)


def share_norm(values: np.ndarray) -> Normalize:
    """Logarithmic from the largest share down, at most five decades."""
    positive = values[np.isfinite(values) & (values > 0)]
    high = min(1.0, float(positive.max())) if positive.size else 1.0
    low = max(float(positive.min()), high * 10.0**-DECADES) if positive.size else 0.1
    return LogNorm(min(low, high / 10), high, clip=False)


def draw_all(run: Run) -> Iterator[Panel]:
    """The heat maps that the logged numbers allow; of many layers first by module, then layer by layer."""
    kinds: dict[str, tuple[str, str, Callable[[np.ndarray], np.ndarray]]] = {
        "kl_share": ("KL share", "Share of the step's KL divergence", sums),
        "curvature_learned": ("Learned curvature", "Share of weights whose curvature is a tenth off its prior", means),
    }
    with style.styled():
        for number, (title, label, total) in kinds.items():
            full = grid(run, number)
            if full is None:
                continue
            norm = share_norm if number == "kl_share" else lambda values: Normalize(0.0, 1.0)
            if len(full.names) > MOST_ROWS:
                merged = by_module(full, total)
                how = "summed" if total is sums else "averaged, each layer alike,"
                yield _panel(f"{number}_modules", f"{title} by module", label, merged, norm(merged.values), how)
            if len(full.names) <= MOST_LAYERS:
                yield _panel(number, f"{title} by layer", label, full, norm(full.values), "")


def thinned(full: Grid) -> Grid:
    """At most ``MOST_COLUMNS`` of its steps, evenly chosen, the first and the last among them."""
    if len(full.steps) <= MOST_COLUMNS:
        return full
    chosen = np.unique(np.linspace(0, len(full.steps) - 1, MOST_COLUMNS).round().astype(int))
    return Grid(full.names, full.steps[chosen], full.values[:, chosen])


def _panel(slug: str, title: str, label: str, full: Grid, norm: Normalize, how: str) -> Panel:
    shown = thinned(full)
    height = ROW_HEIGHT * len(shown.names) + 1.1
    figure = Figure(figsize=(9.6, max(2.4, height)), dpi=style.DPI)
    figure.set_layout_engine("constrained", w_pad=0.15)  # fonts differ, and names are long
    axes = figure.add_subplot()
    colours = matplotlib.colormaps["viridis"].with_extremes(under=matplotlib.colormaps["viridis"](0.0))
    lowest = norm.vmin if isinstance(norm, LogNorm) else None  # nothing is less than nothing: the colour of the least
    values = np.ma.masked_invalid(shown.values if lowest is None else np.maximum(shown.values, lowest / 2))
    mesh = axes.pcolormesh(
        cell_edges(shown.steps), np.arange(len(shown.names) + 1), values, norm=norm, cmap=colours, rasterized=True
    )
    mesh.set_gid(slug)
    axes.invert_yaxis()
    axes.grid(False)
    axes.set_yticks(np.arange(len(shown.names)) + 0.5, [style.printable(name) for name in shown.names], fontsize=7.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    place: dict[str, Any] = {"location": "top", "anchor": (0.0, 0.0), "aspect": 50, "shrink": 0.6}
    extend = "min" if isinstance(norm, LogNorm) else "neither"
    bar = figure.colorbar(mesh, ax=axes, fraction=0.6 / height, pad=0.25 / height, extend=extend, **place)
    bar.set_label(label, fontsize=8, loc="left")
    bar.outline.set_visible(False)
    merged = f"{how} over the layers of a module, " if how else ""
    caption = f"{label}, {merged}{len(full.names):,} rows at {len(full.steps):,} logged steps."
    if len(shown.steps) < len(full.steps):
        caption += f" {len(shown.steps)} of them are drawn, evenly chosen."
    if not np.isfinite(full.values).all():
        caption += " Empty cells: nothing was logged, or a value was not finite."
    return Panel(
        slug, title, _alt(title, full), caption, figure, {}, wide=True, folded=len(full.names) > MOST_ROWS and not how
    )


def _alt(title: str, full: Grid) -> str:
    last: Mapping[str, float] = dict(zip(full.names, full.values[:, -1].tolist(), strict=True))
    finite = sorted((name for name in last if math.isfinite(last[name])), key=lambda name: -last[name])
    largest = ", ".join(f"{name} {percent(last[name])}" for name in finite[:3]) or "none logged"
    return (
        f"Heat map, {title}: {len(full.names)} rows, {len(full.steps)} steps from {full.steps[0]:.0f} to "
        f"{full.steps[-1]:.0f}. Largest at the last step: {largest}."
    )
