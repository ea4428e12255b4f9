"""How far a step may move the weights in proportion to their own size: the relative part of the trust radius.

A learning rate says nothing of the weights it moves. Where it asks for steps that are long beside the weights
themselves, as early in training from scratch, networks are damaged and do not recover when the rate falls. At the peak
of its schedule the radius is therefore at most

    ρ = α √(mean over the elements of all matrices of (θ²/min(m, n) + φ/(m n)))

for matrices of m × n: α times the weights' RMS, divided by √min(m, n) because an update whose entries agree changes a
matrix by up to that factor more, relative to its spectral norm, than its entries say (after the spectral condition of
Yang, Simon and Bernstein 2023, arXiv 2310.17813). The term φ/(m n) is a share of what matrices are initialised
with; weights that start at zero could not move without it. The mean is over the matrices of the groups that move,
weighted by lr², and leaves out what has no size: parts of a matrix with an element that is not finite (or whose square
overflows).

As the learning rate falls below its peak, so does the bound, to ρ·lr/peak. A schedule whose peak asks for more than ρ
thus ends as the largest does that asks for no more. Its warm-up ends sooner, and weight decay still follows the lr.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from arturo_core.contexts import brought, fake_mode_is_active, is_capturing, lasting
from arturo_core.distributed.sharding import matrices
from arturo_core.numerics import wide_dtype

#: α, trust radius in units of what is above.
RADIUS_PER_WEIGHT = 0.16

#: φ, share of the variance 1/max(m, n) of a matrix's initial weights.
INITIAL_SHARE = 0.1

#: Elements of a part of a matrix, and the matrix's rows and columns.
Shape = tuple[int, int, int]

#: Sets of constants that are kept.
KEPT = 64

_kept: dict[tuple[tuple[Shape, ...], torch.device], tuple[Tensor, Tensor, Tensor]] = {}

#: Elements of a norm: float32 sums of more lose digits, and differ with how weights are split.
SLICE = 1 << 16


def radius(sums: Tensor, rates: Sequence[Tensor]) -> Tensor:
    """ρ (weight units), 0-dimensional, wide; infinite where no matrices move.

    Args:
        sums: :func:`sums` of the parameters of every group that moves, over all ranks, shape (groups, 2), wide.
        rates: learning rates of the groups, 0-dimensional, wide.
    """
    lr = torch.stack(list(rates))
    moves = torch.isfinite(lr) & (lr > 0.0)
    lr = torch.where(moves, lr, 0.0)
    weight = torch.where(moves, (lr / lr.amax()) ** 2, 0.0)
    scale, count = (weight[:, None] * sums).sum(dim=0).unbind()
    relative = RADIUS_PER_WEIGHT * torch.sqrt(scale / count)
    return torch.where(torch.isfinite(relative) & (count > 0.0), relative, torch.inf)


class Squares:
    """Σθ² of plain weights that a kernel works on: it finds it on its way, for the next step, if nobody changes them.

    What a kernel would find now is the same to the bit, so a run that is resumed goes on as if it had not been
    interrupted. From the first step that a graph records on nothing is kept: a replay changes weights and no version.
    What is written through ``param.data`` in place leaves no trace either, and counts a step later.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], int, int, Tensor]] = {}
        #: Whether a step of this optimizer has been recorded in a graph.
        self.recorded = False

    def keep(self, params: Sequence[Tensor | None], squares: Tensor) -> None:
        """Σθ² of each parameter as it is now; None for what is no plain tensor."""
        if self.recorded or is_capturing(squares.device):
            self.recorded = True
            self._known.clear()
            return
        for param, square in zip(params, squares.unbind(), strict=True):
            if param is not None:
                self._known[id(param)] = (weakref.ref(param), param._version, param.data_ptr(), square)

    def of(self, params: Sequence[Tensor | None], find: Callable[[], Tensor]) -> dict[int, Tensor]:
        """Σθ² of plain parameters as they are now, by the parameter's id; 0-dimensional.

        Args:
            params: those that a kernel works on in this step; None for what is no plain tensor.
            find: sums the squares of all of them anew, shape (params,).
        """
        plain = [param for param in params if param is not None]
        if all(map(self._is_known, plain)) and not any(is_capturing(device) for device in {p.device for p in plain}):
            return {id(param): self._known[id(param)][3] for param in plain}
        found = find()
        self.keep(params, found)
        known = zip(params, found.unbind(), strict=True)
        return {id(param): square for param, square in known if param is not None}

    def _is_known(self, param: Tensor) -> bool:
        found = self._known.get(id(param))
        return found is not None and found[0]() is param and found[1:3] == (param._version, param.data_ptr())


def sums(params: Sequence[Tensor], home: torch.device, known: Mapping[int, Tensor] | None = None) -> Tensor:
    """Σ(θ²/min(m, n) + φ/(m n)) and the number of elements over the matrices; shape (2,), wide, on ``home``.

    Of sharded matrices the elements on this rank; m and n are those of the whole. ``known`` holds Σθ² of some of them.
    """
    alike: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Shape]]] = {}
    carried: tuple[list[Tensor], list[Shape]] = ([], [])
    for param in params:
        square = None if known is None or param.dim() < 2 else known.get(id(param))
        if square is not None:
            carried[0].append(square)
            carried[1].append(shape_of(param))
            continue
        for weight, shape in matrices(param):
            parts, shapes = alike.setdefault((weight.device, weight.dtype), ([], []))
            for part in _slices(weight):
                parts.append(part)
                shapes.append((part.numel(), *shape))
    total = torch.zeros(2, dtype=wide_dtype(home), device=home)
    for (_, dtype), (parts, shapes) in alike.items():
        total = total + _weighed(_squares(parts, dtype), tuple(shapes), home)
    if carried[0]:
        total = total + known_sums(torch.stack(carried[0]), tuple(carried[1]), home)
    return total


def known_sums(squares: Tensor, shapes: tuple[Shape, ...], home: torch.device) -> Tensor:
    """:func:`sums` of whole matrices whose Σθ² a kernel has found; shape (2,), wide, on ``home``.

    Kernels sum in float64; what leaves float32 has no size, as where norms are taken in it.
    """
    return _weighed(torch.where(squares <= torch.finfo(torch.float32).max, squares, torch.inf), shapes, home)


def _weighed(squares: Tensor, shapes: tuple[Shape, ...], home: torch.device) -> Tensor:
    squares = squares.to(home, wide_dtype(home))
    spread, initial, count = _constants(shapes, home)
    terms = torch.stack([squares * spread + initial, count])
    return torch.where(torch.isfinite(squares), terms, 0.0).sum(dim=1)


def shape_of(param: Tensor) -> Shape:
    """Real elements, rows and columns of a matrix of which all is here."""
    elements = param.numel() * (2 if param.is_complex() else 1)
    return elements, param.shape[0], param.numel() // param.shape[0]


def _squares(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    norms = torch._foreach_norm(parts, 2, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    return torch.stack(norms).to(wide_dtype(parts[0].device)).square()


def _slices(weight: Tensor) -> Sequence[Tensor]:
    if weight.numel() <= SLICE or not weight.is_contiguous():
        return (weight,)
    parts: tuple[Tensor, ...] = weight.view(-1).split(SLICE)
    return parts


def _constants(shapes: tuple[Shape, ...], home: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """1/min(m, n), elements × φ/(m n), and elements, of every part of a matrix. A device gets them once."""
    lasts = not (torch.compiler.is_compiling() or fake_mode_is_active() or home.type == "meta")
    known = _kept.get((shapes, home)) if lasts else None
    if known is not None:
        return known
    rows = [(1.0 / min(m, n), INITIAL_SHARE * elements / (m * n), float(elements)) for elements, m, n in shapes]
    with lasting():
        spread, initial, count = brought(rows, home, wide_dtype(home)).unbind(dim=1)
    # Neither what holds no numbers (FakeTensorMode) nor a graph's memory is for later steps.
    if lasts and not is_capturing(home):
        if len(_kept) >= KEPT:
            _kept.clear()
        _kept[shapes, home] = spread, initial, count
    return spread, initial, count
