"""Passes over chunks whose state is narrow, and the random bits that round it.

A pass works on float32 copies of a chunk's state; what it leaves is packed again, and the sums are of what was packed.
The bits of an element follow from the number of its parameter, that parameter's count of steps and the element's place
in it: the same on any number of ranks, and at resume.
"""

from __future__ import annotations

import torch
from torch import Tensor

from arturo_core.algorithm.compact import Gains, defers
from arturo_core.kernels.passes import CompactObserved, GroupTerms, Passes
from arturo_core.options import Options
from arturo_core.step.chunks import Chunk
from arturo_core.step.columns import Columns
from arturo_core.storage import keeping
from arturo_core.storage.random_bits import SECOND, random_bits

#: Nothing depends on which number it is.
SEED = 0x41525455


def seeds(columns: Columns) -> Tensor:
    """Of every source 32 random bits for this step, and the place of its first element; (sources, 2), int64."""
    keys = random_bits(random_bits(SEED, columns.numbers()), columns.read("step").to(torch.int64))
    return torch.stack([keys, columns.places()], dim=1)


def observe(
    passes: Passes, chunk: Chunk, gains: Gains, seeds: Tensor, terms: GroupTerms, options: Options, maximize: bool
) -> CompactObserved:
    """The first pass over a chunk; ``seeds`` are those of its sources."""
    kept = keeping.unpacked(chunk.state)
    observed = passes.compact_observe(chunk.theta, chunk.grad, kept, gains, terms, options, maximize)
    keeping.pack(chunk.state, kept, random_bits(chunk.spread(seeds[:, 0]), chunk.indices()), terms.ok)
    sums = passes.compact_sums(chunk.theta, keeping.unpacked(chunk.state), terms, options)
    return sums._replace(surprise=observed.surprise)


def apply(passes: Passes, chunk: Chunk, factor: Tensor, seeds: Tensor, terms: GroupTerms, options: Options) -> None:
    """The second pass over a chunk."""
    kept = keeping.unpacked(chunk.state)
    passes.compact_apply(chunk.theta, kept, factor, terms, options)
    if not defers(chunk.theta.dtype, chunk.dtype, options):
        bits = random_bits(chunk.spread(seeds[:, 0]) ^ SECOND, chunk.indices())
        keeping.pack_moved(chunk.state, kept, bits, terms.ok * (factor > 0.0))
