"""Cutting the parameters into flat chunks for the passes.

Large tensors are sliced, so that a chunk and its temporaries stay in cache; small ones are packed together, so that
a model with hundreds of biases does not pay hundreds of dispatches for each operation. A pass works in place on
a chunk; :meth:`Chunk.write_back` then returns what was packed to the tensors it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from arturo_core.distributed.places import Place
from arturo_core.storage.codes import BLOCK
from arturo_core.storage.kinds import counted_in, is_codes, is_narrow

if TYPE_CHECKING:
    from arturo_core.kernels.many import Kernel
    from arturo_core.step.transaction import Journal


@dataclass
class Source:
    """One parameter with its gradient and state tensors, all of one (real) shape, and the scalars of its state.

    Of a sharded parameter the elements on this rank; ``layout`` is the number of its layout. ``param`` is the
    parameter, where that is a plain tensor.
    """

    theta: Tensor
    grad: Tensor
    state: tuple[Tensor, ...]
    scalars: dict[str, Tensor]
    group: int
    layout: int = 0
    param: Tensor | None = None
    number: int = 0  # of the parameter among all of the optimizer's
    place: Place = 0  # index of the elements in the whole parameter


@dataclass
class Chunk:
    """Flat tensors of one length, dtype and device, all of one parameter group and layout.

    Or, for a kernel that takes many tensors at once, the sources themselves; then the tensors are those of the first.
    """

    theta: Tensor
    grad: Tensor
    state: tuple[Tensor, ...]
    group: int
    sources: list[Source]
    packed: bool  # a copy of several parameters, instead of a slice that shares the memory of one
    layout: int = 0
    kernel: Kernel | None = None  # of many tensors
    table: Any = None  # what the kernel has made of the sources
    before: list[Tensor] | None = None  # what a pack began with, if it may have to be undone
    count: int | None = None  # elements of all sources, if they have been counted
    start: int = 0  # first element of a slice in its source

    @property
    def elements(self) -> int:
        if self.kernel is None:
            return self.theta.numel()
        if self.count is None:
            self.count = sum(source.theta.numel() for source in self.sources)
        return self.count

    @classmethod
    def whole(cls, kernel: Kernel, sources: list[Source], like: Outline | None = None) -> Chunk:
        """What a kernel takes at once; ``like`` it was in the last step."""
        head = sources[0]
        return cls(
            head.theta,
            head.grad,
            head.state,
            head.group,
            sources,
            packed=False,
            layout=head.layout,
            kernel=kernel,
            table=kernel.table(sources) if like is None else kernel.renewed(like.table, sources),
            count=None if like is None else like.elements,
        )

    def outline(self) -> Outline:
        """What of a kernel's chunk is the same in the next step, if only its gradients are others."""
        assert self.kernel is not None
        return Outline(self.kernel, self.kernel.outline(self.table), self.elements)

    def squares(self) -> Tensor:
        """Σθ² of each source, of a kernel's chunk."""
        assert self.kernel is not None
        return self.kernel.survey(self.table, squares=True)[1]

    def tensors(self, theta: bool, rows: Sequence[int]) -> list[Tensor]:
        """The weights, if they are asked for, and some rows of the state."""
        parts: Sequence[Chunk | Source] = [self] if self.kernel is None else self.sources
        return [tensor for one in parts for tensor in (*([one.theta] if theta else ()), *(one.state[i] for i in rows))]

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        return counted_in(self.state[0].dtype)

    @property
    def narrow(self) -> bool:
        """Whether the state has to be unpacked for the passes."""
        return is_narrow(self.state[0].dtype)

    def indices(self) -> Tensor:
        """Index of every element in its whole parameter, int64."""
        if not self.packed:
            here = slice(self.start, self.start + self.theta.numel())
            return _indices(self.sources[0], self.theta.device, here)
        whole = slice(0, None)
        return torch.cat([_indices(source, self.theta.device, whole) for source in self.sources])

    def spread(self, values: Tensor) -> Tensor:
        """One scalar a source, shape (sources,), as a scalar of a slice or as one entry an element of a pack."""
        if self.kernel is not None:
            return values
        if not self.packed:
            return values[0]
        sizes = [source.theta.numel() for source in self.sources]
        if values.device.type == "cpu":
            return torch.repeat_interleave(values, torch.tensor(sizes, device="cpu"), output_size=sum(sizes))
        # Sizes would have to be copied to the device, and the host would wait for that.
        return torch.cat([value.expand(size) for value, size in zip(values.unbind(), sizes, strict=True)])

    def change(self, journal: Journal, work: Callable[[], _T], theta: bool, rows: Sequence[int], atomic: bool) -> _T:
        """Run a pass that writes to some of the chunk's tensors.

        Args:
            journal: of the step.
            work: the pass.
            theta: whether it writes weights.
            rows: of the state that it writes.
            atomic: whether an exception in it comes before the first write.
        """
        if self.packed and journal.undoable and self.before is None:
            self.before = [tensor.clone() for tensor in (self.theta, *self.state)]
        changes = () if self.packed or not journal.undoable else self.tensors(theta, rows)
        return journal.write(work, changes, temporary=self.packed, atomic=atomic)

    def write_back(self, journal: Journal) -> None:
        """Copy a packed chunk's weights and state to the tensors they were packed from."""
        if not self.packed:
            return
        undo = None if self.before is None else partial(self._scatter, self.before)
        journal.write(partial(self._scatter, (self.theta, *self.state)), undo=undo)

    def _scatter(self, packed: Sequence[Tensor]) -> None:
        targets = [
            [source.theta for source in self.sources],
            *zip(*(source.state for source in self.sources), strict=True),
        ]
        for whole, into in zip(packed, targets, strict=True):
            parts = whole.split([target.numel() for target in into])
            torch._foreach_copy_(
                list(into), [part.view(target.shape) for part, target in zip(parts, into, strict=True)]
            )


class Outline(NamedTuple):
    """A kernel's chunk without its tensors."""

    kernel: Kernel
    table: Any
    elements: int

    def filled(self, sources: list[Source]) -> Chunk:
        """The chunk of the same sources with other gradients."""
        return Chunk.whole(self.kernel, sources, self)


#: The result of a pass.
_T = TypeVar("_T")

#: Parameters below this size are packed; a pack is a copy for the length of a step, so packs stay few and small.
PACKED = 1 << 16


def chunks(
    sources: Iterable[Source], size: int, kernel: Kernel | None = None, rounds_weights: bool = False
) -> Iterator[Chunk]:
    """What the kernel takes, if there is one; of the rest slices of at most ``size`` elements, and packs of small ones.

    The order depends on the order of the sources alone, so sums over chunks are reproducible.
    """
    rest: list[Source] = []
    many: dict[tuple[object, ...], list[Source]] = {}
    for source in sources:
        at_random = rounds_weights and source.theta.dtype == torch.bfloat16
        if kernel is None or at_random or isinstance(source.place, Tensor) or not kernel.eligible(source):
            rest.append(source)
        else:
            many.setdefault(_alike(source), []).append(source)
    for alike in many.values():
        assert kernel is not None
        yield Chunk.whole(kernel, alike)
    open_packs: dict[tuple[object, ...], list[Source]] = {}
    filled: dict[tuple[object, ...], int] = {}
    for source in rest:
        count = source.theta.numel()
        if count == 0:
            continue
        flat = _flat(source) if count >= min(PACKED, size // 2) else None
        if flat is not None:
            theta, grad, *state = flat
            for start in range(0, count, size):
                part = slice(start, start + size)
                yield Chunk(
                    theta[part],
                    grad[part],
                    tuple(tensor[_of_scales(part) if tensor.numel() < count else part] for tensor in state),
                    source.group,
                    [source],
                    packed=False,
                    layout=source.layout,
                    start=start,
                )
            continue
        key = _alike(source)
        if filled.get(key, 0) + count > min(size, 4 * PACKED) and key in open_packs:
            yield _pack(open_packs.pop(key))
            filled[key] = 0
        open_packs.setdefault(key, []).append(source)
        filled[key] = filled.get(key, 0) + count
    for pack in open_packs.values():
        yield _pack(pack)


def _alike(source: Source) -> tuple[object, ...]:
    """What sources have in common that are taken together."""
    dtypes = source.theta.dtype, source.grad.dtype, source.state[0].dtype
    return source.group, source.layout, source.theta.device, *dtypes


def _pack(sources: list[Source]) -> Chunk:
    head = sources[0]
    return Chunk(
        theta=_join([source.theta for source in sources]),
        grad=_join([source.grad for source in sources]),
        state=tuple(_join([source.state[index] for source in sources]) for index in range(len(head.state))),
        group=head.group,
        sources=sources,
        packed=True,
        layout=head.layout,
    )


def _join(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _of_scales(part: slice) -> slice:
    return slice(part.start // BLOCK, part.stop // BLOCK)


def _indices(source: Source, device: torch.device, part: slice) -> Tensor:
    if isinstance(source.place, Tensor):
        return source.place.reshape(-1)[part]
    count = source.theta.numel()
    return source.place + torch.arange(*part.indices(count), dtype=torch.int64, device=device)


def _flat(source: Source) -> list[Tensor] | None:
    """Views of one length in the memory order of the weights; None where they do not share a dense layout."""
    tensors = (source.theta, source.grad, *source.state)
    if is_codes(source.state[0].dtype):
        # Blocks are of consecutive elements, whatever the order in memory.
        if not all(tensor.is_contiguous() for tensor in (source.theta, *source.state)):
            return None
        return [tensor.reshape(-1) for tensor in tensors]
    layout = tensors[0]
    order = sorted(range(layout.dim()), key=lambda dim: layout.stride(dim), reverse=True)
    views = [tensor.permute(order) for tensor in tensors]
    if not all(view.is_contiguous() for view in (views[0], *views[2:])):
        return None
    return [view.reshape(-1) for view in views]  # only the gradient (the second) may have to be copied
