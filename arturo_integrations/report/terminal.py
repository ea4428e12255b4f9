"""The per-layer table in the terminal."""

from __future__ import annotations

import math

from rich import box
from rich.bar import Bar
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from arturo_integrations.report.layers import NOTABLE, Row, percent
from arturo_integrations.report.meanings import LAYER_MEANINGS
from arturo_integrations.report.names import shortened
from arturo_integrations.report.page import LayerTable
from arturo_integrations.report.panels import short

WIDE = 134  # columns of a terminal from which all numbers are shown
SHARES = ("kl_share", "curvature_learned", "curvature_floored")


def print_layers(found: LayerTable, most: int, console: Console) -> None:
    """The ``most`` layers that spend the largest shares, a bar for each, and what all layers answer."""
    shown = found.layers.rows[:most]
    console.print(f"Layers at step {found.step}, largest share of the KL divergence first", style="italic")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    numbers = [key for key in found.layers.numbers if key in SHARES or console.width >= WIDE]
    table.add_column("layer", no_wrap=True)
    for key in numbers:
        title, unit, _ = LAYER_MEANINGS[key]
        table.add_column(f"{title}\n({unit})" if unit else title, justify="right", no_wrap=True)
        if key == "kl_share":
            table.add_column("", min_width=10)
    room = max(16, console.width - (40 if console.width < WIDE else 98))  # what the other columns leave
    for row in shown:
        cells: list[str | Bar] = [escape(shortened(row.name, room))]
        for key in numbers:
            cells.append(_cell(row, key))
            if key == "kl_share":
                share = row[key] if math.isfinite(row[key]) else 0.0
                cells.append(Bar(size=found.layers.largest_share or 1.0, begin=0.0, end=max(share, 0.0), width=10))
        table.add_row(*cells)
    console.print(table)
    if len(found.layers.rows) > len(shown):
        console.print(f"… and {len(found.layers.rows) - len(shown)} more layers in the page (--rows shows more here).")
    for question, answer in found.summary:
        console.print(f"[bold]{question}[/] {escape(answer)}", highlight=False)


def _cell(row: Row, key: str) -> str:
    if key not in row.numbers:
        return "–"
    text = percent(row[key]) if key in SHARES else short(row[key])
    return f"[bold red]{text}[/]" if key == "curvature_floored" and row[key] > NOTABLE else text
