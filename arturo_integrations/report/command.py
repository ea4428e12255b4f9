"""What the command line does, with progress and notes on stderr, tables and the page's path on stdout."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from arturo_integrations.report import find
from arturo_integrations.report.build import PAGE, write_report
from arturo_integrations.report.errors import ReportError
from arturo_integrations.report.names import one_line, shortened
from arturo_integrations.report.page import LayerTable
from arturo_integrations.report.read import READERS
from arturo_integrations.report.terminal import print_layers

LONGEST = 5_000  # letters of an error


def execute(options: argparse.Namespace) -> None:
    """Read, draw, write, print."""
    out, err = Console(), Console(stderr=True)
    if options.list:
        list_runs(options.log, out, err)
        return
    with err.status(f"reading {escape(str(options.log))}") as status:
        run = find.load(options.log, options.run, options.optimizer)
        written = write_report(
            run, _page(options), options.figures, progress=lambda doing: status.update(escape(doing))
        )
    for note in run.notes:
        err.print(f"[yellow]note:[/] {escape(one_line(note))}", highlight=False, soft_wrap=True)
    layers = LayerTable.of(run)
    if layers is not None:
        print_layers(layers, max(1, options.rows), out)
    first, last = run.steps
    out.print(f"{run.name} ({run.kind}), steps {first} to {last}", highlight=False, markup=False, soft_wrap=True)
    out.print(f"Page: {one_line(str(written[0]))}", highlight=False, markup=False, soft_wrap=True)
    if len(written) > 1:
        out.print(f"Figures: {one_line(str(written[1].parent))}", highlight=False, markup=False, soft_wrap=True)


def list_runs(root: Path, console: Console, errors: Console) -> None:
    """A line for every run: its name, its loggers, when it was last written to."""
    if os.path.isfile(root):
        raise ReportError(f"{root} is one log; --list is for a folder.")
    found = find.find(root)
    for note in found.left_out:
        errors.print(f"[yellow]note:[/] {escape(one_line(note))}", highlight=False, soft_wrap=True)
    for run in found.runs:
        kinds = ", ".join(dict.fromkeys(READERS[source.kind][0] for source in run.sources))
        line = f"{one_line(run.name)}  ({kinds}, {_date(run.modified)})"
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _date(moment: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))
    except (OverflowError, ValueError, OSError):
        return "at a time that no calendar has"


def complain(error: ReportError) -> None:
    Console(stderr=True).print(
        f"[bold red]error:[/] {escape(shortened(str(error), LONGEST))}", highlight=False, soft_wrap=True
    )


def _page(options: argparse.Namespace) -> Path:
    if options.output is None:
        folder: Path = options.log if os.path.isdir(options.log) else options.log.parent
        return folder / PAGE
    output: Path = options.output
    if os.path.isdir(output):
        return output / PAGE
    if output.suffix.lower() not in (".html", ".htm"):
        raise ReportError(f"--output {output}: the page is HTML; give a name that ends in .html, or a folder.")
    return output
