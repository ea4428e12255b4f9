"""The recipe sets environment variables for its process; no test leaves them behind."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def environment_as_before(monkeypatch):
    for variable in ("HF_HUB_OFFLINE",):
        monkeypatch.setenv(variable, "")  # which notes what to restore, absence included
        monkeypatch.delenv(variable)
