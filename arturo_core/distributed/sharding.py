"""What of a parameter is on this rank, and which ranks hold the rest.

DTensors (FSDP2, tensor and expert parallelism, and their products) say both themselves: along each dimension of their
mesh they are sharded or replicated, and only ranks along the sharded ones hold different elements. FSDP1's shards say
neither (:mod:`arturo_core.distributed.fsdp1`), nor do flat vectors (:mod:`arturo_core.distributed.flat`). Plain tensors
are whole, and the same on every rank, unless there is a process group.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from arturo_core.distributed import flat, fsdp1

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

#: Rows and columns of a whole matrix.
Shape = tuple[int, int]


class Mesh(NamedTuple):
    """A mesh, and its dimensions along which ranks hold different elements."""

    mesh: DeviceMesh
    dims: tuple[int, ...]


class Elsewhere(Enum):
    """Where the rest of a parameter that is on no mesh may be."""

    NOT_SAID = "on the ranks of the process group, if there is one"
    NOWHERE = "every rank is known to hold all of it"


Layout = Mesh | Elsewhere

#: What is no DTensor for sure.
_PLAIN = (Tensor, torch.nn.Parameter)


def real_view(tensor: Tensor) -> Tensor:
    """The tensor itself, or a complex tensor as pairs of real numbers (shape ``(..., 2)``, same memory)."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def takes_part(param: Tensor) -> bool:
    """Whether a parameter is trained, or has a gradient all the same."""
    return param.requires_grad or param.grad is not None


def is_plain(param: Any) -> bool:
    """Whether a parameter is a tensor like any other on one process: the common case, to be told quickly."""
    return type(param) in _PLAIN and not fsdp1.is_shard(param) and not flat.is_declared(param)


def layout(param: Any) -> Layout:
    """Which ranks hold other elements of a parameter."""
    if is_plain(param):
        return Elsewhere.NOT_SAID
    if is_dtensor(param):
        mesh = param.device_mesh
        dims = [dim for dim, placement in enumerate(param.placements) if not placement.is_replicate()]
        return Mesh(mesh, tuple(dim for dim in dims if mesh.size(dim) > 1))
    if fsdp1.is_shard(param) and fsdp1.is_whole(param):
        return Elsewhere.NOWHERE
    return Elsewhere.NOT_SAID


def process_groups(given: Any) -> list[ProcessGroup]:
    """The groups of ranks that an optimizer was told of: one, those of every dimension of a mesh, or none."""
    if given is None:
        return []
    if isinstance(given, torch.distributed.ProcessGroup):
        return [given]
    return [given.get_group(dim) for dim in range(given.ndim)]


def is_dtensor(tensor: Any) -> bool:
    """Whether a tensor is a DTensor; asked without importing what a single process does not need."""
    return type(tensor) not in _PLAIN and hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


def shard(tensor: Any) -> Tensor:
    """The tensor of this rank's elements; shares their memory."""
    here = tensor.to_local() if is_dtensor(tensor) else tensor
    if hasattr(here, "wait"):  # a collective of DTensors returns before it is done
        here = here.wait()
    detached: Tensor = here.detach()
    return detached


def shard_like(param: Any, here: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """A tensor of this rank's elements as part of one that is laid out like a parameter, of its shape or another."""
    if not is_dtensor(param):
        return here
    from torch.distributed.tensor import DTensor

    whole = torch.empty(shape or (*param.shape, *here.shape[param.dim() :]), device="meta")
    return DTensor.from_local(
        here, param.device_mesh, param.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def shard_of(saved: Any, param: Any) -> Tensor:
    """This rank's elements of a saved tensor, whichever way that is laid out."""
    if is_dtensor(param):
        if is_dtensor(saved) and saved.device_mesh == param.device_mesh:
            return shard(saved.redistribute(placements=param.placements))
        from torch.distributed.tensor import distribute_tensor

        whole = (saved.full_tensor() if is_dtensor(saved) else saved).to(param.device)
        return shard(distribute_tensor(whole, param.device_mesh, param.placements, src_data_rank=None))
    return shard(saved.full_tensor() if is_dtensor(saved) else saved)


def fits(saved: Any, param: Any, here: Sequence[int]) -> bool:
    """Whether a saved tensor that is laid out as a parameter was this rank's, as far as its shape tells.

    Args:
        saved: the tensor.
        param: the parameter.
        here: shape of this rank's part of such a tensor.
    """
    if not (is_dtensor(saved) and is_dtensor(param)):
        return True
    alike = saved.device_mesh == param.device_mesh and saved.placements == param.placements
    return not alike or tuple(shard(saved).shape) == tuple(here)


def local(tensor: Any, param: Any) -> Tensor:
    """The elements on this rank of a tensor laid out like a parameter; shares their memory, real."""
    return real_view(fsdp1.without_padding(param, shard(tensor)))


def runs(tensor: Any, param: Any) -> list[Tensor]:
    """:func:`local` without the padding that may lie between what is in a flat vector; empty if there is only that."""
    return flat.without_padding(param, local(tensor, param))


def parts(param: Any, statistics: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """What a step works on of a parameter: weights, gradient and statistics on this rank, real, sharing their memory.

    Empty where the parameter has no gradient; several tuples where padding lies between what is in a flat vector.

    Args:
        param: with its gradient.
        statistics: tensors laid out like the parameter.
    """
    if param.grad is not None and type(param.grad) in _PLAIN and is_plain(param):
        return [(real_view(param.detach()), real_view(param.grad.detach()), *statistics)]
    grad = _gradient(param)
    if grad is None:
        return []
    return list(zip(*(runs(tensor, param) for tensor in (param, grad, *statistics)), strict=True))


def _gradient(param: Any) -> Tensor | None:
    """The gradient, laid out as the parameter is, or None.

    A gradient that is still a sum over ranks (``Partial``, as of norms under sequence parallelism) is summed here: one
    collective, which all ranks of the mesh reach in the order of the parameters.

    Raises:
        RuntimeError: only one of parameter and gradient is a DTensor.
    """
    grad = param.grad
    if grad is None:
        # FSDP1 gives no gradient where a rank holds no elements.
        nothing = fsdp1.is_shard(param) and not param.numel() and fsdp1.took_part(param)
        return torch.empty_like(param) if nothing else None
    if is_dtensor(param) != is_dtensor(grad):
        raise RuntimeError(
            "Arturo: a parameter and its gradient differ in layout: one is a DTensor, the other a plain tensor. Assign "
            "distribute_tensor(grad, param.device_mesh, param.placements)."
        )
    if is_dtensor(grad) and grad.placements != param.placements:
        grad = grad.redistribute(param.device_mesh, param.placements)
    whole: Tensor = grad
    return whole


def matrices(param: Any) -> list[tuple[Tensor, Shape]]:
    """The matrices of a parameter: their elements on this rank, real, and rows and columns of the whole.

    Rows are the first dimension, all others are columns; vectors and scalars are left out.
    """
    if is_plain(param) and param.dim() < 2:
        return []
    if flat.is_declared(param):
        parts = flat.matrices(param)
    else:
        parts = fsdp1.matrices(param) if fsdp1.is_shard(param) else [(param, param.shape)]
    return [
        (local(part, param) if part is param else real_view(part.detach()), (shape[0], shape.numel() // shape[0]))
        for part, shape in parts
        if len(shape) > 1 and 0 not in shape
    ]
