"""Types of ``torch.distributed`` for annotations, which command lines resolve and not every build of torch has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
else:
    ProcessGroup = getattr(torch.distributed, "ProcessGroup", object)
    DeviceMesh = getattr(torch.distributed, "DeviceMesh", object)

__all__ = ["DeviceMesh", "ProcessGroup"]
