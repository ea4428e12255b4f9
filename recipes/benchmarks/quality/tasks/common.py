"""Batch order, digests and the schedule of training from scratch, the same for all tasks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from recipes.benchmarks.quality.tasks.base import Problem, Task

ORDER_SEED = 1000  # added to a problem's seed, so that the batch order is not drawn from the stream of the weights


def from_scratch(
    name: str, steps: int, make: Callable[[int], Problem], description: str, passes: float, clip: float | None = None
) -> Task:
    """A task that trains from scratch: 5 % warm-up, then a cosine to zero."""
    return Task(
        name=name,
        family="from scratch",
        steps=steps,
        warmup=math.ceil(0.05 * steps),
        decay="cosine",
        clip=clip,
        make=make,
        description=description,
        passes=passes,
    )


def order_generator(seed: int) -> torch.Generator:
    """The generator that draws the batches of a problem with this seed, at its start."""
    return torch.Generator().manual_seed(ORDER_SEED + seed)


def shuffled(rows: int, batch: int, steps: int, seed: int) -> Iterator[Tensor]:
    """`steps` batches of row numbers (batch,) from 0 to rows - 1; every epoch is a new permutation.

    What is left of an epoch when it holds no full batch any more is skipped, as DataLoader's drop_last does.
    """
    generator = order_generator(seed)
    order, position = torch.randperm(rows, generator=generator), 0
    for _ in range(steps):
        if position + batch > rows:
            order, position = torch.randperm(rows, generator=generator), 0
        yield order[position : position + batch]
        position += batch


def sha256(pieces: Iterable[bytes]) -> str:
    """The digest of the pieces one after the other, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
