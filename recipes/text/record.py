"""metrics.json: everything about a comparison, written whole after each finished run."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.folders import write
from recipes.text.errors import InputError, reason

FORMAT = 1
PACKAGES = ("arturo-optim", "torch", "transformers", "accelerate", "datasets", "scikit-learn")


class Record:
    """The finished runs of one output folder, on disk at all times.

    Args:
        folder: Where metrics.json lives; made, if missing, when the first run is added.
        settings: What determines a run besides its optimizer and seed.
        data: A description of the data, the majority baseline included.
        resume: Keep the runs of an earlier metrics.json, which must have the same settings and data.
            Otherwise an earlier file moves to metrics.previous.json when the first run is added.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], data: dict[str, Any], resume: bool = False):
        self.path = folder / "metrics.json"
        self.content: dict[str, Any] = {"format": FORMAT, "settings": settings, "data": data, "runs": []}
        self.content = plain(self.content)
        if resume and os.path.lexists(self.path):
            self.content["runs"] = self.matching_runs()
        self.replaces_earlier = os.path.exists(self.path) and not resume

    @property
    def runs(self) -> list[dict[str, Any]]:
        runs: list[dict[str, Any]] = self.content["runs"]
        return runs

    def has(self, optimizer: str, seed: int) -> bool:
        return any(run["optimizer"] == optimizer and run["seed"] == seed for run in self.runs)

    def add(self, run: dict[str, Any]) -> None:
        """Append a finished run and write the file: a new one beside it, then put in its place."""
        self.runs.append(plain(run))
        if self.replaces_earlier:
            self.path.replace(self.path.with_name("metrics.previous.json"))
            self.replaces_earlier = False
        write(self.path, json.dumps(self.content, indent=1, allow_nan=False) + "\n")

    def matching_runs(self) -> list[dict[str, Any]]:
        """The runs in the existing file; InputError, naming the differences, if it has other settings."""
        earlier = read_json(self.path, "move it away or omit --resume")
        parts = [earlier.get(part) for part in ("settings", "data")]
        runs: Any = earlier.get("runs")
        if not all(isinstance(part, dict) for part in parts) or not is_list_of_runs(runs):
            raise InputError(f"{self.path} is no record of finished runs; move it away or omit --resume")
        differing = [
            f"{key} was {earlier.get(part, {}).get(key)!r}, now {value!r}"
            for part in ("settings", "data")
            for key, value in self.content[part].items()
            if earlier.get(part, {}).get(key) != value
        ]
        if differing or earlier.get("format") != FORMAT:
            told = "; ".join(differing) or f"its format is {earlier.get('format')}, not {FORMAT}"
            raise InputError(f"{self.path} cannot be resumed: {told}. Choose another --output")
        return [*runs]


def is_list_of_runs(value: Any) -> bool:
    """Whether every entry says whose run it is."""
    return isinstance(value, list) and all(isinstance(run, dict) and {"optimizer", "seed"} <= set(run) for run in value)


def read_json(path: Path, fix: str) -> dict[str, Any]:
    """An object from a JSON file; an InputError that ends in the fix if there is none."""
    try:
        if not os.path.isfile(path):
            raise InputError(f"{path} is no file; {fix}")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path} is not JSON ({reason(error)}); {fix}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a JSON object; {fix}")
    return found


def plain(value: Any) -> Any:
    """`value` in JSON's own types; numbers that JSON lacks (a diverged loss) become null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "item"):  # a number of NumPy's or torch's
        return plain(value.item())
    return str(value)


def environment(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Versions of Python and of packages, and hardware, for a run's entry."""
    import torch

    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "versions": versions,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
