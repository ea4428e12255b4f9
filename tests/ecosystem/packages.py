"""Packages of others: skipped where they are not installed, demanded where the whole ecosystem is."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest


def package(name: str) -> Any:
    """Imports a package, or skips the test file; under ``make test-ecosystem`` a missing one is a failure."""
    if os.environ.get("ARTURO_ECOSYSTEM"):
        return importlib.import_module(name)
    return pytest.importorskip(name)
