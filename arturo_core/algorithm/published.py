"""The published form (arXiv 2310.20574): constant noise levels, a precision of its own, the dual by evaluations.

Along each coordinate the expected gradient is modelled as linear in the weight, E[g](θ + δ) ≈ ĝ + hδ. A two-state
Kalman filter per coordinate (recursive least squares with process noise) tracks ĝ and h from ordinary stochastic
gradients alone. The belief is kept *centred*: ĝ is the prediction at the current mean, so every displacement of the
mean has to re-centre it. That is the published algorithm in other coordinates (r = ĝ − hθ), without its cancellation,
and so it survives float32.

Pure functions; the step that calls them is :mod:`arturo_core.step.published`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from arturo_core.algorithm.form import STEP, StateTensor, constant
from arturo_core.numerics import wide_dtype
from arturo_core.options import Options

#: Steps' worth of process noise that the variance of h may gather where nothing moves (no wind-up in long runs).
COVARIANCE_LIMIT = 1e5


class FullBelief(NamedTuple):
    """Mean (ĝ, h) and covariance of the filter at the current mean of the weights; all parameter-shaped."""

    gradient: Tensor
    hessian: Tensor
    cov_gg: Tensor
    cov_gh: Tensor
    cov_hh: Tensor


def predict(belief: FullBelief, theta: Tensor, process_noise: Tensor | float, limit: float) -> FullBelief:
    """Time update: the model may have drifted, by variance ``process_noise`` (d) in r and in h.

    In centred coordinates d·I becomes d·(1 + θ², θ, 1). ``limit`` caps the variance of h.
    """
    return belief._replace(
        cov_gg=belief.cov_gg + process_noise * (1.0 + theta * theta),
        cov_gh=belief.cov_gh + process_noise * theta,
        cov_hh=torch.clamp(belief.cov_hh + process_noise, max=limit),
    )


def update(
    belief: FullBelief, observed: Tensor, measurement_noise: float, ok: Tensor | float = 1.0
) -> tuple[FullBelief, Tensor]:
    """Measurement update with an observed gradient g of variance R = ``measurement_noise``.

    Args:
        belief: the predicted belief.
        observed: the stochastic gradient at the current mean.
        measurement_noise: R, gradient units².
        ok: 0 switches the update off (the step is being skipped), 1 is an ordinary step.

    Returns:
        The updated belief, and the squared innovation in units of its predicted variance, e²/S, which
        averages 1 when the filter is consistent.
    """
    innovation = observed - belief.gradient
    variance = belief.cov_gg + measurement_noise
    gain_g = ok * belief.cov_gg / variance
    gain_h = ok * belief.cov_gh / variance
    # 1 − gain_g without cancellation when the noise is small against the covariance.
    kept = 1.0 - ok + ok * measurement_noise / variance
    return (
        FullBelief(
            gradient=belief.gradient + gain_g * innovation,
            hessian=belief.hessian + gain_h * innovation,
            cov_gg=belief.cov_gg * kept,
            cov_gh=belief.cov_gh * kept,
            cov_hh=belief.cov_hh - gain_h * belief.cov_gh,
        ),
        innovation.to(wide_dtype(innovation.device)).square() / variance,
    )


def definite(cov_gg: Tensor, cov_gh: Tensor, cov_hh: Tensor) -> Tensor:
    """The variance of h, raised by a few roundings where the covariance would not be positive definite without."""
    return torch.maximum(cov_hh, (1.0 + slack(cov_gg.dtype)) * (cov_gh * cov_gh / cov_gg))


def slack(dtype: torch.dtype) -> float:
    """The relative distance kept from a singular covariance."""
    return 16.0 * torch.finfo(dtype).eps


def recentre(belief: FullBelief, displacement: Tensor) -> FullBelief:
    """Move the centre with the mean, θ → θ + δ, and keep the covariance positive definite against rounding."""
    cov_gg = belief.cov_gg + displacement * (2.0 * belief.cov_gh + displacement * belief.cov_hh)
    cov_gg = torch.maximum(cov_gg, slack(cov_gg.dtype) * belief.cov_gg)
    cov_gh = belief.cov_gh + displacement * belief.cov_hh
    return FullBelief(
        gradient=belief.gradient + belief.hessian * displacement,
        hessian=belief.hessian,
        cov_gg=cov_gg,
        cov_gh=cov_gh,
        cov_hh=definite(cov_gg, cov_gh, belief.cov_hh),
    )


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


def _initial_cov_hh(theta: Tensor, options: Options) -> Tensor:
    c0 = options.init_covariance
    return definite(c0 * (1.0 + theta * theta), c0 * theta, torch.full_like(theta, c0))


#: Its state.
ROWS = (
    STEP,
    StateTensor(
        "precision",
        "λ, precision of the Gaussian over the weight (1/weight²)",
        lambda theta, options: torch.full_like(theta, 1.0 / options.init_variance),
        least=1e-30,  # its floor is higher: precision_floor
    ),
    # The first gradient is added when it comes: ĝ = g₁ + h0 θ.
    StateTensor(
        "gradient",
        "ĝ, expected gradient at the current mean (gradient units)",
        lambda theta, options: options.init_hessian * theta,
    ),
    StateTensor("hessian", "h, expected curvature (gradient units per weight unit)", constant("init_hessian")),
    StateTensor(
        "cov_gg",
        "variance of ĝ",
        lambda theta, options: options.init_covariance * (1.0 + theta * theta),
        least=0.0,
    ),
    StateTensor("cov_gh", "covariance of ĝ and h", lambda theta, options: options.init_covariance * theta),
    StateTensor("cov_hh", "variance of h", _initial_cov_hh, least=0.0),
)


def precision(held: Mapping[str, Tensor], length: float, options: Options) -> Tensor:
    """λ of the weights whose state is given (1/weight²)."""
    return held["precision"].clone()


def curvature(held: Mapping[str, Tensor], options: Options) -> Tensor:
    """Curvature of the weights whose state is given, relative to its prior."""
    return held["hessian"] / options.init_hessian
