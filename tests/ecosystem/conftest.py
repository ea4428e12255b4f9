"""What tests of other packages need: no network, one thread, nothing left behind, and a torchvision that imports."""

from __future__ import annotations

import os

import pytest
import torch

# Read when transformers is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TORCHVISION_WARN_WHEN_EXTENSION_LOADING_FAILS"] = ""
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _declare_torchvision_operators() -> None:
    """Declares the two operators that torchvision describes on import even where its binary cannot be loaded.

    PyPI's torchvision is built against CUDA. Beside another build of torch its binary does not load, and then
    `import torchvision` fails, and with it timm's and fastai's. No test here uses an operator of torchvision.
    """
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


try:
    import torchvision  # noqa: F401
except ImportError:
    pass  # not installed
except RuntimeError:
    _LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
    _declare_torchvision_operators()


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
