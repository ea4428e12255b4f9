"""What a grid says while it runs: a bar on a terminal, one plain line a run elsewhere."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from recipes.benchmarks.quality.records import Record, score


def line(record: Record) -> str:
    """One finished run in a line."""
    run = f"{record['task']:<14} {record['optimizer']:<13} lr {record['lr']:<9.3g} seed {record['seed']} "
    run += f"({record['purpose']})"
    if reason := record.get("diverged"):
        return f"{run}: diverged, {reason}"
    if reason := record.get("failed"):
        return f"{run}: FAILED, {reason}"
    validation, test = score(record, "validation", "loss"), score(record, "test", "loss")
    accuracy = score(record, "test", "accuracy")
    return f"{run}: validation {validation:.4f}, test {test:.4f} ({accuracy:.1%}), {record['total_s']:.0f} s"


class Progress:
    """Runs done and about to do."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.bar: Bar | None = None
        self.handle: TaskID | None = None
        self.done = 0

    def start(self, left: int) -> None:
        """`left` is an estimate: tuning decides on the way what follows."""
        self.say(f"about {left} runs to do")
        if self.console.is_terminal:
            columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self.bar = Bar(*columns, TextColumn("left:"), TimeRemainingColumn(), console=self.console, transient=True)
            self.handle = self.bar.add_task("runs", total=left)
            self.bar.start()

    def finished(self, record: Record, left: int) -> None:
        self.done += 1
        total = self.done + left
        prefix = "" if self.bar else f"[{self.done}/{total}] "
        self.say(prefix + line(record))
        if self.bar and self.handle is not None:
            self.bar.update(self.handle, completed=self.done, total=total)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        if self.bar:
            self.bar.stop()
