"""Flat shards of ``FullyShardedDataParallel`` (FSDP1): what they were cut from.

FSDP1 lines up the parameters of a module in one flat vector and gives every rank a piece of it. The optimizer sees
either that piece (``use_orig_params=False``) or, for every parameter, the part of it inside the piece, often empty. A
shard is a vector without a trace of the matrix it comes from, but the trust radius depends on the weights' shapes, so
they are read from the flat vector's own notes.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

#: The flat vector that a shard is part of, and the shard's place among its parameters. The vector holds its shards: a
#: strong reference to it would keep both for ever.
_flat_of: WeakIdKeyDictionary = WeakIdKeyDictionary()


def is_shard(param: Any) -> bool:
    """Whether a parameter is one of FSDP1's."""
    return bool(getattr(param, "_fsdp_flattened", False))


def is_known(param: Any) -> bool:
    """Whether the flat vector of a shard could be found."""
    return _find(param) is not None


def is_cut_into(param: Any, number: int) -> bool:
    """Whether the flat vector of a shard is divided among so many ranks (as far as its sizes tell)."""
    found = _find(param)
    if found is None:
        return False
    whole, piece = found[0]._unpadded_unsharded_size.numel(), found[0]._sharded_size.numel()
    return bool(piece == -(-whole // number))


def is_whole(param: Any) -> bool:
    """Whether every rank holds all of FSDP1's parameter (``NO_SHARD``, and a group of one rank)."""
    found = _find(param)
    return found is not None and bool(found[0]._sharded_size == found[0]._unpadded_unsharded_size)


def took_part(param: Any) -> bool:
    """Whether the flat vector of a shard has a gradient, of any of its parameters: then all of them have one."""
    found = _find(param)
    return found is not None and any(member.grad is not None for member in found[0]._params or ())


def without_padding(param: Any, tensor: Tensor) -> Tensor:
    """What of a tensor that is shaped like a shard belongs to parameters: the last rank's piece may be filled up."""
    padding = getattr(param, "_shard_numel_padded", 0) if _is_flat(param) else 0
    return tensor[: tensor.numel() - padding] if padding else tensor


def matrices(param: Any) -> list[tuple[Tensor, torch.Size]]:
    """The parameters of a shard: their elements on this rank, and the shapes they were cut from."""
    found = _find(param)
    if found is None:  # it was there when the optimizer was built
        raise RuntimeError("Arturo: the FullyShardedDataParallel module of a parameter is gone. Keep the model.")
    flat, index = found
    if index is not None:
        return [(param, flat._shapes[index])]
    return [
        (param[info.offset_in_shard : info.offset_in_shard + info.numel_in_shard], shape)
        for info, shape in zip(flat._shard_param_infos, flat._shapes, strict=True)
        if info.in_shard
    ]


def _is_flat(param: Any) -> bool:
    return bool(getattr(param, "_is_flat_param", False))


def _find(param: Any) -> tuple[Any, int | None] | None:
    """The flat vector of a shard, and which of its parameters the shard is (None: all of them), if there is one."""
    if _is_flat(param):
        return param, None
    if param not in _flat_of:
        # A parameter that kept its identity does not know its flat vector; only FSDP1's modules do, and an optimizer
        # does not see them. The garbage collector does: one look through its objects at the first step.
        flats: list[Any] = [one for one in gc.get_objects() if type(one) is torch.nn.Parameter and _is_flat(one)]
        for flat in flats:
            for index, member in enumerate(flat._params or ()):
                _flat_of[member] = weakref.ref(flat), index
    reference, index = _flat_of.get(param, (lambda: None, 0))
    whole = reference()
    return None if whole is None else (whole, index)
