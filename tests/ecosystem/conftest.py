"""What tests of other packages need: no network, one thread, nothing left behind, a torchvision that imports."""

from __future__ import annotations

import os

import pytest
import torch
import torchvision_operators  # noqa: F401  (before any package imports torchvision)

# Read when transformers is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
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
    environment = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(environment)
