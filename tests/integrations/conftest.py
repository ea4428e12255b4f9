"""What every integration test needs: no network, few threads, and nothing left behind for the next test."""

from __future__ import annotations

import os

import pytest
import torch

# Read when transformers is imported, and by the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _environment_is_restored():
    """Frameworks pass settings on through the environment; a bf16 run would make every later one bf16."""
    environment = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(environment)
