"""Lets ``import torchvision`` succeed beside a torch that its binary was not built for; importing this does it.

PyPI's torchvision is built against CUDA. Beside another build of torch its binary does not load. Two operators that it
describes on import are then missing, and the import fails, and with it timm's, fastai's and parts of transformers.
They are declared here, without an implementation: no test uses an operator of torchvision.
"""

from __future__ import annotations

import torch

try:
    import torchvision  # noqa: F401
except ImportError:
    pass  # not installed
except RuntimeError:
    LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
