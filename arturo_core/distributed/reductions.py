"""Sums over all parameters: of every chunk, on every device, on every rank, and each element once.

Sums are taken in steps: over the chunks of a layout (:mod:`~arturo_core.distributed.sharding`) on this rank; over the
ranks that hold other elements of that layout, one small all-reduce for each sharded dimension of a mesh; over the
layouts; and, where there is a process group, over its ranks. Replicas are never summed, so replicated (DDP) parameters
cost no collective.

What a rank has to tell all others (:meth:`Reduction.sum_and_tell`) goes along, and on to the replicas of a mesh: one
further small all-reduce for each dimension along which nothing is sharded. What is reduced and in which order follows
from the parameters and options alone: every rank takes part, also one that holds no elements or has no gradients.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from arturo_core.distributed import fsdp1
from arturo_core.distributed.sharding import Elsewhere, Layout, Mesh, is_plain, layout
from arturo_core.numerics import wide_dtype

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

#: Gradients above this are treated as overflow: their squares would leave float32.
LARGEST_GRADIENT = 1e18


@dataclass(frozen=True)
class Reduction:
    """How sums over all parameters are taken.

    Attributes:
        layouts: of the parameters, in the order in which the parameters show them.
        number: of a parameter's layout, by the parameter's id.
        groups: the process group over which whatever no mesh covers is split; of a mesh one for each dimension.
        meshes: the groups of the dimensions of all meshes, and which layouts are sharded along each; none along one
            that holds replicas alone.
    """

    layouts: Mapping[Layout, int]
    number: Mapping[int, int]
    groups: Sequence[ProcessGroup]
    meshes: Sequence[tuple[ProcessGroup, Sequence[int]]] = ()

    @classmethod
    def over(cls, params: Iterable[Tensor], groups: Sequence[ProcessGroup]) -> Reduction:
        """For these parameters, whether or not they take part in a step."""
        found: dict[Layout, int] = {}
        known = list(params)
        layouts = [layout(param) for param in known]
        if groups and any(fsdp1.is_shard(param) for param in known):
            # The group is that of FSDP1's shards; what FSDP1 was told to ignore is not split.
            layouts = [Elsewhere.NOWHERE if is_plain(param) else one for param, one in zip(known, layouts, strict=True)]
        number = {id(param): found.setdefault(one, len(found)) for param, one in zip(known, layouts, strict=True)}
        return cls(found or {Elsewhere.NOT_SAID: 0}, number, groups, _meshes(found))

    @property
    def distributed(self) -> bool:
        """Whether other ranks take part, be it that they hold replicas alone."""
        return bool(self.groups or self.meshes)

    def sum(self, parts: Tensor) -> Tensor:
        """Sum over the layouts (the first dimension) and over the ranks that hold other elements."""
        return self.sum_and_tell(parts, parts.new_empty(0))[0]

    def sum_and_tell(self, parts: Tensor, notes: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`sum`, and what all ranks note, added up and the same on all of them; in the same all-reduces.

        Args:
            parts: as for :meth:`sum`.
            notes: of this rank, a vector. Where parameters are on several meshes a rank's notes may count several
                times: sums of notes tell whether there is any, and whether all are alike, but not how many.
        """
        held, notes = self._over_meshes(parts, "SUM", notes)
        if not self.groups:
            return torch.stack(held).sum(dim=0), notes
        here = [part for one, part in zip(self.layouts, held, strict=True) if one is Elsewhere.NOWHERE]
        rest = [part for one, part in zip(self.layouts, held, strict=True) if one is not Elsewhere.NOWHERE]
        total = torch.stack([torch.zeros_like(parts[0]), *rest]).sum(dim=0)
        everywhere = self._over_groups(torch.cat([total.flatten(), notes]), "SUM")
        summed, told = everywhere.split([total.numel(), notes.numel()])
        return torch.stack([summed.view_as(total), *here]).sum(dim=0), told

    def least(self, values: Sequence[Sequence[Tensor]], device: torch.device) -> Tensor:
        """Minimum of the scalars of every layout, 0-dimensional, wide; +inf without any."""
        infinite = torch.full((), torch.inf, dtype=wide_dtype(device), device=device)
        parts = [torch.stack([infinite, *(value.to(infinite) for value in part)]).amin() for part in values]
        held, _ = self._over_meshes(torch.stack(parts), "MIN", infinite.new_empty(0))
        return self._over_groups(torch.stack(held).amin(), "MIN")

    def _over_groups(self, total: Tensor, operation: str) -> Tensor:
        for group in self.groups:
            total = _all_reduce(total, group, operation)
        return total

    def _over_meshes(self, parts: Tensor, operation: str, notes: Tensor) -> tuple[list[Tensor], Tensor]:
        held = list(parts.unbind())
        for group, indices in self.meshes:
            message = torch.cat([*(held[index].flatten() for index in indices), notes])
            if message.numel():
                reduced = _all_reduce(message, group, operation)
                *rows, notes = reduced.split([*(held[index].numel() for index in indices), notes.numel()])
                for index, row in zip(indices, rows, strict=True):
                    held[index] = row.view_as(held[index])
        return held, notes


def _meshes(layouts: Mapping[Layout, int]) -> list[tuple[ProcessGroup, list[int]]]:
    """The groups of the dimensions of all meshes, in the layouts' order, and the layouts that are sharded along each.

    Layouts that share ranks, as those of FSDP2 × TP do, go together. Replicas that meet in another mesh's group anyway
    need none of their own.
    """
    found: dict[int, tuple[ProcessGroup, list[int]]] = {}
    mesh_of: dict[int, DeviceMesh] = {}
    for one, index in layouts.items():
        if isinstance(one, Mesh):
            for dim in range(one.mesh.ndim):
                if one.mesh.size(dim) > 1:
                    group = one.mesh.get_group(dim)
                    mesh_of[id(group)] = one.mesh
                    _, sharded = found.setdefault(id(group), (group, []))
                    sharded += [index] if dim in one.dims else []
    if all(sharded for _, sharded in found.values()) or len(set(mesh_of.values())) < 2:
        return list(found.values())
    wide = [set(_ranks(group)) for group, sharded in found.values() if sharded]
    return [
        (group, sharded)
        for key, (group, sharded) in found.items()
        if sharded or not any(ranks.issuperset(mesh_of[key].mesh.flatten().tolist()) for ranks in wide)
    ]


def _ranks(group: ProcessGroup) -> list[int]:
    from torch.distributed import get_process_group_ranks

    return get_process_group_ranks(group)


def totals(
    rows: Mapping[Hashable, Sequence[Sequence[Tensor]]],
    columns: int,
    device: torch.device,
    factors: Mapping[Hashable, Tensor] | None = None,
) -> Tensor:
    """Column sums of per-chunk scalars for every key, shape (keys, columns), wide, in the order of the chunks.

    ``factors`` of a key, shape (chunks, columns), bring its rows to common units.
    """
    factors = factors or {}
    return torch.stack([_total(row, columns, device, factors.get(key)) for key, row in rows.items()])


def _total(rows: Sequence[Sequence[Tensor]], columns: int, device: torch.device, factors: Tensor | None) -> Tensor:
    if not rows:
        return torch.zeros(columns, dtype=wide_dtype(device), device=device)
    wide = torch.stack([torch.stack(tuple(row)).to(device, wide_dtype(device)) for row in rows])
    return (wide if factors is None else wide * factors).sum(dim=0)


def unusable(grads: Sequence[Tensor], device: torch.device) -> Tensor:
    """0 if every gradient is finite and below :data:`LARGEST_GRADIENT` everywhere, else 1; 0-dimensional, wide."""
    extremes = [torch.stack(torch.aminmax(grad)).to(device=device, dtype=wide_dtype(device)) for grad in grads]
    if not extremes:
        return torch.zeros((), dtype=wide_dtype(device), device=device)
    # A NaN survives amin, amax and abs, and fails the comparison.
    return 1.0 - (torch.stack(extremes).abs() < LARGEST_GRADIENT).all().to(wide_dtype(device))


def _all_reduce(value: Tensor, group: Any, operation: str) -> Tensor:
    """Over the ranks of a group, on a device that its backend knows (shards may be kept on the CPU)."""
    from torch import distributed

    known = [device.type for device in getattr(group, "_device_types", ())]
    there = value.contiguous() if not known or value.device.type in known else value.to(known[0])
    distributed.all_reduce(there, op=getattr(distributed.ReduceOp, operation), group=group)
    return there.to(value.device)
