"""Of every test: no deadline for an example of Hypothesis, and a small heap.

How long an example takes says how busy the machine is. A new optimizer looks through the heap for models that others
train too (:mod:`arturo_core.reporting.several`): among a million objects of imported frameworks and for the sake of
optimizers of earlier tests, that took longer than the tests.
"""

from __future__ import annotations

import gc

import pytest
from hypothesis import settings

from arturo_core.reporting import several

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_collection_finish() -> None:
    """What has been imported by now stays, and is looked at no more."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _optimizers_of_earlier_tests_are_forgotten():
    yield
    several._stepped.clear()
