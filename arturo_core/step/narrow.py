"""Passes over chunks whose state is narrow, or whose weights are rounded at random, and the random bits for it.

A pass works on float32 copies of a chunk's state; what it leaves is packed again, and the sums are of what was packed.
The bits of an element follow from the number of its parameter, that parameter's count of steps and the element's place
in it: the same on any number of ranks, and at resume.
"""

from __future__ import annotations

import torch
from torch import Tensor

from arturo_core.algorithm.compact import Gains, Kept, defers
from arturo_core.kernels.passes import CompactObserved, GroupTerms, Passes
from arturo_core.options import Options
from arturo_core.step.chunks import Chunk
from arturo_core.step.columns import Columns
from arturo_core.storage import keeping
from arturo_core.storage.random_bits import SECOND, random_bits, rounded

#: Nothing depends on which number it is.
SEED = 0x41525455

#: Of the bits that round weights: key ^ OF_WEIGHTS.
OF_WEIGHTS = 0x33333333


def seeds(columns: Columns) -> Tensor:
    """Of every source 32 random bits for this step, and the place of its first element; (sources, 2), int64."""
    keys = random_bits(random_bits(SEED, columns.numbers()), columns.read("step").to(torch.int64))
    return torch.stack([keys, columns.places()], dim=1)


def is_rounded(chunk: Chunk, options: Options) -> bool:
    """Whether anything of a chunk is rounded at random: its state, or its weights."""
    return chunk.narrow or rounds_weights(chunk.theta, options)


def rounds_weights(theta: Tensor, options: Options) -> bool:
    """Whether weights are rounded at random."""
    return options.stochastic_rounding and theta.dtype == torch.bfloat16


def observe(
    passes: Passes, chunk: Chunk, gains: Gains, seeds: Tensor, terms: GroupTerms, options: Options, maximize: bool
) -> CompactObserved:
    """The first pass over a chunk; ``seeds`` are those of its sources."""
    kept = keeping.unpacked(chunk.state) if chunk.narrow else Kept(*chunk.state)
    # Weights that are rounded at random decay with the step, so that they are rounded once: here a copy does.
    theta = chunk.theta.to(torch.float32) if rounds_weights(chunk.theta, options) else chunk.theta
    observed = passes.compact_observe(theta, chunk.grad, kept, gains, terms, options, maximize)
    if chunk.narrow:
        keeping.pack(chunk.state, kept, _bits(chunk, seeds), terms.ok)
        kept = keeping.unpacked(chunk.state)
    return passes.compact_sums(theta, kept, terms, options)._replace(surprise=observed.surprise)


def apply(passes: Passes, chunk: Chunk, factor: Tensor, seeds: Tensor, terms: GroupTerms, options: Options) -> None:
    """The second pass over a chunk."""
    kept = keeping.unpacked(chunk.state) if chunk.narrow else Kept(*chunk.state)
    if rounds_weights(chunk.theta, options):
        theta = chunk.theta.to(torch.float32)
        if terms.decay is not None:
            theta.sub_(terms.decay * theta)
        before = theta.clone()
        passes.compact_apply(theta, kept, factor, terms, options)
        chunk.theta.copy_(rounded(theta, _bits(chunk, seeds, OF_WEIGHTS) & 0xFFFF))
        if defers(theta.dtype, chunk.dtype, options):
            # By what was asked for: rounding adds nothing in the mean, and reaches far beyond ℓ where steps are short.
            kept.direction.add_((theta - before) / terms.length)
            kept.displacement.add_(theta - before)
    else:
        passes.compact_apply(chunk.theta, kept, factor, terms, options)
    if chunk.narrow and not defers(chunk.theta.dtype, chunk.dtype, options):
        keeping.pack_moved(chunk.state, kept, _bits(chunk, seeds, SECOND), terms.ok * (factor > 0.0))


def _bits(chunk: Chunk, seeds: Tensor, salt: int = 0) -> Tensor:
    return random_bits(chunk.spread(seeds[:, 0]) ^ salt, chunk.indices())
