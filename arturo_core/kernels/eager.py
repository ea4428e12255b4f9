"""The passes in place, for chunks that fit a cache: few temporaries, dot products for the sums.

Each function computes what its namesake in ``reference`` defines, in an order of operations that saves passes. The
sums are float32 dot products over one chunk (good to 2e-7 for 65,536 elements) that the caller adds up in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from arturo_core.curvature import COVARIANCE_LIMIT, CURVATURE_STEP, NOISE_FLOOR, CompactBelief, FullBelief, Gains
from arturo_core.gaussian import precision_floor
from arturo_core.kernels.passes import CompactObserved, FullObserved, GroupTerms
from arturo_core.options import CURVATURE_RANGE, Options
from arturo_core.trust_region import _TINY, wide_dtype


def _clean_innovation(grad: Tensor, gradient: Tensor, ok: Tensor, maximize: bool) -> Tensor:
    """g − ĝ in fresh memory, zero (and never NaN) when the step is skipped."""
    observed = grad.to(gradient.dtype)
    innovation = torch.neg(observed).sub_(gradient) if maximize else torch.sub(observed, gradient)
    return innovation.nan_to_num_(0.0, 0.0, 0.0).mul_(ok)


def _wide(value: Tensor) -> Tensor:
    return value.to(wide_dtype(value.device))


def _compact_curvature(belief: CompactBelief, terms: GroupTerms, options: Options) -> tuple[Tensor, Tensor]:
    """h and b, in fresh memory; the same tensor where there is no prior."""
    hessian = torch.add(belief.noise, NOISE_FLOOR).sqrt_().mul_(belief.curvature).div_(terms.length)
    return hessian, (hessian + options.prior if options.prior else hessian)


def _slope(gradient: Tensor, theta: Tensor, options: Options) -> Tensor:
    return gradient.add(theta.to(gradient.dtype), alpha=options.prior) if options.prior else gradient


def compact_observe(
    theta: Tensor,
    grad: Tensor,
    belief: CompactBelief,
    ok: Tensor,
    gains: Gains,
    terms: GroupTerms,
    options: Options,
    maximize: bool,
) -> CompactObserved:
    gradient, noise, curvature, displacement = belief
    if terms.decay is not None:
        shrink = theta.to(gradient.dtype) * -terms.decay
        hessian, _ = _compact_curvature(belief, terms, options)
        gradient.addcmul_(hessian, shrink)
        displacement.add_(shrink)
        theta.add_(shrink)
    innovation = _clean_innovation(grad, gradient, ok, maximize)
    outside = 1.0 + gains.predicted
    scratch = innovation * innovation
    noise.lerp_(scratch.div_(outside), gains.noise.to(noise.dtype))
    deviation = torch.add(noise, NOISE_FLOOR).sqrt_()
    surprise = innovation / deviation
    moved = torch.div(displacement, terms.length, out=scratch)
    variance = (moved * moved).mul_(gains.curvature).add_(outside)
    scaled = torch.div(surprise, variance, out=variance)
    counted = _wide(torch.dot(surprise, scaled))
    growth = moved.mul_(scaled).mul_(gains.curvature).clamp_(-CURVATURE_STEP, CURVATURE_STEP).exp_()
    curvature.mul_(growth).clamp_(*CURVATURE_RANGE)
    gradient.add_(innovation.mul_(gains.gradient))
    displacement.mul_(1.0 - gains.gradient)
    steepness = torch.mul(deviation, curvature, out=deviation).div_(terms.length)
    if options.prior:
        steepness.add_(options.prior)
    slope = _slope(gradient, theta, options)
    newton = torch.div(slope, steepness, out=surprise)
    return CompactObserved(_wide(torch.dot(newton, slope)), _wide(steepness.sum()), counted)


def compact_apply(theta: Tensor, belief: CompactBelief, factor: Tensor, terms: GroupTerms, options: Options) -> Tensor:
    hessian, steepness = _compact_curvature(belief, terms, options)
    step = torch.div(_slope(belief.gradient, theta, options), steepness).mul_(-factor)
    theta.add_(step)
    belief.displacement.add_(step)
    if options.prior:
        belief.gradient.addcmul_(hessian, step)
    else:
        # h·δ = −f·ĝ exactly where b = h.
        belief.gradient.mul_(1.0 - factor)
    return _wide(torch.dot(step, step))


def _recentre_(belief: FullBelief, displacement: Tensor) -> None:
    gradient, hessian, cov_gg, cov_gh, cov_hh = belief
    slack = 16.0 * torch.finfo(cov_gg.dtype).eps
    gradient.addcmul_(hessian, displacement)
    floor = cov_gg * slack
    shift = cov_hh * displacement
    # δ(2 Pgh + δ Phh), with Pgh already moved by δ Phh: δ(Pgh_old + Pgh_new).
    cov_gg.addcmul_(cov_gh, displacement)
    cov_gh.add_(shift)
    cov_gg.addcmul_(cov_gh, displacement)
    torch.maximum(cov_gg, floor, out=cov_gg)
    least = torch.mul(cov_gh, cov_gh, out=shift).div_(cov_gg).mul_(1.0 + slack)
    torch.maximum(cov_hh, least, out=cov_hh)


def full_observe(
    theta: Tensor,
    grad: Tensor,
    precision: Tensor,
    belief: FullBelief,
    ok: Tensor,
    first: Tensor,
    terms: GroupTerms,
    options: Options,
    maximize: bool,
) -> FullObserved:
    gradient, hessian, cov_gg, cov_gh, cov_hh = belief
    mean = theta.to(precision.dtype)
    if terms.decay is not None:
        displacement = mean * -terms.decay
        theta.add_(displacement)
        _recentre_(belief, displacement)
        mean = theta.to(precision.dtype)
    noise = ok * options.process_noise
    cov_gg.add_(torch.mul(mean, mean).add_(1.0).mul_(noise))
    cov_gh.add_(mean * noise)
    cov_hh.add_(noise).clamp_(max=COVARIANCE_LIMIT * max(options.process_noise, options.init_covariance))

    observed = grad.to(gradient.dtype).nan_to_num(0.0, 0.0, 0.0)
    if maximize:
        observed.neg_()
    gradient.add_(observed.mul(ok * first))
    innovation = observed.sub_(gradient).mul_(ok)
    variance = cov_gg + options.measurement_noise
    scaled = innovation / variance
    surprise = _wide(torch.dot(innovation, scaled))
    gradient.addcmul_(cov_gg, scaled)
    hessian.addcmul_(cov_gh, scaled)
    gain_h = torch.div(cov_gh, variance, out=scaled).mul_(ok)
    cov_hh.addcmul_(gain_h, cov_gh, value=-1.0)
    kept = torch.reciprocal(variance, out=variance).mul_(ok * options.measurement_noise).add_(1.0 - ok)
    cov_gg.mul_(kept)
    cov_gh.mul_(kept)

    slope = _slope(gradient, theta, options)
    weighted = precision * terms.weight
    ratio = torch.add(hessian, options.prior, out=kept).div_(weighted)
    least = ratio.amin()
    root = torch.div(slope, ratio.clamp_(min=_TINY))
    first_root = root / ratio
    root_weighted = torch.div(root, weighted, out=innovation)
    value, slope_sum = torch.dot(root, root_weighted), torch.dot(first_root, root_weighted)
    total = torch.dot(slope, torch.div(slope, weighted, out=root))
    return FullObserved(
        least=_wide(least),
        total=_wide(total),
        value=_wide(value),
        first=-2.0 * _wide(slope_sum),
        precision=_wide(precision.sum()),
        surprise=surprise,
    )


def _distance(hessian: Tensor, weighted: Tensor, eta_min: Tensor, t: Tensor, options: Options) -> Tensor:
    """c + t, in fresh memory."""
    return torch.add(hessian, options.prior).div_(weighted).add_(eta_min).clamp_(min=_TINY).add_(t)


def full_secular(
    theta: Tensor,
    precision: Tensor,
    belief: FullBelief,
    eta_min: Tensor,
    t: Tensor,
    terms: GroupTerms,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor]:
    weighted = precision * terms.weight
    distance = _distance(belief.hessian, weighted, eta_min, t, options)
    root = torch.div(_slope(belief.gradient, theta, options), distance)
    first = torch.div(root, distance, out=distance)
    root_weighted = root / weighted
    value, slope = torch.dot(root, root_weighted), torch.dot(first, root_weighted)
    bend = torch.dot(first, torch.div(first, weighted, out=root_weighted))
    return _wide(value), -2.0 * _wide(slope), 6.0 * _wide(bend)


def full_apply(
    theta: Tensor,
    precision: Tensor,
    belief: FullBelief,
    ok: Tensor,
    eta_min: Tensor,
    t: Tensor,
    scale: Tensor,
    terms: GroupTerms,
    options: Options,
) -> Tensor:
    weighted = precision * terms.weight
    distance = _distance(belief.hessian, weighted, eta_min, t, options)
    step = _slope(belief.gradient, theta, options).div(weighted).div_(distance).mul_(-scale)
    theta.add_(step)
    kept = options.temperature + options.precision_momentum
    target = torch.mul(precision, options.precision_momentum, out=weighted).add_(belief.hessian).add_(options.prior)
    target.div_(kept).clamp_(min=precision_floor(options))
    precision.lerp_(target, ok.to(precision.dtype))
    _recentre_(belief, step)
    return _wide(torch.dot(step, step))
