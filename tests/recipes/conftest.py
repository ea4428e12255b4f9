"""Fixtures of all recipes: the environment as before (a recipe sets variables for its process), and small data."""

from __future__ import annotations

import pytest
from quality_fashion import SMALL, write_fashion

from recipes.benchmarks.quality.tasks import fashion
from recipes.image import fashion_mnist as files


@pytest.fixture(autouse=True)
def environment_as_before(monkeypatch):
    for variable in ("HF_HUB_OFFLINE",):
        monkeypatch.setenv(variable, "")  # which notes what to restore, absence included
        monkeypatch.delenv(variable)


@pytest.fixture
def small_fashion(monkeypatch, tmp_path):
    """Random images in Fashion-MNIST's format, a few of them."""
    write_fashion(tmp_path)
    monkeypatch.setenv(files.VARIABLE, str(tmp_path))
    monkeypatch.setattr(fashion, "TRAIN", 280)
    monkeypatch.setattr(fashion, "VALIDATION", SMALL)
    monkeypatch.setattr(fashion, "TEST", 50)
    return tmp_path
