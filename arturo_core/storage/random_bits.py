"""The random bits with which a narrow state is rounded: a hash of what is rounded, never of who rounds it.

A generator's bits depend on blocks, threads and ranks. These depend on the key, which the caller mixes of seed, step
and parameter number, and on the global index of the element alone: equal on any sharding, and bitwise at resume. Fast
kernels compute the same bits, and this is their definition.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF

#: The key of a step's own rounding of u, after that of the update: key ^ SECOND.
SECOND = 0x55555555


def random_bits(key: Tensor | int, index: Tensor) -> Tensor:
    """32 random bits of every element, as int64; the low 16 round u, the high 16 round σ.

    x = (low half of the index × 0x9E3779B1) ^ high half of the index ^ key, mixed by the multiply and shift hash with
    the constants 0x7feb352d and 0x846ca68b.

    Args:
        key: 32 bits.
        index: global index of the element in its parameter, int64.
    """
    x = (times(index & _MASK, 0x9E3779B1) ^ (index >> 32) ^ key) & _MASK
    x = times(x ^ (x >> 16), 0x7FEB352D)
    x = times(x ^ (x >> 15), 0x846CA68B)
    return x ^ (x >> 16)


def rounded(values: Tensor, noise: Tensor) -> Tensor:
    """float32 values as bfloat16, rounded up with the probability of what is cut off; ``noise`` is 16 bits."""
    bits = values.view(torch.int32).to(torch.int64) + noise
    return (bits >> 16).to(torch.int16).view(torch.bfloat16)


def times(x: Tensor, factor: int) -> Tensor:
    """The product of 32-bit numbers, its low 32 bits."""
    # In halves: the whole product would leave int64.
    return (x * (factor & 0xFFFF) + (((x * (factor >> 16)) & 0xFFFF) << 16)) & _MASK
