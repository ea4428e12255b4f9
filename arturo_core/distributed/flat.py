"""Flat parameters: vectors in which a framework has lined up parts of parameters, as DeepSpeed's ZeRO does.

A flat vector has lost the shapes of what is in it, and parts of it may be padding; neither may change a step. Whoever
makes the vector an optimizer's parameter declares what it was cut from. FSDP1 needs no declaration: its vectors can be
asked (:mod:`arturo_core.distributed.fsdp1`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


class Piece(NamedTuple):
    """A slice of a flat vector, and the shape of the whole parameter that it is a part of."""

    start: int
    stop: int
    shape: torch.Size


class _Contents(NamedTuple):
    pieces: Sequence[Piece]
    runs: Sequence[slice]
    first: int


_declared: WeakIdKeyDictionary = WeakIdKeyDictionary()


def declare(vector: Tensor, pieces: Iterable[Piece], first: int = 0) -> None:
    """Say what a flat parameter is made of; what is in no piece is padding, and takes no part in any step.

    Args:
        vector: the parameter as the optimizer sees it. Declaring it again replaces what was said.
        pieces: of this rank's vector, in any order; empty ones are left out.
        first: index of the vector's first element among those of all ranks.

    Raises:
        ValueError: the pieces overlap or reach beyond the vector, or it is not one.
    """
    found = sorted(piece for piece in pieces if piece.start < piece.stop)
    ends = [0, *(end for piece in found for end in piece[:2]), vector.numel()]
    if vector.dim() != 1 or any(end > following for end, following in pairwise(ends)):
        raise ValueError(
            f"Arturo: pieces {[(piece.start, piece.stop) for piece in found]} are no disjoint slices of a vector of "
            f"shape {tuple(vector.shape)}. Declare what of a flat parameter belongs to which parameter."
        )
    runs: list[slice] = []
    for start, stop, _ in found:
        if runs and runs[-1].stop == start:
            start = runs.pop().start
        runs.append(slice(start, stop))
    _declared[vector] = _Contents(found, runs, first)


def is_any_declared() -> bool:
    """Whether there are flat parameters at all."""
    return bool(_declared)


def is_declared(param: Tensor) -> bool:
    """Whether it is known what a parameter is made of."""
    return bool(_declared) and param in _declared


def matrices(param: Tensor) -> list[tuple[Tensor, torch.Size]]:
    """The pieces of a declared parameter: their elements, and the shapes they were cut from."""
    contents: _Contents = _declared[param]
    return [(param[start:stop], shape) for start, stop, shape in contents.pieces]


def spans(param: Tensor) -> list[tuple[int, int]]:
    """Begin and end of what of a declared parameter belongs to parameters, in the vector of all ranks."""
    contents: _Contents = _declared[param]
    return [(contents.first + run.start, contents.first + run.stop) for run in contents.runs]


def without_padding(param: Tensor, tensor: Tensor) -> list[Tensor]:
    """What of a tensor that is laid out like a parameter belongs to parameters, in runs that share its memory."""
    contents: _Contents | None = _declared.get(param) if _declared else None
    return [tensor] if contents is None else [tensor[run] for run in contents.runs]
