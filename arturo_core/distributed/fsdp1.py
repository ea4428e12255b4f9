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

#: FSDP1's handle of the flat vector that a shard is part of, and the shard's place among its parameters (None: all of
#: them). The handle holds its shards: a strong reference to it would keep both for ever.
_handle_of: WeakIdKeyDictionary = WeakIdKeyDictionary()


def is_shard(param: Any) -> bool:
    """Whether a parameter is one of FSDP1's."""
    return bool(getattr(param, "_fsdp_flattened", False))


def is_known(param: Any) -> bool:
    """Whether FSDP1's handle of a shard could be found."""
    return _find(param) is not None


def is_whole(param: Any) -> bool:
    """Whether every rank holds all of FSDP1's parameter (``NO_SHARD``, and a group of one rank)."""
    found = _find(param)
    return found is not None and not found[0].uses_sharded_strategy


def process_group(param: Any) -> Any:
    """The ranks that a shard's flat vector is divided among; under hybrid strategies those that share one replica."""
    handle, _ = _found(param)
    return handle.process_group


def is_part_of_a_shard(param: Any) -> bool:
    """Whether FSDP1 has flattened this rank's parts of parameters that were split before, as by tensor parallelism."""
    handle, _ = _found(param)
    return any(extension is not None for extension in handle.flat_param._param_extensions)


def took_part(param: Any) -> bool:
    """Whether the flat vector of a shard has a gradient, of any of its parameters: then all of them have one."""
    handle, _ = _found(param)
    return any(member.grad is not None for member in handle.flat_param._params or ())


def without_padding(param: Any, tensor: Tensor) -> Tensor:
    """What of a tensor that is shaped like a shard belongs to parameters: the last rank's piece may be filled up."""
    padding = getattr(param, "_shard_numel_padded", 0) if _is_flat(param) else 0
    return tensor[: tensor.numel() - padding] if padding else tensor


def offset(param: Any) -> int:
    """Index of a shard's first element in its parameter, or of this rank's piece in the flat vector."""
    handle, index = _found(param)
    if index is None:
        return 0 if is_whole(param) else int(handle.process_group.rank() * param.numel())
    return int(handle.flat_param._shard_param_infos[index].intra_param_start_idx or 0)


def matrices(param: Any) -> list[tuple[Tensor, torch.Size]]:
    """The parameters of a shard: their elements on this rank, and the shapes they were cut from."""
    handle, index = _found(param)
    flat = handle.flat_param
    if index is not None:
        return [(param, flat._shapes[index])]
    return [
        (param[info.offset_in_shard : info.offset_in_shard + info.numel_in_shard], shape)
        for info, shape in zip(flat._shard_param_infos, flat._shapes, strict=True)
        if info.in_shard
    ]


def _is_flat(param: Any) -> bool:
    return bool(getattr(param, "_is_flat_param", False))


def _found(param: Any) -> tuple[Any, int | None]:
    found = _find(param)
    if found is None:  # it was there when the optimizer was built
        raise RuntimeError("Arturo: the FullyShardedDataParallel module of a parameter is gone. Keep the model.")
    return found


def _find(param: Any) -> tuple[Any, int | None] | None:
    """FSDP1's handle of a shard, and which of its parameters the shard is (None: all of them), if there is one."""
    if param not in _handle_of:
        # A parameter does not know its handle; only FSDP1's modules do, and an optimizer does not see them. The
        # garbage collector does: one look through its objects when the optimizer is built.
        from torch.distributed.fsdp._flat_param import FlatParamHandle

        for handle in [one for one in gc.get_objects() if type(one) is FlatParamHandle]:
            reference = weakref.ref(handle)
            _handle_of[handle.flat_param] = reference, None
            for index, member in enumerate(handle.flat_param._params or ()):
                _handle_of[member] = reference, index
    reference, index = _handle_of.get(param, (lambda: None, None))
    handle = reference()
    return None if handle is None else (handle, index)
