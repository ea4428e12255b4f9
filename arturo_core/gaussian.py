"""The Gaussian over the weights, N(θ, 1/λ): its precision, and how curvature updates it."""

from __future__ import annotations

import torch
from torch import Tensor

from arturo_core.options import Options


def precision_floor(options: Options) -> float:
    """Least precision a weight may have (1/weight²).

    The posterior is never less certain than the prior, unless curvature estimates are negative; there the
    published update would make it negative (seen at its step 9 on a noisy quadratic).
    """
    return max(options.prior_precision, 1e-6 / options.init_variance)


def updated_precision(
    precision: Tensor, curvature: Tensor, temperature: float, momentum: float, floor: float
) -> Tensor:
    """λ ← (b + νλ)/(κ + ν), held above ``floor`` (arXiv 2310.20574, the primal solution for the precision).

    Args:
        precision: λ.
        curvature: b = h + κλ0.
        temperature: κ.
        momentum: ν, weight of the old precision.
        floor: from :func:`precision_floor`.
    """
    updated = (curvature + momentum * precision) / (temperature + momentum)
    return torch.clamp(updated, min=floor)


def tied_precision(curvature: Tensor, temperature: float) -> Tensor:
    """λ = b/κ: where the update above settles for ν = 0. The compact form keeps no other precision.

    Finite: a precision beyond the dtype's range is read as its largest number.
    """
    return (curvature / temperature).clamp(max=torch.finfo(curvature.dtype).max)
