"""Reusable temporaries: a fresh allocation of a chunk costs more page faults than the arithmetic it is for."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from arturo_core.contexts import lasting

# One set a thread: two optimizers stepping in two threads must not share temporaries.
_kept = threading.local()


def scratch(like: Tensor, count: int) -> tuple[Tensor, ...]:
    """``count`` uninitialised tensors shaped like a flat chunk, valid until the next call in this thread.

    On accelerators the caching allocator does this job already (and knows about streams), so they are fresh there; and
    under FakeTensorMode, whose tensors nothing must keep.
    """
    if like.device.type != "cpu" or type(like) is not Tensor:
        return tuple(torch.empty_like(like) for _ in range(count))
    pools: dict[torch.dtype, Tensor] = _kept.__dict__.setdefault("pools", {})
    pool = pools.get(like.dtype)
    if pool is None or pool.shape[0] < count or pool.shape[1] < like.numel():
        rows, columns = (0, 0) if pool is None else pool.shape
        with lasting():
            pool = torch.empty(max(rows, count), max(columns, like.numel()), dtype=like.dtype, device=like.device)
        pools[like.dtype] = pool
    return pool[:count, : like.numel()].unbind()
