"""How figures look: colours in light and dark, fonts, and a figure as bytes of an SVG or PNG file."""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from arturo_integrations.report.names import shortened

# Blue, orange, green and pink after Okabe and Ito, told apart with every form of colour blindness; dashes repeat it.
INK, MUTED, GRID = "#1f2430", "#5b6472", "#d5dae1"
BLUE, ORANGE, GREEN, PINK, RED = "#0072b2", "#c85200", "#00825e", "#b0558f", "#c62828"
CYCLE = (
    {"color": BLUE, "linestyle": "-"},
    {"color": ORANGE, "linestyle": "--"},
    {"color": GREEN, "linestyle": "-."},
    {"color": PINK, "linestyle": ":"},
)
#: What each of them becomes on a dark page.
DARK = {
    INK: "#e6e9ef",
    MUTED: "#a4adba",
    GRID: "#3a424f",
    BLUE: "#62b5f0",
    ORANGE: "#ff9d5c",
    GREEN: "#43d3a4",
    PINK: "#e79bcb",
    RED: "#ff7b72",
}

#: Texts stay texts: they can be found and copied, and the page's size does not depend on fonts.
RC: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "arturo",  # the same file for the same run
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "Helvetica"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.formatter.use_mathtext": True,
    "axes.formatter.limits": (-3, 5),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}
DPI = 150  # of PNG files, and of the layout: at low ones text is measured too narrow


def styled() -> Any:
    """A context in which figures get this style, whatever the user's matplotlibrc."""
    return matplotlib.style.context(["default", RC])


def settle(figure: Figure) -> None:
    """Lay a figure out once: it is saved several times, and has to look the same each time."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")


def svg(figure: Figure, background: bool = False) -> str:
    """A figure as SVG text, without background to lie on any page."""
    return _save(figure, "svg", background, metadata={"Date": None}).decode("utf-8")


def png(figure: Figure) -> bytes:
    return _save(figure, "png", True)


def dark(picture: str) -> str:
    """An SVG in light colours, in dark ones."""
    return re.sub("#[0-9a-f]{6}", lambda found: DARK.get(found[0], found[0]), picture)


def printable(name: str, longest: int = 44) -> str:
    """A name from a log as a label: no characters that SVG cannot hold, the middle left out if it is long.

    Dollar signs, which would begin a formula, are escaped.
    """
    return shortened(name, longest).replace("$", r"\$")


def _save(figure: Figure, form: str, background: bool, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with styled(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the reader's machine may have it
        figure.savefig(buffer, format=form, dpi=DPI, facecolor="white" if background else "none", **options)
    return buffer.getvalue()
