"""From a run to the page, and to its figures as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from arturo_integrations.report import figures, heatmaps, page, style
from arturo_integrations.report.files import write_whole
from arturo_integrations.report.panels import Panel
from arturo_integrations.report.run import Run

PAGE = "arturo_report.html"


def write_report(
    run: Run, output: Path, with_figures: bool = False, progress: Callable[[str], None] = lambda doing: None
) -> list[Path]:
    """Write the page of a run.

    Args:
        run: from :func:`find.load`.
        output: the HTML file.
        with_figures: also write every figure as PNG and SVG, into ``<name of the page>_figures`` beside it.
        progress: called with what is being done, a few words, a dozen times.

    Returns:
        The files that were written, the page first. Nothing is written before all of them are drawn.

    Raises:
        ReportError: a file cannot be written.
    """
    sections: dict[str, list[Panel]] = {title: [] for title in figures.SECTIONS}
    for title, panel in figures.draw_all(run):
        progress(f"drawing {panel.title}")
        sections[title].append(panel)
    heat_maps: list[Panel] = []
    for panel in heatmaps.draw_all(run):
        progress(f"drawing {panel.title}")
        heat_maps.append(panel)
    progress("putting the page together")
    contents = {output: page.render(run, sections, heat_maps).encode("utf-8")}
    if with_figures:
        folder = output.with_name(f"{output.stem}_figures")
        for panel in [*(panel for group in sections.values() for panel in group), *heat_maps]:
            progress(f"saving {panel.title}")
            contents[folder / f"{panel.slug}.png"] = style.png(panel.figure)
            contents[folder / f"{panel.slug}.svg"] = style.svg(panel.figure, background=True).encode("utf-8")
    for path, content in contents.items():
        write_whole(path, content)
    return list(contents)
