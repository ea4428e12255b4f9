"""The curvature filter: what is believed of the expected gradient and its slope along every coordinate.

Along each coordinate the expected gradient is modelled as linear in the weight, E[g](θ + δ) ≈ ĝ + hδ. A
two-state Kalman filter per coordinate (recursive least squares with process noise) tracks ĝ and h from ordinary
stochastic gradients alone (arXiv 2310.20574, section on the surrogate fit). The belief is kept *centred*: ĝ is
the prediction at the current mean, so every displacement of the mean has to re-centre it. That is the published
algorithm in other coordinates (r = ĝ − hθ), without its cancellation, and so it survives float32.

Two forms live here, side by side. The *full* form is the published filter: six tensors, constant noise levels.
The *compact* form estimates the noise R of every coordinate from the innovations (Mehra 1970), so that
all gains are dimensionless, and keeps of the covariance what that leaves open.

Pure functions of tensors that broadcast against each other; nothing here knows of optimizers, devices or chunks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from arturo_core.trust_region import wide_dtype

#: Steps' worth of process noise that the variance of h may gather where nothing moves (no wind-up in long runs).
COVARIANCE_LIMIT = 1e5

#: Added to a noise variance before its root: below |g| ≈ 1e-18 a gradient counts as zero (float32 squares underflow).
NOISE_FLOOR = 1e-36


#: Below this ĝ, h and D count as zero: they decay for ever, and on many processors subnormal numbers are far slower.
NEGLIGIBLE = 1e-30

#: Below this R counts as zero, beside the floor of a noise variance.
NEGLIGIBLE_NOISE = 1e-37

#: Largest shift of ĝ that steady weight decay may lead to by re-centring, in units of √R. With 1 and more, the
#: innovations that it causes enlarge R, R enlarges the shift, and both grow without limit.
DECAY_REACH = 0.6

#: Largest change of log s in one step.
CURVATURE_STEP = 0.1


#: (D/ℓ)² from which on a coordinate has moved enough to take part in the common level of s.
MOVED = 1e-4


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


class CompactBelief(NamedTuple):
    """The self-calibrating belief; all parameter-shaped.

    With R as the unit of variance and diagonal process noise, the variance of ĝ is R times a scalar that
    follows the same Riccati recursion in every coordinate (:func:`riccati`), and the covariance of ĝ and h is
    the variance of h times the recent displacement D. What is left per coordinate is this.
    """

    gradient: Tensor  # ĝ
    noise: Tensor  # R
    curvature: Tensor  # s = h / h0, h0 = √R / ℓ
    displacement: Tensor  # D


class Gains(NamedTuple):
    """The scalars of a compact update, zero when the step is being skipped.

    0-dimensional, or one entry an element where several parameters are updated together.
    """

    gradient: Tensor  # k, the filter's gain for ĝ
    noise: Tensor  # the gain of the noise estimate
    curvature: Tensor  # v, variance of log s
    predicted: Tensor  # p, predicted variance of ĝ in units of R (0 when the step is being skipped)
    level: Tensor  # logarithm of the mean of s at the last step (0 when the step is being skipped)


def compact_update(
    belief: CompactBelief,
    observed: Tensor,
    gains: Gains,
    length: float | Tensor,
    curvature_range: tuple[float, float],
) -> tuple[CompactBelief, Tensor]:
    """Measurement update with an observed gradient.

    The variance of log s is the constant v: the filter of s is a normalised least-mean-squares filter, which
    neither freezes nor winds up. In units of R, and with x = D/ℓ, the innovation's variance is S = 1 + p + v x², its
    covariance with log s is v x, and its part outside the curvature's reach is 1 + p.

    Only the contrast of s between coordinates is learned: log s is lowered by the logarithm of the mean of s. Noise
    that is left in ĝ moved the weights too, so E[eD] > 0 without any curvature, and s would drift upwards everywhere
    alike. A coordinate that has hardly moved (x² below MOVED) is lowered in proportion: a sleeping one keeps its s.

    Args:
        belief: the current belief.
        observed: the stochastic gradient at the current mean.
        gains: of this step.
        length: ℓ, weight units.
        curvature_range: bounds of s.

    Returns:
        The updated belief, and the squared innovation in units of its predicted variance, e²/(S R) (with R
        including the innovation itself, so that a single outlier counts no more than 1/gain).
    """
    innovation = observed - belief.gradient
    noise = belief.noise + gains.noise * (innovation * innovation / (1.0 + gains.predicted) - belief.noise)
    surprise = innovation / torch.sqrt(noise + NOISE_FLOOR)
    moved = belief.displacement / length
    variance = 1.0 + gains.predicted + gains.curvature * moved * moved
    growth = torch.clamp(gains.curvature * moved * surprise / variance, -CURVATURE_STEP, CURVATURE_STEP)
    common = gains.level * torch.clamp(moved * moved / MOVED, max=1.0)
    return (
        CompactBelief(
            gradient=belief.gradient + gains.gradient * innovation,
            noise=noise,
            curvature=torch.clamp(belief.curvature * torch.exp(growth - common), *curvature_range),
            displacement=belief.displacement * (1.0 - gains.gradient),
        ),
        surprise * surprise / variance,
    )


def compact_hessian(belief: CompactBelief, length: float | Tensor) -> Tensor:
    """h = s √R / ℓ, positive (zero where no gradient has ever been seen; gradient units per weight unit)."""
    return belief.curvature * torch.sqrt(belief.noise + NOISE_FLOOR) / length


def compact_decay(belief: CompactBelief, displacement: Tensor, gain: Tensor, length: float | Tensor) -> CompactBelief:
    """Move the centre with weight decay, θ → θ + δ, as far as the model reaches.

    A gradient step moves ĝ towards zero, whatever its length; decay moves it anywhere. Its effect is limited to
    :data:`DECAY_REACH` × k × √R a step (k: gain of ĝ), and so to :data:`DECAY_REACH` × √R in all.
    """
    reach = DECAY_REACH * gain
    shift = torch.maximum(torch.minimum(belief.curvature * displacement / length, reach), -reach)
    return belief._replace(
        gradient=belief.gradient + shift * torch.sqrt(belief.noise + NOISE_FLOOR),
        displacement=belief.displacement + displacement,
    )


def flushed(values: Tensor, least: float = NEGLIGIBLE) -> Tensor:
    """The values, zero where they are negligible."""
    return torch.where(values.abs() <= least, 0.0, values)


def compact_recentre(belief: CompactBelief, displacement: Tensor, length: float | Tensor) -> CompactBelief:
    """Move the centre with the mean, θ → θ + δ."""
    return belief._replace(
        gradient=belief.gradient + compact_hessian(belief, length) * displacement,
        displacement=belief.displacement + displacement,
    )


def riccati(variance: Tensor, process_noise: Tensor | float) -> tuple[Tensor, Tensor]:
    """One step of the scalar Riccati recursion for the variance of ĝ, in units of R.

    It is the same in every coordinate, and starts from 1: before any gradient, ĝ = 0 is as uncertain as one gradient is
    noisy. With constant ρ the gain falls like 1/t at first, the average of the gradients so far, and settles near √ρ.

    Args:
        variance: of ĝ after the last update, any shape.
        process_noise: ρ, the variance by which the expected gradient drifts from step to step.

    Returns:
        The variance predicted for this step, p, and the gain k = p/(1 + p), which is the variance after it, too.
    """
    predicted = variance + process_noise
    return predicted, predicted / (1.0 + predicted)
