"""The passes in place, for chunks that fit a cache: no allocations, dot products for the sums.

Each function computes what its namesake in ``reference`` defines, in an order of operations that saves passes. The
sums are dot products over one chunk in the state's dtype (float32: good to 2e-7 for 65,536 elements); the caller adds
them up in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from arturo_core.algorithm.compact import (
    CURVATURE_STEP,
    DECAY_REACH,
    LARGEST_DIRECTION,
    MOVED,
    NOISE_FLOOR,
    Gains,
    Kept,
    defers,
)
from arturo_core.algorithm.published import COVARIANCE_LIMIT, FullBelief, precision_floor, slack
from arturo_core.algorithm.trust_region import TINY, SecularSums, Spectrum, unit_of
from arturo_core.contexts import is_readable
from arturo_core.kernels.passes import CompactObserved, FullObserved, GroupTerms
from arturo_core.kernels.scratch import scratch
from arturo_core.numerics import NEGLIGIBLE, move, wide_dtype
from arturo_core.options import CURVATURE_RANGE, Options

#: Power of two that keeps e²/√S in range for every gradient that is allowed.
_SURPRISE_UNIT = 2.0**-50

#: A pass writes before it has read everything, so an exception inside leaves its chunk half done.
ATOMIC = False


def _observed_(into: Tensor, grad: Tensor, maximize: bool) -> Tensor:
    """The gradient of the loss to minimise, finite, in the state's dtype."""
    # A step with a non-finite gradient is skipped by zero gains, and zero times NaN would be NaN.
    torch.nan_to_num(grad.to(into.dtype), 0.0, 0.0, 0.0, out=into)
    return into.neg_() if maximize else into


def _flush_(values: Tensor) -> None:
    """Zero where they are negligible."""
    torch.hardshrink(values, NEGLIGIBLE, out=values)


def _dot(left: Tensor, right: Tensor, into: Tensor) -> Tensor:
    """Sum of products; ``into`` is a temporary. In pairs: float32 ``torch.dot`` is off by millionths, and η with it."""
    return torch.mul(left, right, out=into).sum()


def _slope(gradient: Tensor, theta: Tensor, options: Options) -> Tensor:
    return gradient.add(theta.to(gradient.dtype), alpha=options.prior) if options.prior else gradient


def compact_observe(
    theta: Tensor,
    grad: Tensor,
    kept: Kept,
    gains: Gains,
    terms: GroupTerms,
    options: Options,
    maximize: bool,
) -> CompactObserved:
    known = is_readable(terms.ok)
    before = None if known else [tensor.clone() for tensor in kept]
    counted = torch.zeros_like(terms.ok)
    if not known or bool(terms.ok):
        counted = _compact_update_(theta, grad, kept, gains, terms, maximize)
    if before is not None:
        # A skipped step leaves what is kept as it was, bit for bit.
        for tensor, old in zip(kept, before, strict=True):
            tensor.copy_(torch.where(terms.ok > 0, tensor, old))
    return compact_sums(theta, kept, terms, options)._replace(surprise=counted)


def compact_sums(theta: Tensor, kept: Kept, terms: GroupTerms, options: Options) -> CompactObserved:
    direction, deviation, curvature, _ = kept
    first, second, gradient, slope = scratch(direction, 4)
    counted = torch.zeros_like(terms.ok)
    stiffness = torch.mul(curvature, deviation, out=first)
    stiff, total = stiffness.sum(), deviation.sum()
    torch.mul(direction, stiffness, out=gradient)
    if not options.prior:
        decrement = torch.mul(gradient, direction, out=second).sum() * terms.length
        squared = torch.dot(direction, direction) * terms.length**2  # for reports
        return CompactObserved(decrement, stiff, total, counted, squared)
    torch.add(gradient, theta.to(gradient.dtype), alpha=options.prior, out=slope)
    hessian = stiffness.div_(terms.length).add_(options.prior)
    newton = torch.div(slope, hessian, out=second)
    decrement, squared = slope.mul_(newton).sum(), _dot(newton, newton, slope)
    pull = newton.sub_(torch.div(gradient, hessian, out=first))
    signal = first.mul_(gradient).sum()
    return CompactObserved(decrement, stiff, total, counted, squared, signal, _dot(pull, pull, slope))


def _compact_update_(
    theta: Tensor, grad: Tensor, kept: Kept, gains: Gains, terms: GroupTerms, maximize: bool
) -> Tensor:
    """Re-centre what is pending, decay, and update what is kept in place; returns Σ e²/S."""
    direction, deviation, curvature, displacement = kept
    innovation, variance, growth, gradient = scratch(direction, 4)
    displacement.addcmul_(direction, gains.moved, value=-1.0)
    torch.mul(direction, curvature, out=gradient).mul_(deviation).mul_(1.0 - gains.pending)
    if terms.decay is not None:
        shrink = move(theta, torch.mul(theta.to(gradient.dtype), -terms.decay, out=growth))
        reach = DECAY_REACH * gains.gradient
        shift = torch.mul(shrink, curvature, out=variance).mul_(1.0 / (terms.length * reach.clamp(min=1e-12)))
        gradient.addcmul_(shift.clamp_(-1.0, 1.0).mul_(reach), deviation)
        displacement.add_(shrink)
    _observed_(innovation, grad, maximize).sub_(gradient).mul_(terms.ok)
    outside = 1.0 + gains.predicted
    scaled = torch.mul(innovation, torch.sqrt(gains.noise / outside), out=variance)
    noise = deviation.mul_(deviation).mul_(1.0 - gains.noise).addcmul_(scaled, scaled)
    noise.clamp_(min=NOISE_FLOOR).sqrt_()
    gradient.addcmul_(innovation, gains.gradient)
    # x = D/ℓ enters as D with ℓ in the scalars.
    torch.mul(displacement, gains.curvature / terms.length**2, out=variance)
    torch.addcmul(outside, variance, displacement, out=variance)
    surprise = innovation.div_(deviation)
    scaled = torch.div(surprise, variance, out=variance)
    counted = torch.dot(surprise, scaled)
    torch.mul(displacement, scaled, out=growth).mul_(gains.curvature / terms.length)
    growth.clamp_(-CURVATURE_STEP, CURVATURE_STEP)
    moved = torch.mul(displacement, displacement, out=variance).mul_(1.0 / (MOVED * terms.length**2))
    growth.addcmul_(moved.clamp_(max=1.0), gains.level, value=-1.0).exp_()
    curvature.mul_(growth).clamp_(*CURVATURE_RANGE)
    displacement.mul_(1.0 - gains.gradient)
    _flush_(gradient)
    _flush_(displacement)
    torch.div(gradient, curvature, out=direction).div_(deviation).clamp_(-LARGEST_DIRECTION, LARGEST_DIRECTION)
    return counted


def compact_apply(theta: Tensor, kept: Kept, factor: Tensor, terms: GroupTerms, options: Options) -> None:
    direction, deviation, curvature, displacement = kept
    if defers(theta.dtype, direction.dtype, options):
        theta.addcmul_(direction, factor * terms.length, value=-1.0)
        return
    hessian, step = scratch(direction, 2)
    if options.prior:
        torch.mul(curvature, deviation, out=hessian)
        torch.mul(hessian, direction, out=step).add_(theta.to(step.dtype), alpha=options.prior)
        step.div_(hessian.div_(terms.length).add_(options.prior)).mul_(-factor)
    else:
        torch.mul(direction, -factor * terms.length, out=step)
    step = move(theta, step)
    direction.add_(step / terms.length)
    displacement.add_(step)


def _recentre_(belief: FullBelief, displacement: Tensor, floor: Tensor, shift: Tensor) -> None:
    """Re-centre in place; ``floor`` and ``shift`` are temporaries."""
    gradient, hessian, cov_gg, cov_gh, cov_hh = belief
    apart = slack(cov_gg.dtype)
    gradient.addcmul_(hessian, displacement)
    torch.mul(cov_gg, apart, out=floor)
    torch.mul(cov_hh, displacement, out=shift)
    # δ(2 Pgh + δ Phh), with Pgh moved by δ Phh in between: δ(Pgh_old + Pgh_new).
    cov_gg.addcmul_(cov_gh, displacement)
    cov_gh.add_(shift)
    cov_gg.addcmul_(cov_gh, displacement)
    torch.maximum(cov_gg, floor, out=cov_gg)
    least = torch.mul(cov_gh, cov_gh, out=shift).div_(cov_gg).mul_(1.0 + apart)
    torch.maximum(cov_hh, least, out=cov_hh)


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
    gradient, hessian, cov_gg, cov_gh, cov_hh = belief
    innovation, variance, scaled, weighted = scratch(gradient, 4)
    mean = theta.to(precision.dtype)
    if terms.decay is not None:
        displacement = move(theta, torch.mul(mean, -terms.decay, out=innovation))
        _recentre_(belief, displacement, variance, scaled)
        mean = theta.to(precision.dtype)
    ok = terms.ok
    drift = ok * options.process_noise
    drifted = torch.mul(mean, drift, out=scaled)
    cov_gh.add_(drifted)
    cov_gg.addcmul_(drifted, mean).add_(drift)
    cov_hh.add_(drift).clamp_(max=COVARIANCE_LIMIT * max(options.process_noise, options.init_covariance))

    _observed_(innovation, grad, maximize)
    gradient.add_(torch.mul(innovation, ok * first, out=scaled))
    innovation.sub_(gradient).mul_(ok)
    torch.add(cov_gg, options.measurement_noise, out=variance)
    torch.div(innovation, variance, out=scaled)
    root_noise = options.measurement_noise**0.5
    surprise = torch.dot(innovation.mul_(_SURPRISE_UNIT * root_noise), scaled).to(wide_dtype(theta.device))
    gradient.addcmul_(cov_gg, scaled)
    hessian.addcmul_(cov_gh, scaled)
    kept = variance.reciprocal_()
    gain_h = torch.mul(cov_gh, kept, out=scaled).mul_(ok)
    cov_hh.addcmul_(gain_h, cov_gh, value=-1.0)
    kept.mul_(ok * options.measurement_noise).add_(1.0 - ok)
    cov_gg.mul_(kept)
    cov_gh.mul_(kept)

    scaled_slope, ratio = terms_of_dual
    torch.mul(precision, terms.weight, out=weighted)
    torch.add(hessian, options.prior, out=ratio).div_(weighted)
    torch.div(_slope(gradient, theta, options), weighted.sqrt_(), out=scaled_slope)
    least, most = torch.aminmax(ratio)
    unit = unit_of(torch.stack(torch.aminmax(scaled_slope)).abs().amax(), least, most)
    scaled_slope.div_(unit)
    ratio.div_(unit)
    positive = torch.clamp(ratio, min=TINY, out=variance)
    root = torch.div(scaled_slope, positive, out=innovation)
    return FullObserved(
        least=least,
        total=_dot(scaled_slope, scaled_slope, weighted),
        value=_dot(root, root, weighted),
        first=-2.0 * _dot(root, torch.div(root, positive, out=positive), weighted),
        precision=precision.sum(),
        surprise=surprise / (_SURPRISE_UNIT * root_noise),
        unit=unit,
    )


def _distance_(into: Tensor, curvature: Tensor, eta_min: Tensor, t: Tensor) -> Tensor:
    return torch.add(curvature, eta_min, out=into).clamp_(min=TINY).add_(t)


def full_secular(terms_of_dual: Spectrum, eta_min: Tensor, t: Tensor) -> SecularSums:
    gap, moved, product = scratch(terms_of_dual.slope, 3)
    _distance_(gap, terms_of_dual.curvature, eta_min, t)
    torch.div(terms_of_dual.slope, gap, out=moved)
    first = torch.div(moved, gap, out=gap)
    return SecularSums(
        value=_dot(moved, moved, product),
        first=-2.0 * _dot(moved, first, product),
        second=6.0 * _dot(first, first, product),
    )


def full_length(precision: Tensor, terms_of_dual: Spectrum, eta_min: Tensor, t: Tensor, terms: GroupTerms) -> Tensor:
    weighted, gap = scratch(precision, 2)
    torch.mul(precision, terms.weight, out=weighted).sqrt_()
    _distance_(gap, terms_of_dual.curvature, eta_min, t).mul_(weighted)
    step = torch.div(terms_of_dual.slope, gap, out=gap)
    return _dot(step, step, weighted)


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
    weighted, gap, step = scratch(precision, 3)
    torch.mul(precision, terms.weight, out=weighted).sqrt_()
    _distance_(gap, terms_of_dual.curvature, eta_min, t).mul_(weighted)
    step = move(theta, torch.div(terms_of_dual.slope, gap, out=step).mul_(-scale))
    kept = options.temperature + options.precision_momentum
    target = torch.mul(precision, options.precision_momentum / kept, out=weighted)
    target.add_(belief.hessian, alpha=1.0 / kept).add_(options.prior / kept).clamp_(min=precision_floor(options))
    precision.lerp_(target, terms.ok.to(precision.dtype))
    _recentre_(belief, step, gap, weighted)
    for values in (belief.gradient, belief.hessian, belief.cov_gh):
        _flush_(values)
    return _dot(step, step, gap)
