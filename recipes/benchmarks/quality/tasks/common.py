"""Batch order and digests, the same for all tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

ORDER_SEED = 1000  # added to a problem's seed, so that the batch order is not drawn from the stream of the weights


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
