"""The state in 8 bits: codes of u and D beside a scale for 32 elements, codes of log s, and σ in bfloat16.

Signed numbers are divided by the scale of their block, which is never below its largest, and companded: small numbers
get finer codes. log s needs no scale, since s lies in [0.1, 10]. Every rounding is stochastic, so that small changes
add up: the mean of what is kept is what was to be kept (u and D in their own units, s in its logarithm). The noise is
a hash (:mod:`arturo_core.storage.random_bits`).

Pure functions of flat float32 tensors whose length is a multiple of :data:`BLOCK`. Fast kernels compute the same.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from arturo_core.storage.random_bits import times

#: Elements that share a scale.
BLOCK = 32

#: Codes are whole numbers from -MOST to MOST.
MOST = 127

#: A block whose largest number is smaller is kept as zeros.
LEAST_SCALE = 1e-35

#: log s of one code: MOST is s = 10.
LOG_STEP = math.log(10.0) / MOST


class Noises(NamedTuple):
    """What rounds the four numbers of an element, made of its 32 random bits."""

    direction: Tensor  # in [0, 1), of the lowest 8 bits
    displacement: Tensor  # in [0, 1), of the 8 bits above them
    curvature: Tensor  # in [0, 1), 16 bits that are mixed of all
    deviation: Tensor  # the upper 16 bits themselves, for bfloat16


def noises(bits: Tensor) -> Noises:
    """The noises of elements, from :func:`arturo_core.storage.random_bits.random_bits`."""
    return Noises(
        direction=((bits & 0xFF) + 0.5) / 256.0,
        displacement=((bits >> 8 & 0xFF) + 0.5) / 256.0,
        curvature=(times(bits, 0x9E3779B1) >> 16) / 65536.0,
        deviation=bits >> 16,
    )


def scales(values: Tensor) -> Tensor:
    """The largest magnitude of every block, rounded up to bfloat16; 0 for a block that is kept as zeros."""
    largest = values.view(-1, BLOCK).abs().amax(dim=1)
    up = ((largest.view(torch.int32).to(torch.int64) + 0xFFFF) >> 16).to(torch.int16).view(torch.bfloat16)
    return torch.where(largest < LEAST_SCALE, torch.zeros_like(up), up)


def signed_codes(values: Tensor, scale: Tensor, noise: Tensor) -> Tensor:
    """Codes of signed numbers, int8. Code c stands for the share y = c/(254 − c) of the scale; −c for −y.

    Between two neighbours the upper is taken as often as makes the mean y.

    Args:
        values: float32.
        scale: of their blocks.
        noise: uniform in [0, 1).
    """
    share = values.abs() / _spread(scale).clamp(min=LEAST_SCALE)
    share = share.clamp(max=1.0)
    lower = torch.floor((2 * MOST) * share / (1.0 + share)).clamp(max=MOST - 1)
    upper = (share * (2 * MOST - lower) - lower) * (2 * MOST - 1 - lower) / (2 * MOST)
    codes = (lower + (upper > noise)) * (_spread(scale) > 0.0)
    return torch.copysign(codes, values).to(torch.int8)


def signed_values(codes: Tensor, scale: Tensor) -> Tensor:
    """What signed codes stand for, float32."""
    code = codes.to(torch.float32)
    return code / (2 * MOST - code.abs()) * _spread(scale)


def log_codes(values: Tensor, noise: Tensor) -> Tensor:
    """Codes of positive numbers in [0.1, 10], int8: log s in units of :data:`LOG_STEP`."""
    return torch.floor(torch.log(values) / LOG_STEP + noise).clamp(-MOST, MOST).to(torch.int8)


def log_values(codes: Tensor) -> Tensor:
    """What codes of :func:`log_codes` stand for, float32."""
    return torch.exp(codes.to(torch.float32) * LOG_STEP)


def _spread(scale: Tensor) -> Tensor:
    """The scale of every element."""
    return scale.to(torch.float32).repeat_interleave(BLOCK)
