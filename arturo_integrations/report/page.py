"""The HTML page: one file that needs nothing else, no network, no script."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape

from arturo_core import __version__
from arturo_integrations.report import layers, style
from arturo_integrations.report.layers import Row
from arturo_integrations.report.meanings import LAYER_MEANINGS, MEANINGS
from arturo_integrations.report.panels import Panel, short
from arturo_integrations.report.run import Run, Series

TABLED = 40  # steps in the table below a figure


@dataclass(frozen=True)
class Number:
    """A row of the table of last numbers."""

    name: str
    value: float
    step: int
    unit: str
    meaning: str


@dataclass(frozen=True)
class Rows:
    """Layers or modules, largest share of the KL divergence first."""

    rows: Sequence[Row]

    @property
    def numbers(self) -> list[str]:
        """What any of them has, as columns in the order of their meanings."""
        return [key for key in LAYER_MEANINGS if any(key in row.numbers for row in self.rows)]

    @property
    def largest_share(self) -> float:
        return max((row["kl_share"] for row in self.rows if math.isfinite(row["kl_share"])), default=0.0)


@dataclass(frozen=True)
class LayerTable:
    """The layers at the last step that has numbers of them; ``modules`` is None where there are few layers."""

    step: int
    layers: Rows
    modules: Rows | None
    summary: Sequence[tuple[str, str]]
    silent: int  # layers of the log without numbers at this step

    @classmethod
    def of(cls, run: Run) -> LayerTable | None:
        if not run.layers:
            return None
        step = layers.last_step(run)
        rows = layers.rows(run, step)
        modules = None
        if len(rows) > layers.MOST_ROWS:
            modules = Rows(layers.by_module(rows, layers.modules([row.name for row in rows])))
        return cls(step, Rows(rows), modules, layers.summary(rows), len(run.layers) - len(rows))


def render(run: Run, sections: Mapping[str, Sequence[Panel]], heat_maps: Sequence[Panel]) -> str:
    """The whole page.

    Args:
        run: what was logged.
        sections: figures by section title, in order.
        heat_maps: figures of layers.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {
        "short": short,
        "percent": layers.percent,
        "exact": exact,
        "share": bar_width,
        "breakable": breakable,
    }
    environment.globals |= {"picture": picture, "table": thinned, "columns": LAYER_MEANINGS}
    first, last = run.steps
    return environment.get_template("page.html").render(
        run=run,
        first=first,
        last=last,
        version=__version__,
        css=_file("page.css"),
        glance=glance(run),
        numbers=last_numbers(run),
        sections={title: panels for title, panels in sections.items() if panels},
        heat_maps=heat_maps,
        layers=LayerTable.of(run),
    )


def picture(panel: Panel) -> dict[str, str]:
    """Data addresses of a figure in light and in dark."""
    light = style.svg(panel.figure)
    return {"light": _address(light), "dark": _address(style.dark(light))}


def thinned(panel: Panel) -> dict[str, Any]:
    """The numbers of a figure as a table: at most ``TABLED`` of its steps, evenly chosen, first and last among them."""
    steps = np.unique(np.concatenate([series.steps for series in panel.series.values()]))
    chosen = steps
    if len(steps) > TABLED:
        chosen = steps[np.unique(np.linspace(0, len(steps) - 1, TABLED).round().astype(int))]
    by_step = {
        key: dict(zip(series.steps.tolist(), series.values.tolist(), strict=True))
        for key, series in panel.series.items()
    }
    rows = [(int(step), [column.get(step) for column in by_step.values()]) for step in chosen.tolist()]
    return {"names": list(panel.series), "rows": rows, "of": len(steps)}


def last_numbers(run: Run) -> list[Number]:
    """Losses and learning rates, then the diagnostics in the order of their meanings, then names without a meaning."""
    found = [_number(key, series, "", "Loss of the training batches.") for key, series in run.loss.items()]
    found += [_number(key, series, "", "Loss on validation data.") for key, series in run.validation.items()]
    found += [_number(key, series, "", "Learning rate of the schedule.") for key, series in run.learning_rate.items()]
    names = [name for name in MEANINGS if name in run.numbers] + [name for name in run.numbers if name not in MEANINGS]
    found += [_number(f"arturo/{name}", run.numbers[name], *MEANINGS.get(name, ("", "–"))) for name in names]
    return found


def glance(run: Run) -> list[tuple[str, str, str]]:
    """What a reader wants to know first: title, value, remark."""
    tiles: list[tuple[str, str, str]] = []
    for series in run.loss.values():
        tiles.append(("Training loss", short(series.last), f"at step {series.steps[-1]:,.0f}"))
    for key, series in list(run.validation.items())[:2]:
        finite = series.finite()
        if len(finite.steps):
            best = int(np.argmin(finite.values))
            title = "Lowest validation loss" if len(run.validation) == 1 else f"Lowest {key}"
            tiles.append((title, short(finite.values[best]), f"at step {finite.steps[best]:,.0f}"))
    active = run.numbers.get("bound_active")
    if active is not None:
        share = float(np.mean(active.values > 0.5))
        tiles.append(("Bound active", layers.percent(share), f"of {len(active.steps):,} logged steps"))
    innovation = run.numbers.get("innovation_ratio")
    if innovation is not None and len(innovation.finite().steps):
        half = innovation.finite().values[len(innovation.finite().values) // 2 :]
        tiles.append(("Innovation ratio", short(float(np.median(half))), "median of the later half; 1 is consistent"))
    skipped = run.numbers.get("skipped_steps")
    if skipped is not None:
        steps = run.numbers.get("steps")
        tiles.append(("Skipped steps", short(skipped.last), f"{short(steps.last)} taken" if steps is not None else ""))
    return tiles


def exact(value: float) -> str:
    """All digits, for machines; nothing else in HTML may stand there for a number that is not finite."""
    return repr(float(value))


def bar_width(value: float, largest: float = 1.0) -> str:
    """Per cent of the largest, for a bar."""
    return f"{100 * min(1.0, max(0.0, value / largest)):.1f}" if math.isfinite(value) and largest > 0 else "0"


def breakable(name: str) -> Markup:
    """A name that may be broken after its dots, slashes and underscores."""
    return Markup(re.sub(r"([./_])", r"\1<wbr>", str(escape(name))))


def _number(name: str, series: Series, unit: str, meaning: str) -> Number:
    return Number(name, series.last, int(series.steps[-1]), unit, meaning)


def _address(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8")).decode("ascii")


def _file(name: str) -> str:
    return resources.files(__package__ or "arturo_integrations.report").joinpath(name).read_text(encoding="utf-8")
