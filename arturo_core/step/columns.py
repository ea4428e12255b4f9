"""The scalars that every parameter's state keeps, for all parameters of a step at once: one column a scalar.

Parameters come in the order of a step's sources. Columns are read and written entry by entry, unless the entries lie
side by side already (:mod:`arturo_core.step.roster`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from arturo_core.algorithm.compact import defers
from arturo_core.contexts import brought
from arturo_core.options import Options
from arturo_core.storage.kinds import counted_in

if TYPE_CHECKING:
    from arturo_core.step.chunks import Source

#: Tensors, and the values that are to be written to them.
Writes = tuple[list[Tensor], list[Tensor]]


def joined(*writes: Writes) -> Writes:
    """Writes in one."""
    return [target for targets, _ in writes for target in targets], [value for _, values in writes for value in values]


class Columns(Protocol):
    """Scalars of a number of sources; columns are of shape (sources,)."""

    def read(self, name: str) -> Tensor:
        """A column, on the home device, wide."""

    def write(self, name: str, values: Tensor) -> Writes:
        """A column, yet to be written."""

    def of_groups(self, values: Mapping[int, Tensor]) -> Tensor:
        """What the group of every source has; ``values`` are 0-dimensional, by the group's index."""

    def numbers(self) -> Tensor:
        """Of the sources' parameters among all of the optimizer's, int64."""

    def places(self) -> Tensor:
        """Index of the sources' first elements in their parameters, int64; 0 where elements are not consecutive."""

    def deferred(self, options: Options) -> Tensor | None:
        """1 where the re-centring of a step waits for the next, else 0; None where it does everywhere."""


class Scattered(NamedTuple):
    """Columns whose entries are tensors of their own."""

    sources: Sequence[Source]
    like: Tensor  # wide, on the home device

    def read(self, name: str) -> Tensor:
        return torch.stack([source.scalars[name].to(self.like.device) for source in self.sources]).to(self.like.dtype)

    def write(self, name: str, values: Tensor) -> Writes:
        # A parameter with padding inside has several sources, and one scalar.
        found = {id(source.scalars[name]): index for index, source in enumerate(self.sources)}
        parts = values.unbind()
        targets = [self.sources[index].scalars[name] for index in found.values()]
        return targets, [parts[index] for index in found.values()]

    def of_groups(self, values: Mapping[int, Tensor]) -> Tensor:
        return torch.stack([values[source.group] for source in self.sources])

    def numbers(self) -> Tensor:
        return brought([source.number for source in self.sources], self.like.device, torch.int64)

    def places(self) -> Tensor:
        found = [0 if isinstance(source.place, Tensor) else source.place for source in self.sources]
        return brought(found, self.like.device, torch.int64)

    def deferred(self, options: Options) -> Tensor | None:
        waits = [defers(source.theta.dtype, counted_in(source.state[0].dtype), options) for source in self.sources]
        now, later = torch.zeros_like(self.like), torch.ones_like(self.like)
        return None if all(waits) else torch.stack([later if wait else now for wait in waits])


class Flat(NamedTuple):
    """Columns that are tensors; the entries in the parameters' states are views of them."""

    columns: Mapping[str, Tensor]
    groups: Tensor  # row of every source's group among the groups of a step
    order: Tensor  # what :meth:`numbers` returns
    waits: Tensor | None  # what :meth:`deferred` returns
    like: Tensor

    def read(self, name: str) -> Tensor:
        return self.columns[name].to(self.like.dtype, copy=True)

    def write(self, name: str, values: Tensor) -> Writes:
        return [self.columns[name]], [values]

    def of_groups(self, values: Mapping[int, Tensor]) -> Tensor:
        return torch.stack(list(values.values()))[self.groups]

    def numbers(self) -> Tensor:
        return self.order

    def places(self) -> Tensor:
        return torch.zeros_like(self.order)  # plain tensors are whole

    def deferred(self, options: Options) -> Tensor | None:
        return self.waits
