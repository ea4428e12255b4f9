"""The passes, written with the pure functions: the definition the fast forms are held to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from arturo_core.algorithm.compact import (
    Gains,
    Kept,
    compact_decay,
    compact_update,
    defers,
    packed,
    recentred,
    unpacked,
)
from arturo_core.algorithm.published import (
    COVARIANCE_LIMIT,
    FullBelief,
    precision_floor,
    predict,
    recentre,
    update,
    updated_precision,
)
from arturo_core.algorithm.trust_region import (
    SecularSums,
    Spectrum,
    primal,
    secular_sums,
    spectrum,
    surrogate,
    unit_of,
)
from arturo_core.kernels.passes import CompactObserved, FullObserved, GroupTerms
from arturo_core.numerics import flushed, move, wide_sum
from arturo_core.options import CURVATURE_RANGE, Options

#: A pass writes before it has read everything, so an exception inside leaves its chunk half done.
ATOMIC = False


def _store(into: NamedTuple, values: NamedTuple) -> None:
    for target, value in zip(into, values, strict=True):
        target.copy_(value)


def _clean(grad: Tensor, like: Tensor, ok: Tensor, maximize: bool) -> Tensor:
    """The gradient of the loss to minimise, in the state's dtype; equal to ``like`` when the step is skipped."""
    observed = grad.to(like.dtype)
    return torch.where(ok > 0, -observed if maximize else observed, like)


def compact_observe(
    theta: Tensor,
    grad: Tensor,
    kept: Kept,
    gains: Gains,
    terms: GroupTerms,
    options: Options,
    maximize: bool,
) -> CompactObserved:
    belief = unpacked(kept, gains.pending, gains.moved)
    if terms.decay is not None:
        displacement = move(theta, -terms.decay * theta.to(belief.gradient.dtype))
        belief = compact_decay(belief, displacement, gains.gradient, terms.length)
    observed = _clean(grad, belief.gradient, terms.ok, maximize)
    updated, surprise = compact_update(belief, observed, gains, terms.length, CURVATURE_RANGE)
    # A skipped step leaves what is kept as it was, bit for bit.
    _store(kept, Kept(*(torch.where(terms.ok > 0, new, old) for new, old in zip(packed(updated), kept, strict=True))))
    return compact_sums(theta, kept, terms, options)._replace(surprise=wide_sum(surprise))


def compact_sums(theta: Tensor, kept: Kept, terms: GroupTerms, options: Options) -> CompactObserved:
    gradient = kept.direction * kept.curvature * kept.deviation
    slope, curvature = _compact_surrogate(theta, kept, terms, options)
    newton = slope / curvature
    return CompactObserved(
        decrement=wide_sum(newton * slope),
        signal=wide_sum(gradient / curvature * gradient) if options.prior else None,
        pull=wide_sum(((slope - gradient) / curvature) ** 2) if options.prior else None,
        squared=wide_sum(newton * newton),
        stiffness=wide_sum(kept.curvature * kept.deviation),
        deviation=wide_sum(kept.deviation),
        surprise=torch.zeros_like(terms.ok),
    )


def compact_apply(theta: Tensor, kept: Kept, factor: Tensor, terms: GroupTerms, options: Options) -> None:
    slope, curvature = _compact_surrogate(theta, kept, terms, options)
    displacement = move(theta, -factor * (slope / curvature))
    if not defers(theta.dtype, kept.direction.dtype, options):
        _store(kept, recentred(kept, displacement, terms.length))


def _compact_surrogate(theta: Tensor, kept: Kept, terms: GroupTerms, options: Options) -> tuple[Tensor, Tensor]:
    stiffness = kept.curvature * kept.deviation
    return surrogate(kept.direction * stiffness, stiffness / terms.length, theta.to(stiffness.dtype), options.prior)


def full_observe(
    theta: Tensor,
    grad: Tensor,
    precision: Tensor,
    belief: FullBelief,
    terms_of_dual: Spectrum,
    first: Tensor,
    terms: GroupTerms,
    options: Options,
    maximize: bool,
) -> FullObserved:
    moved = belief
    if terms.decay is not None:
        displacement = move(theta, -terms.decay * theta.to(precision.dtype))
        moved = recentre(belief, displacement)
    mean = theta.to(precision.dtype)
    observed = _clean(grad, moved.gradient, terms.ok, maximize)
    # The first gradient is the filter's starting point: ĝ = g₁ + h0θ.
    moved = moved._replace(gradient=moved.gradient + terms.ok * first * observed)
    limit = COVARIANCE_LIMIT * max(options.process_noise, options.init_covariance)
    predicted = predict(moved, mean, terms.ok * options.process_noise, limit)
    updated, surprise = update(predicted, observed, options.measurement_noise, terms.ok)
    _store(belief, updated)
    slope, curvature = surrogate(updated.gradient, updated.hessian, mean, options.prior)
    raw = spectrum(slope, curvature, terms.weight * precision)
    least, most = torch.aminmax(raw.curvature)
    unit = unit_of(raw.slope.abs().amax(), least, most)
    scaled = Spectrum(raw.slope / unit, raw.curvature / unit)
    _store(terms_of_dual, scaled)
    newton = secular_sums(scaled, 0.0, 0.0)
    return FullObserved(
        least=least.to(newton.value.dtype),
        total=wide_sum(scaled.slope * scaled.slope),
        value=newton.value,
        first=newton.first,
        precision=wide_sum(precision),
        surprise=wide_sum(surprise),
        unit=unit,
    )


def full_secular(terms_of_dual: Spectrum, eta_min: Tensor, t: Tensor) -> SecularSums:
    return secular_sums(terms_of_dual, eta_min, t)


def full_length(precision: Tensor, terms_of_dual: Spectrum, eta_min: Tensor, t: Tensor, terms: GroupTerms) -> Tensor:
    step = primal(terms_of_dual, terms.weight * precision, eta_min, t)
    return wide_sum(step * step)


def full_apply(
    theta: Tensor,
    precision: Tensor,
    belief: FullBelief,
    terms_of_dual: Spectrum,
    eta_min: Tensor,
    t: Tensor,
    scale: Tensor,
    terms: GroupTerms,
    options: Options,
) -> Tensor:
    displacement = move(theta, scale * primal(terms_of_dual, terms.weight * precision, eta_min, t))
    target = updated_precision(
        precision,
        belief.hessian + options.prior,
        options.temperature,
        options.precision_momentum,
        precision_floor(options),
    )
    # lerp is exact at both ends: a skipped step leaves the precision as it was, bit for bit.
    precision.copy_(torch.lerp(precision, target, terms.ok.to(precision.dtype)))
    moved = recentre(belief, displacement)
    gradient, hessian, cov_gh = (flushed(values) for values in (moved.gradient, moved.hessian, moved.cov_gh))
    _store(belief, moved._replace(gradient=gradient, hessian=hessian, cov_gh=cov_gh))
    return wide_sum(displacement * displacement)
