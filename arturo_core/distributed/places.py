"""Where the elements on this rank are in the whole parameter: what is rounded at random depends on that alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from arturo_core.distributed import flat, fsdp1
from arturo_core.distributed.sharding import is_dtensor, is_plain, real_view, shard

#: The first of consecutive elements, or the index of every one of them.
Place = int | Tensor


def places(param: Any) -> list[Place]:
    """Index of the elements of every part that :func:`arturo_core.distributed.sharding.parts` gives of a parameter.

    Of a flat vector (FSDP1 with ``use_orig_params=False``, DeepSpeed) it is that in the vector of all ranks.
    """
    if is_plain(param):
        return [0]
    if is_dtensor(param):
        return [_of_dtensor(param)]
    if flat.is_declared(param):
        return [start for start, _ in flat.spans(param)]
    return [fsdp1.offset(param) if fsdp1.is_shard(param) else 0]


def _of_dtensor(param: Any) -> Place:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(param.shape, param.device_mesh, param.placements)
    pair = 2 if param.is_complex() else 1
    strides = [pair] * param.dim()
    for dim in reversed(range(param.dim() - 1)):
        strides[dim] = strides[dim + 1] * param.shape[dim + 1]
    first = sum(begin * stride for begin, stride in zip(offset, strides, strict=True))
    if tuple(shape[1:]) == tuple(param.shape[1:]) or not param.dim():
        return int(first)
    here = real_view(shard(param))
    index = torch.full((), first, dtype=torch.int64, device=here.device)
    for size, stride in zip(shape, strides, strict=True):
        index = index.unsqueeze(-1) + stride * torch.arange(size, device=here.device)
    if pair == 2:
        index = index.unsqueeze(-1) + torch.arange(2, device=here.device)
    return index.reshape(here.shape)
