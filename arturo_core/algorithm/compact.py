"""The default form: a filter that calibrates itself, precision tied to the curvature, the dual in closed form.

Along each coordinate the expected gradient is modelled as linear in the weight, E[g](θ + δ) ≈ ĝ + hδ. A Kalman filter
tracks ĝ and h from ordinary stochastic gradients alone (arXiv 2310.20574, section on the surrogate fit). It is kept
*centred*: ĝ is the prediction at the current mean, so every displacement of the mean re-centres it. The noise R of
every coordinate is estimated from the innovations (Mehra 1970), so that all gains are dimensionless, and of the
covariance is kept what that leaves open.

Pure functions; the step that calls them is :mod:`arturo_core.step.compact`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from arturo_core.algorithm import trust_region
from arturo_core.algorithm.form import STEP, StateTensor, constant, ones, zeros
from arturo_core.numerics import flushed
from arturo_core.options import (
    CURVATURE_RANGE,
    DAMPING,
    NOISE_GAIN,
    RADIUS_PER_LR,
    RADIUS_PER_SIGNAL,
    Options,
)

#: Least R: below |g| ≈ 1e-18 a gradient counts as zero (float32 squares underflow).
NOISE_FLOOR = 1e-36

#: Largest |u|: where gradients do not vary R falls without end, and u must not leave float32.
LARGEST_DIRECTION = 1e30

#: Largest shift of ĝ that steady weight decay may lead to by re-centring, in units of √R. With 1 and more, the
#: innovations that it causes enlarge R, R enlarges the shift, and both grow without limit.
DECAY_REACH = 0.6

#: Largest change of log s in one step.
CURVATURE_STEP = 0.1


#: (D/ℓ)² from which on a coordinate has moved enough to take part in the common level of s.
MOVED = 1e-4


class CompactBelief(NamedTuple):
    """The self-calibrating belief at the current mean; all parameter-shaped. It is kept as :class:`Kept`.

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
    pending: Tensor  # f of the last step, whose re-centring is pending; 0 if none is
    moved: Tensor  # fℓ of the last step (weight units), or 0


class Kept(NamedTuple):
    """The belief as the state keeps it, so that a step reads and writes little; all parameter-shaped.

    A step without prior is θ ← θ − fℓu. It changes ĝ by the factor 1 − f, since hδ = −fĝ, and D by −fℓu: both wait for
    the next step, which reads them anyway (:func:`unpacked`), and the step itself reads u and writes θ, nothing else.
    """

    direction: Tensor  # u = ĝ/(sσ)
    deviation: Tensor  # σ = √R
    curvature: Tensor  # s
    displacement: Tensor  # D


def unpacked(kept: Kept, pending: Tensor | float = 0.0, moved: Tensor | float = 0.0) -> CompactBelief:
    """The belief at the current mean.

    Args:
        kept: as the last step left it.
        pending: f of that step, if its re-centring is still to be done.
        moved: fℓ of that step, weight units.
    """
    return CompactBelief(
        gradient=(1.0 - pending) * kept.direction * kept.curvature * kept.deviation,
        noise=kept.deviation * kept.deviation,
        curvature=kept.curvature,
        displacement=kept.displacement - moved * kept.direction,
    )


def packed(belief: CompactBelief) -> Kept:
    """The belief in the form in which it is kept, nothing pending."""
    deviation = torch.sqrt(torch.clamp(belief.noise, min=NOISE_FLOOR))
    direction = flushed(belief.gradient) / (belief.curvature * deviation)
    return Kept(
        direction=torch.clamp(direction, -LARGEST_DIRECTION, LARGEST_DIRECTION),
        deviation=deviation,
        curvature=belief.curvature,
        displacement=flushed(belief.displacement),
    )


def defers(theta: torch.dtype, state: torch.dtype, options: Options) -> bool:
    """Whether the re-centring of a step may wait: not where rounding or a prior makes it another one than −fℓu."""
    return theta == state and not options.prior


def recentred(kept: Kept, displacement: Tensor, length: float | Tensor) -> Kept:
    """Move the centre with the mean, θ → θ + δ, now: ĝ ← ĝ + hδ, so u ← u + δ/ℓ."""
    return kept._replace(
        direction=kept.direction + displacement / length, displacement=kept.displacement + displacement
    )


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
    noise = torch.clamp(noise, min=NOISE_FLOOR)
    surprise = innovation / torch.sqrt(noise)
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
    return belief.curvature * torch.sqrt(belief.noise) / length


def compact_decay(belief: CompactBelief, displacement: Tensor, gain: Tensor, length: float | Tensor) -> CompactBelief:
    """Move the centre with weight decay, θ → θ + δ, as far as the model reaches.

    A gradient step moves ĝ towards zero, whatever its length; decay moves it anywhere. Its effect is limited to
    :data:`DECAY_REACH` × k × √R a step (k: gain of ĝ), and so to :data:`DECAY_REACH` × √R in all.
    """
    reach = DECAY_REACH * gain
    shift = torch.maximum(torch.minimum(belief.curvature * displacement / length, reach), -reach)
    return belief._replace(
        gradient=belief.gradient + shift * torch.sqrt(belief.noise),
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


def tied_precision(curvature: Tensor, temperature: float) -> Tensor:
    """λ = b/κ: where the update above settles for ν = 0. The compact form keeps no other precision.

    Finite: a precision beyond the dtype's range is read as its largest number.
    """
    return (curvature / temperature).clamp(max=torch.finfo(curvature.dtype).max)


#: What no learning rate leads D to.
_FAR = 1e20

#: Its state.
ROWS = (
    STEP,
    StateTensor(
        "direction",
        "u = ĝ/(sσ), what a step follows: ĝ, expected gradient at the mean, in units of its noise and curvature",
        zeros,
        least=-1.01 * LARGEST_DIRECTION,
        most=1.01 * LARGEST_DIRECTION,
    ),
    StateTensor(
        "variance", "variance of ĝ in units of R, the same for every element", ones, scalar=True, least=0.0, most=1.0
    ),
    StateTensor(
        "pending",
        "f of the last step, until the next has re-centred ĝ and D",
        zeros,
        scalar=True,
        wide=True,
        least=0.0,
        most=1.0,
    ),
    StateTensor(
        "moved", "fℓ of the last step, likewise (weight units)", zeros, scalar=True, wide=True, least=0.0, most=_FAR
    ),
    StateTensor(
        "deviation",
        "σ = √R, standard deviation of the gradient's noise (gradient units)",
        lambda theta, options: torch.full_like(theta, NOISE_FLOOR**0.5),
        # Narrower dtypes round it.
        least=0.99 * NOISE_FLOOR**0.5,
    ),
    StateTensor(
        "curvature",
        "s = h/h0, curvature relative to its prior h0 = σ/ℓ (kept in [0.1, 10])",
        constant("init_hessian"),
        # Narrower dtypes round the ends of the range.
        least=0.99 * CURVATURE_RANGE[0],
        most=1.01 * CURVATURE_RANGE[1],
    ),
    StateTensor(
        "displacement",
        "D, recent displacement, forgotten at the filter's rate (weight units)",
        zeros,
        least=-_FAR,
        most=_FAR,
    ),
)


class Sums(NamedTuple):
    """Sums over all parameters by group, shape (groups,) each, wide."""

    elements: Tensor
    decrement: Tensor  # Σ a²/b
    stiffness: Tensor  # Σ sσ
    signal: Tensor  # Σ ĝ²/b, which is Σ a²/b without a prior
    pull: Tensor  # Σ (κλ0θ/b)², 0 without a prior


def dual(
    sums: Sums, lr: Tensor, length: Tensor, share: Tensor, relative: Tensor, options: Options
) -> tuple[trust_region.Multiplier, Tensor]:
    """The multiplier, and the share of Newton's step that every group takes.

    With "rms" the bound is the KL divergence that moving every weight by the trust radius of its own group would spend,
    ε = ½ Σ λr². The radius of a group is c·lr, or lr × the RMS of ĝ/(sσ) in the metric of λ (over all groups) if that
    is more, and at most the relative radius of :mod:`arturo_core.step.weight_scale` times the share of its peak lr.
    Groups move in proportion to their lr: Newton's step −a/b grows with ℓ and so with the group's peak lr, and the
    share w of that peak, relative to the largest share, scales it: δ = −w f a/b.

    Args:
        sums: over all ranks.
        lr: of the groups, shape (groups,), wide.
        length: ℓ of the groups, weight units.
        share: lr as a share of the group's peak.
        relative: largest trust radius that the weights' size allows at the peak, weight units; 0-dimensional.
        options: of the optimizer.
    """
    precision = (sums.stiffness / length + options.prior * sums.elements) / options.temperature
    moves = (lr > 0.0).to(lr.dtype)
    if options.trust_region == "kl":
        part, budget = moves, 2.0 * lr.amax()
    else:
        part = torch.where(lr > 0.0, share / share.amax(), 0.0)
        # Newton's step times lr/ℓ is lr·ĝ/(sσ); N is its RMS in units of lr. The prior's pull is no signal.
        agreement = ((lr / length) ** 2 * sums.signal).sum() / options.temperature / (lr * lr * precision).sum()
        asked = torch.clamp(RADIUS_PER_SIGNAL**2 * agreement, min=RADIUS_PER_LR**2)
        squared_radius = torch.minimum(lr * lr * asked, torch.where(moves > 0.0, (relative * share) ** 2, 0.0))
        budget = (squared_radius * precision).sum()
    descent = (part * part * sums.decrement).sum()
    if options.prior and options.trust_region == "rms":
        # The prior moves weights without gradients for next to no divergence: the plain RMS of its pull is bounded.
        most = (squared_radius * sums.elements).sum() / (part * part * sums.pull).sum()
        budget = torch.fmin(budget, descent / options.temperature * most)
    multiplier, factor = trust_region.tied_multiplier(descent, budget, options.temperature, DAMPING)
    return multiplier, factor * part


class Filters(NamedTuple):
    """Where the filters of several parameters are, and what that makes of their gains; shape (parameters,), wide."""

    gradient: Tensor  # k
    noise: Tensor  # gain of R
    predicted: Tensor  # p
    variance: Tensor  # after the update


def filters(ages: Tensor, variance: Tensor, share: Tensor, ok: Tensor, options: Options) -> Filters:
    """Each parameter's filter is as far as the updates it has had.

    The expected gradient drifts because the weights move: its process noise falls with the square of the step length.

    Args:
        ages: updates so far.
        variance: of ĝ after the last, in units of R.
        share: lr as a share of its peak.
        ok: 0 where the step is skipped, else 1.
        options: of the optimizer.
    """
    predicted, gain = riccati(variance, options.process_noise * share * share)
    return Filters(
        gradient=torch.where(ok > 0.0, gain, 0.0),
        noise=ok * torch.clamp(1.0 / (1.0 + ages), min=NOISE_GAIN),
        predicted=torch.where(ok > 0.0, predicted, 0.0),
        variance=torch.where(ok > 0.0, gain, variance),
    )


def precision(held: Mapping[str, Tensor], length: float, options: Options) -> Tensor:
    """λ of the weights whose state is given (1/weight²)."""
    return tied_precision(held["curvature"] * held["deviation"] / length + options.prior, options.temperature)


def curvature(held: Mapping[str, Tensor], options: Options) -> Tensor:
    """Curvature of the weights whose state is given, relative to its prior."""
    return held["curvature"]
