"""Fixtures of tests that run other frameworks: no network, one thread, and nothing left behind for the next test.

A ``conftest.py`` imports all of it: the variables are read when transformers is imported, and by started processes.
"""

from __future__ import annotations

import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def environment_is_restored():
    """Frameworks pass settings on through the environment; a bf16 run would make every later one bf16."""
    environment = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(environment)
