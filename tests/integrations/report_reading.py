"""Reads a report as a browser or a reader would: its tables, its figures, the curves drawn in them."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np

SVG = "{http://www.w3.org/2000/svg}"


@dataclass
class Page:
    """Tables by id, else by the figure they stand in: the head, then rows of cells; numbers with all their digits."""

    text: str
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    images: dict[str, dict[str, str]] = field(default_factory=dict)  # by figure: alt, src, srcset
    headings: list[tuple[int, str]] = field(default_factory=list)
    without_scope: int = 0
    addresses: list[str] = field(default_factory=list)

    def column(self, table: str, name: str) -> dict[str, float]:
        """A column of a table, by the first cell of its rows; empty cells left out."""
        head, *rows = self.tables[table]
        at = head.index(name)
        return {row[0]: float(row[at]) for row in rows if row[at] != "–"}

    def figure(self, name: str, dark: bool = False) -> ElementTree.Element:
        address = self.images[name]["srcset" if dark else "src"]
        return ElementTree.fromstring(base64.b64decode(address.partition("base64,")[2]))


class _Reader(HTMLParser):
    def __init__(self, page: Page) -> None:
        super().__init__()
        self.page = page
        self.figure = self.table = ""
        self.cell: list[str] | None = None
        self.exact: str | None = None
        self.heading: int | None = None
        self.in_small = False

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.page.addresses += [given[name] for name in ("src", "srcset", "href") if given.get(name)]
        if tag == "figure":
            self.figure = given["id"]
        elif tag == "table":
            self.table = given.get("id") or self.figure
            self.page.tables[self.table] = []
        elif tag == "tr":
            self.page.tables[self.table].append([])
        elif tag in ("td", "th"):
            self.cell, self.exact = [], None
            self.page.without_scope += tag == "th" and not given.get("scope")
        elif tag == "data":
            self.exact = given["value"]
        elif tag in ("source", "img"):
            found = {name: given[name] for name in ("alt", "src", "srcset") if name in given}
            self.page.images.setdefault(self.figure, {}).update(found)
        elif re.fullmatch("h[1-6]", tag):
            self.heading = int(tag[1])
        elif tag == "small":
            self.in_small = True

    def handle_data(self, data):
        if self.cell is not None and not self.in_small:
            self.cell.append(data)
        if self.heading is not None:
            self.page.headings.append((self.heading, data))
            self.heading = None

    def handle_endtag(self, tag):
        if tag in ("td", "th") and self.cell is not None:
            self.page.tables[self.table][-1].append(self.exact or "".join(self.cell).strip())
            self.cell = None
        elif tag == "small":
            self.in_small = False


def read_page(text: str) -> Page:
    page = Page(text)
    _Reader(page).feed(text)
    return page


def curve(figure: ElementTree.Element, name: str) -> np.ndarray:
    """Points (n, 2) of a drawn line in the figure's own units, y downwards; a gap in the line begins a new part."""
    (group,) = (group for group in figure.iter(f"{SVG}g") if group.get("id") == name)
    path = group.find(f"{SVG}path")
    assert path is not None, f"no line in {name}"
    numbers = re.findall(r"[ML] (\S+) (\S+)", path.attrib["d"])
    return np.array(numbers, dtype=float)


def assert_drawn(points: np.ndarray, steps, values) -> None:
    """Points lie where the values belong: an increasing affine map of steps, and of values or of their logarithms; then
    0 may be a gap."""
    steps, values = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    positive = values > 0
    if len(points) < len(steps):
        steps, values, positive = steps[positive], values[positive], positive[positive]
    assert len(points) == len(steps)
    assert deviation(steps, points[:, 0]) < 2e-3
    possible = [values, np.log(values)] if positive.all() else [values]
    assert min(deviation(scaled, -points[:, 1]) for scaled in possible) < 2e-3


def deviation(logged, drawn) -> float:
    """How far points are, in units of the figure, from an increasing affine map of what was logged."""
    slope, offset = np.polyfit(np.asarray(logged, dtype=float), drawn, 1)
    return float(np.abs(slope * np.asarray(logged) + offset - drawn).max()) if slope > 0 else np.inf


def ticks(figure: ElementTree.Element, axis: str) -> list[tuple[float, float]]:
    """Labelled positions of a linear axis ("x" or "y"): place in the figure, number at the label."""
    found = []
    for group in figure.iter(f"{SVG}g"):
        if re.fullmatch(rf"{axis}tick_\d+", group.get("id") or ""):
            mark = next(group.iter(f"{SVG}use"))
            label = "".join(letters for text in group.iter(f"{SVG}text") for letters in text.itertext())
            found.append((float(mark.attrib[axis]), float("".join(label.split()).replace("\N{MINUS SIGN}", "-"))))
    return found
