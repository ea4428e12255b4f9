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

from recipes.text.errors import InputError

FORMAT = 1
PACKAGES = ("arturo-optim", "torch", "transformers", "accelerate", "datasets", "scikit-learn")


class Record:
    """The finished runs of one output folder, on disk at all times.

    Args:
        folder: Where metrics.json lives; made if missing.
        settings: What determines a run besides its optimizer and seed.
        data: A description of the data, the majority baseline included.
        resume: Keep the runs of an earlier metrics.json, which must have the same settings and data.
            Otherwise an earlier file moves to metrics.previous.json when the first run is added.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], data: dict[str, Any], resume: bool = False):
        self.path = folder / "metrics.json"
        self.content: dict[str, Any] = {"format": FORMAT, "settings": settings, "data": data, "runs": []}
        self.content = plain(self.content)
        if resume and self.path.exists():
            self.content["runs"] = self.matching_runs()
        self.replaces_earlier = self.path.exists() and not resume
        folder.mkdir(parents=True, exist_ok=True)

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
        fresh = self.path.with_name("metrics.json.new")
        fresh.write_text(json.dumps(self.content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        fresh.replace(self.path)

    def matching_runs(self) -> list[dict[str, Any]]:
        """The runs in the existing file; InputError, naming the differences, if it has other settings."""
        try:
            earlier = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{self.path} is not JSON ({error}); move it away or omit --resume") from error
        differing = [
            f"{key} was {earlier.get(part, {}).get(key)!r}, now {value!r}"
            for part in ("settings", "data")
            for key, value in self.content[part].items()
            if earlier.get(part, {}).get(key) != value
        ]
        if differing or earlier.get("format") != FORMAT:
            told = "; ".join(differing) or f"its format is {earlier.get('format')}, not {FORMAT}"
            raise InputError(f"{self.path} cannot be resumed: {told}. Choose another --output")
        return list(earlier["runs"])


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
