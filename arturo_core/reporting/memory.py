"""Whether an optimizer's state is large beside the memory that is left."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from arturo_core.contexts import is_fake
from arturo_core.distributed.sharding import shard

if TYPE_CHECKING:
    from arturo_core.optimizer import Arturo


def free(device: torch.device) -> int | None:
    """Bytes that are free on a device, or None where that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on every system
        return None


def share_of_free(optimizer: Arturo) -> float:
    """Bytes of state over bytes that are free, of the device where that is most; 0 where nothing is known."""
    held: dict[torch.device, int] = {}
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor) and not is_fake(value):
                here = shard(value)
                held[here.device] = held.get(here.device, 0) + here.numel() * here.element_size()
    shares = [0.0]
    for device, size in held.items():
        left = free(device)
        shares += [] if left is None else [size / max(left, 1)]
    return max(shares)
