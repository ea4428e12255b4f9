"""The parameters of the last step, and how they were: while nothing about them changes, they are not looked at anew.

Checking parameters one by one costs more than a kernel's pass over small ones. A roster compares all of them with what
the last step found, attribute by attribute. Where anything differs the step goes the long way, which says what is
wrong if something is, and makes another roster. Nothing here keeps weights, gradients or statistics alive.

The scalars of the parameters' states become views of one tensor each, so that a step reads and writes them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from itertools import accumulate, chain, repeat
from operator import attrgetter, is_not, itemgetter
from typing import Any

import torch
from torch import Tensor

from arturo_core.contexts import brought, fake_mode_is_active, is_capturing, lasting
from arturo_core.distributed import flat
from arturo_core.distributed.reductions import Reduction
from arturo_core.numerics import wide_dtype
from arturo_core.options import Options
from arturo_core.state import table
from arturo_core.step import weight_scale
from arturo_core.step.chunks import Chunk, Source
from arturo_core.step.columns import Flat, Scattered
from arturo_core.storage.kinds import entries, kind_of

Groups = Sequence[Mapping[str, Any]]
Held = MutableMapping[str, Any]

_gradient, _trains, _version = attrgetter("grad"), attrgetter("requires_grad"), attrgetter("_version")
_dtype, _device = attrgetter("dtype"), attrgetter("device")


class Roster:
    """What a step found out about its parameters; every one of them is a plain tensor that a kernel works on.

    Args:
        groups: of the optimizer.
        state: of the optimizer.
        moving: indices of the groups that moved.
        chunks: of the step.
        reduction: of the step, over this process alone.
        home: where the step's scalars live.
        options: of the optimizer.

    Attributes:
        reduction: the same.
        home: the same.
        flat: the columns of the scalars.
    """

    def __init__(
        self,
        groups: Groups,
        state: Mapping[Tensor, Held],
        moving: Sequence[int],
        chunks: Sequence[Chunk],
        reduction: Reduction,
        home: torch.device,
        options: Options,
    ) -> None:
        sources = [source for chunk in chunks for source in chunk.sources]
        params = [param for group in groups for param in group["params"]]
        members = [source.param for source in sources if source.param is not None]
        held = [state[param] for param in members]
        scalars = list(sources[0].scalars)
        self.reduction, self.home, self._moving = reduction, home, list(moving)
        place = {id(param): index for index, param in enumerate(params)}
        order = [place[id(param)] for param in members]
        self._pick = None if order == list(range(len(params))) else order
        self._everyone, self._trains, self._states = list(map(id, params)), list(map(_trains, params)), len(state)
        self._takes_part = list(map(set(order).__contains__, range(len(params))))
        self._groups, self._numbers = [source.group for source in sources], [source.number for source in sources]
        rows_of = tuple(row.name for row in table(options) if not row.scalar)
        self._rows = [itemgetter(*(entry.name for entry in entries(rows_of, kind_of(one)))) for one in held]
        self._scalars = itemgetter(*scalars)
        ends = list(accumulate(len(chunk.sources) for chunk in chunks))
        self._chunks = list(zip([0, *ends], ends, [chunk.outline() for chunk in chunks], strict=False))
        with lasting():
            row = {group: index for index, group in enumerate(moving)}
            rows = brought([row[group] for group in self._groups], home, torch.int64)
            like = torch.zeros((), dtype=wide_dtype(home), device=home)
            apart = Scattered(sources, like)
            numbers, waits = apart.numbers(), apart.deferred(options)
            self.flat = Flat({name: _side_by_side(held, name) for name in scalars}, rows, numbers, waits, like)
            self._sized = [_sized(sources, group, home) for group in moving]
        self._marks = _marks(members, [source.grad for source in sources], self._looked_up(held))
        self._squares: tuple[list[int], Tensor] | None = None

    def call(self, groups: Groups, state: Mapping[Tensor, Held], moving: Sequence[int]) -> list[Source] | None:
        """The sources of this step, or None if anything is not as it was."""
        if list(moving) != self._moving or len(state) != self._states or is_extraordinary(self.home):
            return None
        params = [param for group in groups for param in group["params"]]
        if list(map(id, params)) != self._everyone or list(map(_trains, params)) != self._trains:
            return None
        grads = list(map(_gradient, params))
        if list(map(is_not, grads, repeat(None))) != self._takes_part:
            return None
        if self._pick is not None:
            params, grads = [params[index] for index in self._pick], [grads[index] for index in self._pick]
        held = list(map(state.get, params))
        try:
            looked_up = self._looked_up(held)
            if _marks(params, grads, looked_up) != self._marks:
                return None
        except (AttributeError, KeyError, RuntimeError, TypeError):  # an entry is missing, a gradient is sparse
            return None
        statistics, _ = looked_up
        return list(map(Source, params, grads, statistics, held, self._groups, repeat(0), params, self._numbers))

    def chunks(self, sources: Sequence[Source]) -> list[Chunk]:
        """The chunks of the sources that :meth:`call` has found."""
        return [outline.filled(list(sources[start:end])) for start, end, outline in self._chunks]

    def sizes(self, chunks: Sequence[Chunk], groups: int) -> Tensor:
        """What :func:`arturo_core.step.gathering.sizes` finds; weights that nobody has changed are not read."""
        sizes = self.flat.like.new_zeros(1, groups, 2)
        if not groups:
            return sizes
        versions = [_version(source.theta) for chunk in chunks for source in chunk.sources]
        if self._squares is None or self._squares[0] != versions:
            self._squares = versions, torch.cat([chunk.squares() for chunk in chunks])
        for group, (own, shapes) in zip(self._moving, self._sized, strict=True):
            if shapes:
                sizes[0, group] = weight_scale.known_sums(self._squares[1][own], shapes, self.home)
        return sizes

    def keep(self, squares: Sequence[tuple[Chunk, Tensor]]) -> None:
        """Σθ² as a step has left the weights of all chunks."""
        versions = [_version(source.theta) for chunk, _ in squares for source in chunk.sources]
        self._squares = versions, torch.cat([found for _, found in squares])

    def _looked_up(self, held: Sequence[Any]) -> tuple[list[tuple[Tensor, ...]], list[tuple[Tensor, ...]]]:
        """Statistics and scalars of the parameters' states."""
        return [row(one) for row, one in zip(self._rows, held, strict=True)], list(map(self._scalars, held))


def suits(
    groups: Groups,
    state: Mapping[Tensor, Held],
    chunks: Sequence[Chunk],
    reduction: Reduction,
    home: torch.device,
) -> bool:
    """Whether a roster can be made of a step: kernels took all of it, on one device, with a gradient for everyone."""
    if not chunks or reduction.distributed or is_extraordinary(home):
        return False
    if any(chunk.kernel is None for chunk in chunks):
        return False
    sources = [source for chunk in chunks for source in chunk.sources]
    if any(source.param is not None and source.param.is_complex() for source in sources):
        return False  # their parts are views of pairs of real numbers, made anew in every step
    known = {id(source.param) for source in sources if source.param is not None and source.theta.device == home}
    others = [param for group in groups for param in group["params"] if id(param) not in known]
    return len(known) == len(sources) and not any(_trains(param) or state.get(param) for param in others)


def is_extraordinary(home: torch.device) -> bool:
    """Whether a step is traced, rehearsed or captured, or somebody has declared what flat vectors are made of."""
    return torch.compiler.is_compiling() or fake_mode_is_active() or flat.is_any_declared() or is_capturing(home)


def _side_by_side(held: Sequence[Held], name: str) -> Tensor:
    """One tensor, of which the states' scalars are views from now on; the one that they are views of, if they are."""
    scalars: list[Tensor] = [one[name] for one in held]
    first, size = scalars[0], scalars[0].element_size()
    places = list(range(first.data_ptr(), first.data_ptr() + size * len(scalars), size))
    memory = first.untyped_storage()
    inside = first.storage_offset() * size + size * len(scalars) <= memory.nbytes()
    if inside and list(map(Tensor.data_ptr, scalars)) == places:
        return first.as_strided((len(scalars),), (1,), first.storage_offset())
    column = torch.stack(scalars)
    for one, entry in zip(held, column.unbind(), strict=True):
        one[name] = entry.detach()
    return column


def _sized(sources: Sequence[Source], group: int, home: torch.device) -> tuple[Tensor, tuple[weight_scale.Shape, ...]]:
    """Which sources are matrices of a group, and their shapes."""
    own = [index for index, source in enumerate(sources) if source.group == group and source.theta.dim() > 1]
    shapes = tuple(weight_scale.shape_of(sources[index].theta) for index in own)
    return brought(own, home, torch.int64), shapes


def _marks(
    params: Sequence[Tensor],
    grads: Sequence[Any],
    looked_up: tuple[Sequence[Sequence[Tensor]], Sequence[Sequence[Tensor]]],
) -> list[list[Any]]:
    """What has to be as it was. Where memory is the same, so is the device."""
    statistics, scalars = (list(chain.from_iterable(rows)) for rows in looked_up)
    every = [*params, *grads]
    of_all: list[Callable[[Any], Any]] = [type, Tensor.stride, Tensor.numel]
    return [
        *(list(map(mark, every)) for mark in of_all),
        *(list(map(mark, grads)) for mark in (_dtype, _device, Tensor.is_neg)),
        *(list(map(mark, params)) for mark in (_dtype, Tensor.data_ptr, Tensor.is_neg)),
        *(list(map(mark, statistics)) for mark in (id, _dtype, Tensor.data_ptr, Tensor.stride, Tensor.numel)),
        *(list(map(mark, scalars)) for mark in (id, Tensor.data_ptr)),
    ]
