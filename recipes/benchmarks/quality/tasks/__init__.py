"""The tasks by name, in the order in which tables show them; a task reads its data when a problem is made."""

from __future__ import annotations

from typing import Any

from recipes.benchmarks.quality.tasks.base import Problem, Scores, Task

TASKS: dict[str, Task]

__all__ = ["TASKS", "Problem", "Scores", "Task"]


def __getattr__(name: str) -> Any:
    """Collects TASKS when first asked: `python -m` runs a task's module, which must not have been imported before."""
    if name != "TASKS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from recipes.benchmarks.quality.tasks import fashion, language, tabular, text

    modules = (text, language, fashion, tabular)
    globals()["TASKS"] = {task.name: task for module in modules for task in module.TASKS}
    return globals()["TASKS"]
