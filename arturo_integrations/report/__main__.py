"""Command line: ``python -m arturo_integrations.report RUN_DIR`` writes ``RUN_DIR/arturo_report.html``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from arturo_integrations.report.errors import ReportError


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="python -m arturo_integrations.report",
        description="One HTML page with figures of a training run with arTuRO, from its logs.",
        epilog="Logs are recognised by themselves: trainer_state.json and checkpoint-*/trainer_state.json of Hugging "
        "Face Trainer, metrics.csv of Lightning's CSVLogger, TensorBoard event files, and JSON lines files whose "
        'records have a "step".',
    )
    command.add_argument("log", metavar="RUN_DIR", type=Path, help="folder with logs in it or below it, or one log")
    command.add_argument("--run", metavar="NAME", help="which run below RUN_DIR, by its name or the end of it "
                         "(default: the one written to last; the others are named)")  # fmt: skip
    command.add_argument("--optimizer", metavar="N", type=int, help="where a run logged several (arturo/<N>/...), the "
                         "one to show (default: the first)")  # fmt: skip
    command.add_argument("--list", action="store_true", help="list the runs below RUN_DIR, newest first, and stop")
    command.add_argument(
        "--output", metavar="FILE", type=Path, help="the page (default: arturo_report.html in RUN_DIR)"
    )
    command.add_argument("--figures", action="store_true", help="also every figure as PNG and SVG, in a folder beside "
                         "the page")  # fmt: skip
    command.add_argument("--rows", metavar="N", type=int, default=20, help="layers shown in the terminal (default: 20)")
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 after an error that the user can put right."""
    options = parser().parse_args(arguments)
    try:
        from arturo_integrations.report import command
    except ModuleNotFoundError as error:
        print(
            f'error: the report needs {error.name}, which is not installed: pip install "arturo-optim[report]"',
            file=sys.stderr,
        )
        return 2
    try:
        command.execute(options)
    except ReportError as error:
        command.complain(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
