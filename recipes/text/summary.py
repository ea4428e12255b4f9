"""Runs of several seeds as means and standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Run = dict[str, Any]


def by_optimizer(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each optimizer, optimizers in order of first appearance."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run["optimizer"], []).append(run)
    return groups


def mean_and_error(values: Sequence[float | None]) -> tuple[float, float]:
    """Mean and standard error of the mean; null, from a diverged run, makes both NaN, one value the error."""
    numbers = np.array([math.nan if value is None else value for value in values], dtype=float)
    error = numbers.std(ddof=1) / math.sqrt(len(numbers)) if len(numbers) > 1 else math.nan
    return float(numbers.mean()), float(error)


def curve(runs: Sequence[Run], key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps at which every run logged `key`, and there its mean and standard error over the runs."""
    logged = [{entry["step"]: entry[key] for entry in run["history"] if key in entry} for run in runs]
    steps = sorted(set.intersection(*(set(values) for values in logged))) if logged else []
    pairs = [mean_and_error([values[step] for values in logged]) for step in steps]
    means, errors = np.array(pairs, dtype=float).reshape(-1, 2).T
    return np.array(steps, dtype=float), means, errors
