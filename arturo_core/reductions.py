"""Sums over all parameters: of every chunk, on every device, on every rank, and each element once.

Sums are taken in steps: over the chunks of a layout (:mod:`arturo_core.sharding`) on this rank; over the ranks that
hold other elements of that layout, one small all-reduce for each sharded dimension of a mesh; over the layouts; and,
where there is a process group, over its ranks. Replicas are never summed, so replicated (DDP) parameters cost no
collective. What is reduced and in which order follows from the parameters and options alone: every rank takes part,
also one that holds no elements or has no gradients.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from arturo_core import fsdp1
from arturo_core.sharding import Elsewhere, Layout, Mesh, is_plain, layout
from arturo_core.trust_region import wide_dtype

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: Gradients above this are treated as overflow: their squares would leave float32.
LARGEST_GRADIENT = 1e18


@dataclass(frozen=True)
class Reduction:
    """How sums over all parameters are taken.

    Attributes:
        layouts: of the parameters, in the order in which the parameters show them.
        number: of a parameter's layout, by the parameter's id.
        groups: the process group over which whatever no mesh covers is split; of a mesh one for each dimension.
    """

    layouts: Mapping[Layout, int]
    number: Mapping[int, int]
    groups: Sequence[ProcessGroup]

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
        return cls(found or {Elsewhere.NOT_SAID: 0}, number, groups)

    @property
    def distributed(self) -> bool:
        """Whether other ranks take part."""
        return bool(self.groups) or any(isinstance(one, Mesh) and one.dims for one in self.layouts)

    def sum(self, parts: Tensor) -> Tensor:
        """Sum over the layouts (the first dimension) and over the ranks that hold other elements."""
        held = self._over_meshes(parts, "SUM")
        if not self.groups:
            return torch.stack(held).sum(dim=0)
        here = [part for one, part in zip(self.layouts, held, strict=True) if one is Elsewhere.NOWHERE]
        rest = [part for one, part in zip(self.layouts, held, strict=True) if one is not Elsewhere.NOWHERE]
        total = torch.stack([torch.zeros_like(parts[0]), *rest]).sum(dim=0)
        return torch.stack([self._over_groups(total, "SUM"), *here]).sum(dim=0)

    def least(self, values: Sequence[Sequence[Tensor]], device: torch.device) -> Tensor:
        """Minimum of the scalars of every layout, 0-dimensional, wide; +inf without any."""
        infinite = torch.full((), torch.inf, dtype=wide_dtype(device), device=device)
        parts = [torch.stack([infinite, *(value.to(infinite) for value in part)]).amin() for part in values]
        return self._over_groups(torch.stack(self._over_meshes(torch.stack(parts), "MIN")).amin(), "MIN")

    def _over_groups(self, total: Tensor, operation: str) -> Tensor:
        for group in self.groups:
            total = _all_reduce(total, group, operation)
        return total

    def _over_meshes(self, parts: Tensor, operation: str) -> list[Tensor]:
        held = list(parts.unbind())
        # Layouts that share ranks, as those of FSDP2 × TP do, go together.
        sharing: dict[int, tuple[ProcessGroup, list[int]]] = {}
        for one, index in self.layouts.items():
            if isinstance(one, Mesh):
                for group in (one.mesh.get_group(dim) for dim in one.dims):
                    sharing.setdefault(id(group), (group, []))[1].append(index)
        for group, indices in sharing.values():
            reduced = _all_reduce(torch.stack([held[index] for index in indices]), group, operation)
            for index, part in zip(indices, reduced.unbind(), strict=True):
                held[index] = part
        return held


def totals(rows: Mapping[Hashable, Sequence[Sequence[Tensor]]], columns: int, device: torch.device) -> Tensor:
    """Column sums of per-chunk scalars for every key, shape (keys, columns), wide, in the order of the chunks."""
    return torch.stack([_total(row, columns, device) for row in rows.values()])


def _total(rows: Sequence[Sequence[Tensor]], columns: int, device: torch.device) -> Tensor:
    if not rows:
        return torch.zeros(columns, dtype=wide_dtype(device), device=device)
    return torch.stack([torch.stack(tuple(row)).to(device, wide_dtype(device)) for row in rows]).sum(dim=0)


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
