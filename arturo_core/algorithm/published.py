"""The published form (arXiv 2310.20574): constant noise levels, a precision of its own, the dual by evaluations.

Along each coordinate the expected gradient is modelled as linear in the weight, E[g](θ + δ) ≈ ĝ + hδ. A two-state
Kalman filter per coordinate (recursive least squares with process noise) tracks ĝ and h from ordinary stochastic
gradients alone. The belief is kept *centred*: ĝ is the prediction at the current mean, so every displacement of the
mean has to re-centre it. That is the published algorithm in other coordinates (r = ĝ − hθ), without its cancellation,
and so it survives float32.

The functions of tensors know nothing of devices or chunks; :func:`step` is a whole step.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from arturo_core.algorithm import trust_region
from arturo_core.algorithm.form import STEP, Form, StateTensor, constant
from arturo_core.distributed import reductions
from arturo_core.kernels.passes import FullObserved, GroupTerms
from arturo_core.numerics import wide_dtype
from arturo_core.options import PAPER, RADIUS_PER_LR, Options
from arturo_core.reporting.diagnostics import Report
from arturo_core.step.chunks import Chunk
from arturo_core.step.transaction import Journal
from arturo_core.step.work import Outcome, Step

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


def step(work: Step, level: Tensor, journal: Journal) -> Outcome:
    """A step of the published form: observe, the evaluations of the dual, apply."""
    options, ok = work.options, work.ok
    terms_of = work.terms()
    layouts = range(len(work.reduction.layouts))
    rows: dict[Hashable, list[Sequence[Tensor]]] = {layout: [] for layout in layouts}
    lowest: list[list[Tensor]] = [[] for _ in layouts]
    spectra: list[trust_region.Spectrum] = []
    units: list[Tensor] = []
    for chunk, terms in zip(work.chunks, terms_of, strict=True):
        observed, terms_of_dual = chunk.change(
            journal,
            partial(_observe, work, chunk, terms),
            chunk.state[1:] if terms.decay is None else (chunk.theta, *chunk.state[1:]),
            work.passes.ATOMIC,
        )
        spectra.append(terms_of_dual)
        lowest[chunk.layout].append(observed.least)
        units.append(observed.unit.to(work.home, ok.dtype))
        size = torch.full_like(observed.total, chunk.theta.numel())
        sums = [observed.total, observed.value, observed.first, observed.precision, observed.surprise, size]
        rows[chunk.layout].append(sums)
    least = journal.once(partial(work.reduction.least, lowest, work.home))
    # Every chunk has its own unit of η, so that no sum leaves float32.
    unit = torch.stack(units) if units else ok.new_zeros(0)
    factors = _by_layout(work, [unit**2, None, 1.0 / unit, None, None, None], unit)
    everywhere = journal.once(partial(work.reduction.sum, reductions.totals(rows, 6, work.home, factors)))
    total, value, first_derivative, precision_sum, surprise, elements = everywhere.unbind()

    lr = work.reference_lr()
    budget = 2.0 * lr if options.trust_region == "kl" else (RADIUS_PER_LR * lr) ** 2 * precision_sum
    eta_min = (-least).clamp(min=0.0)
    convex = least > 0.0
    # Negative curvature somewhere: the Newton step does not exist, and the bound decides.
    newton_value = torch.where(convex, value, torch.inf)
    newton = trust_region.SecularSums(newton_value, first_derivative, first_derivative)
    bracket = trust_region.start(budget, total, newton, convex)
    factors = _by_layout(work, [None, 1.0 / unit, 1.0 / unit**2], unit)
    pole = _spread(eta_min / unit, terms_of)
    for _ in range(trust_region.EVALUATIONS):
        values: dict[Hashable, list[Sequence[Tensor]]] = {layout: [] for layout in layouts}
        points = _spread(bracket.t / unit, terms_of)
        for chunk, spectrum, low, t in zip(work.chunks, spectra, pole, points, strict=True):
            values[chunk.layout].append(work.passes.full_secular(spectrum, low, t))
        everywhere = journal.once(partial(work.reduction.sum, reductions.totals(values, 3, work.home, factors)))
        bracket = trust_region.advance(bracket, trust_region.SecularSums(*everywhere.unbind()), budget)
    multiplier = trust_region.settle(bracket, newton_value, eta_min, budget, options.kl_rtol)
    if options.trust_region == "rms":
        lengths: dict[Hashable, list[Sequence[Tensor]]] = {layout: [] for layout in layouts}
        for chunk, spectrum, terms, low, t in zip(
            work.chunks, spectra, terms_of, pole, _spread(multiplier.t / unit, terms_of), strict=True
        ):
            length = work.passes.full_length(chunk.state[0], spectrum, low, t, terms)
            lengths[chunk.layout].append([length.to(ok.dtype) * terms.weight])
        squared_length = journal.once(partial(work.reduction.sum, reductions.totals(lengths, 1, work.home)))[0]
        multiplier = trust_region.within(multiplier, squared_length, (RADIUS_PER_LR * lr) ** 2 * elements)
    ok = ok * trust_region.usable(multiplier)
    # A skipped step takes a step of length zero from a point where nothing is infinite.
    taken_at = (
        _spread(torch.where(ok > 0.0, eta_min / unit, 0.0), terms_of),
        _spread(torch.where(ok > 0.0, multiplier.t / unit, 1.0), terms_of),
        _spread(torch.where(ok > 0.0, multiplier.scale * multiplier.share, 0.0).expand_as(unit), terms_of),
    )
    moved: dict[Hashable, list[Sequence[Tensor]]] = {layout: [] for layout in layouts}
    for chunk, spectrum, terms, low, t, scale in zip(work.chunks, spectra, terms_of, *taken_at, strict=True):
        precision, *belief = chunk.state
        squared = chunk.change(
            journal,
            partial(
                work.passes.full_apply,
                chunk.theta,
                precision,
                FullBelief(*belief),
                spectrum,
                low,
                t,
                scale * terms.ok,
                terms._replace(ok=terms.ok * ok.to(terms.ok)),
                options,
            ),
            (chunk.theta, *chunk.state),
            work.passes.ATOMIC,
        )
        moved[chunk.layout].append([squared])
        chunk.write_back(journal)
    squared_length = journal.once(partial(work.reduction.sum, reductions.totals(moved, 1, work.home)))[0]
    taken = replace(work, ok=ok)
    return Outcome(Report(multiplier, ok, surprise, squared_length, elements), None, taken.counted())


def _observe(work: Step, chunk: Chunk, terms: GroupTerms) -> tuple[FullObserved, trust_region.Spectrum]:
    """The first pass, and what the evaluations of the dual read: two tensors instead of the four behind them."""
    precision, *belief = chunk.state
    terms_of_dual = trust_region.Spectrum(torch.empty_like(precision), torch.empty_like(precision))
    first = chunk.spread(torch.stack([source.scalars["step"] for source in chunk.sources]).eq(0).to(precision))
    observed = work.passes.full_observe(
        chunk.theta,
        chunk.grad,
        precision,
        FullBelief(*belief),
        terms_of_dual,
        first,
        terms,
        work.options,
        work.rates[chunk.group].maximize,
    )
    return observed, terms_of_dual


def _spread(values: Tensor, terms_of: Sequence[GroupTerms]) -> list[Tensor]:
    """One wide scalar a chunk, on the chunks' own devices and in their dtypes."""
    known = {terms.ok: values.to(terms.ok).unbind() for terms in terms_of}
    return [known[terms.ok][index] for index, terms in enumerate(terms_of)]


def _by_layout(work: Step, columns: Sequence[Tensor | None], like: Tensor) -> dict[Hashable, Tensor]:
    """Factors of the sums of every chunk, one column each (None for 1), by layout."""
    table = torch.stack([torch.ones_like(like) if column is None else column for column in columns], dim=1)
    found: dict[Hashable, Tensor] = {}
    for layout in range(len(work.reduction.layouts)):
        own = [index for index, chunk in enumerate(work.chunks) if chunk.layout == layout]
        found[layout] = table if len(own) == len(table) else table[own]
    return found


def precision(held: Mapping[str, Tensor], length: float, options: Options) -> Tensor:
    """λ of the weights whose state is given (1/weight²)."""
    return held["precision"].clone()


def curvature(held: Mapping[str, Tensor], options: Options) -> Tensor:
    """Curvature of the weights whose state is given, relative to its prior."""
    return held["hessian"] / options.init_hessian


FORM = Form(
    rows=ROWS,
    defaults=PAPER,
    sized=False,
    tied=False,
    least_curvature=0.0,
    step=step,
    precision=precision,
    curvature=curvature,
    upgraded=lambda saved: saved,
)
