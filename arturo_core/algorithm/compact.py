"""The default form: a filter that calibrates itself, precision tied to the curvature, the dual in closed form.

Along each coordinate the expected gradient is modelled as linear in the weight, E[g](θ + δ) ≈ ĝ + hδ. A Kalman filter
tracks ĝ and h from ordinary stochastic gradients alone (arXiv 2310.20574, section on the surrogate fit). It is kept
*centred*: ĝ is the prediction at the current mean, so every displacement of the mean re-centres it. The noise R of
every coordinate is estimated from the innovations (Mehra 1970), so that all gains are dimensionless, and of the
covariance is kept what that leaves open.

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
from arturo_core.algorithm.form import STEP, Form, StateTensor, constant, ones, zeros
from arturo_core.algorithm.older import of_version_0_1
from arturo_core.distributed import reductions
from arturo_core.numerics import flushed
from arturo_core.options import (
    ADAPTIVE,
    CURVATURE_RANGE,
    DAMPING,
    NOISE_GAIN,
    RADIUS_PER_LR,
    RADIUS_PER_SIGNAL,
    Options,
)
from arturo_core.reporting.diagnostics import Report
from arturo_core.step.transaction import Journal
from arturo_core.step.work import Outcome, Step, Writes

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


def step(work: Step, level: Tensor, journal: Journal) -> Outcome:
    """A step of the self-calibrating form: two passes, the dual in closed form.

    With "rms" the bound is the KL divergence that moving every weight by the trust radius of its own group would spend,
    ε = ½ Σ λr². The radius of a group is c·lr, or lr × the RMS of ĝ/(sσ) in the metric of λ (over all groups) if that
    is more, and at most the relative radius of :mod:`arturo_core.step.weight_scale` times the share of its peak lr.
    Groups move in proportion to their lr: Newton's step −a/b grows with ℓ and so with the group's peak lr, and the
    share w of that peak, relative to the largest share, scales it: δ = −w f a/b.
    """
    options, ok = work.options, work.ok
    terms_of = work.terms()
    gains, variances = _gains(work, level)
    layouts = range(len(work.reduction.layouts))
    rows: dict[Hashable, list[Sequence[Tensor]]] = {(layout, group): [] for layout in layouts for group in work.rates}
    for chunk, terms, gain in zip(work.chunks, terms_of, gains, strict=True):
        observed = chunk.change(
            journal,
            partial(
                work.passes.compact_observe,
                chunk.theta,
                chunk.grad,
                Kept(*chunk.state),
                gain,
                terms,
                options,
                work.rates[chunk.group].maximize,
            ),
            chunk.state if terms.decay is None else (chunk.theta, *chunk.state),
            work.passes.ATOMIC,
        )
        sums = [one for one in observed if one is not None]
        rows[chunk.layout, chunk.group].append([torch.full_like(observed.decrement, chunk.theta.numel()), *sums])
    # One row a group; a group that stands still on its device takes no part.
    total = reductions.totals(rows, 8 if options.prior else 6, work.home)
    everywhere = journal.once(partial(work.reduction.sum, total.unflatten(0, (len(layouts), len(work.rates)))))
    elements, decrement, stiffness, deviation, surprise, squared, *of_prior = everywhere.unbind(dim=1)
    signal, pull = of_prior or (decrement, torch.zeros_like(decrement))
    lr = torch.stack([rates.lr for rates in work.rates.values()])
    length = torch.stack([rates.length for rates in work.rates.values()])
    precision = (stiffness / length + options.prior * elements) / options.temperature
    share = torch.stack([rates.share for rates in work.rates.values()])
    moves = (lr > 0.0).to(lr.dtype)
    if options.trust_region == "kl":
        budget = 2.0 * work.reference_lr()
    else:
        # Newton's step times lr/ℓ is lr·ĝ/(sσ); N is its RMS in units of lr. The prior's pull is no signal.
        agreement = ((lr / length) ** 2 * signal).sum() / options.temperature / (lr * lr * precision).sum()
        asked = torch.clamp(RADIUS_PER_SIGNAL**2 * agreement, min=RADIUS_PER_LR**2)
        squared_radius = torch.minimum(lr * lr * asked, torch.where(moves > 0.0, (work.relative * share) ** 2, 0.0))
        budget = (squared_radius * precision).sum()
    part = torch.where(lr > 0.0, share / share.amax(), 0.0)
    if options.trust_region == "kl":
        part = moves
    descent = (part * part * decrement).sum()
    if options.prior and options.trust_region == "rms":
        # The prior moves weights without gradients for next to no divergence: the plain RMS of its pull is bounded.
        most = (squared_radius * elements).sum() / (part * part * pull).sum()
        budget = torch.fmin(budget, descent / options.temperature * most)
    multiplier, factor = trust_region.tied_multiplier(descent, budget, options.temperature, DAMPING)
    ok = ok * trust_region.usable(multiplier)
    factors = torch.where((ok > 0.0) & (part > 0.0), factor * part, 0.0)
    factor_of = dict(zip(work.rates, factors.unbind(), strict=True))
    for chunk, terms in zip(work.chunks, terms_of, strict=True):
        kept = Kept(*chunk.state)
        chunk.change(
            journal,
            partial(
                work.passes.compact_apply,
                chunk.theta,
                kept,
                factor_of[chunk.group].to(terms.ok),
                terms,
                options,
            ),
            (chunk.theta, kept.direction, kept.displacement),
            work.passes.ATOMIC,
        )
        chunk.write_back(journal)
    pending = _pending(work, factor_of)
    found = stiffness.sum() / deviation.sum()
    level = torch.where((ok > 0.0) & torch.isfinite(found) & (found > 0.0), found, level)
    # Known before the step is taken: reducing what it did would cost every step another collective.
    squared_length = torch.where(factors > 0.0, factors * factors * squared, 0.0).sum()
    counters, counts = replace(work, ok=ok).counted()
    return Outcome(
        report=Report(multiplier, ok, surprise.sum(), squared_length, elements.sum()),
        level=level,
        scalars=([*counters, *variances[0], *pending[0]], [*counts, *variances[1], *pending[1]]),
    )


def _pending(work: Step, factor_of: Mapping[int, Tensor]) -> Writes:
    """What of this step's re-centring the next one has to do, yet to be written; ``factor_of`` is f of every group."""
    held: list[Tensor] = []
    values: list[Tensor] = []
    for source in work.sources:
        factor = factor_of[source.group]
        if not source.state or not defers(source.theta.dtype, source.state[0].dtype, work.options):
            factor = torch.zeros_like(factor)
        taken = work.ok_of[source.group] > 0.0
        for name, value in (("pending", factor), ("moved", factor * work.rates[source.group].length)):
            before = source.scalars[name]
            held.append(before)
            values.append(torch.where(taken, value, before.to(value)).to(before))
    return held, values


def _gains(work: Step, level: Tensor) -> tuple[list[Gains], Writes]:
    """The filter's gains of every chunk, and the variances of ĝ after it, yet to be written.

    Each parameter's filter is as far as the updates it has had.

    The expected gradient drifts because the weights move: its process noise falls with the square of the step length.
    """
    sources = work.sources
    if not sources:
        return [], ([], [])

    def column(name: str) -> Tensor:
        return torch.stack([source.scalars[name].to(work.home) for source in sources]).to(work.ok.dtype)

    ages, variance = column("step"), column("variance")
    ok = torch.stack([work.ok_of[source.group] for source in sources])
    share = torch.stack([work.rates[source.group].share for source in sources])
    predicted, gain = riccati(variance, work.options.process_noise * share * share)
    updated = torch.where(ok > 0.0, gain, variance)
    variances = [source.scalars["variance"] for source in sources], list(updated.unbind())
    columns = (
        torch.where(ok > 0.0, gain, 0.0),
        ok * torch.clamp(1.0 / (1.0 + ages), min=NOISE_GAIN),
        torch.where(ok > 0.0, predicted, 0.0),
        column("pending"),
        column("moved"),
    )
    found: list[Gains] = []
    start = 0
    for chunk in work.chunks:
        # Chunks come in the order of the sources; the slices of one share it.
        if found and not chunk.packed and chunk.sources[0] is sources[start - 1]:
            found.append(found[-1])
            continue
        like = chunk.state[0]
        part = slice(start, start + len(chunk.sources))
        gradient, noise, expected, *last = (chunk.spread(column[part].to(like)) for column in columns)
        moves = work.ok_of[chunk.group]
        curvature, common = (moves * work.options.init_covariance).to(like), (moves * torch.log(level)).to(like)
        found.append(Gains(gradient, noise, curvature, expected, common, *last))
        start = part.stop
    return found, variances


def precision(held: Mapping[str, Tensor], length: float, options: Options) -> Tensor:
    """λ of the weights whose state is given (1/weight²)."""
    return tied_precision(held["curvature"] * held["deviation"] / length + options.prior, options.temperature)


def curvature(held: Mapping[str, Tensor], options: Options) -> Tensor:
    """Curvature of the weights whose state is given, relative to its prior."""
    return held["curvature"]


FORM = Form(
    rows=ROWS,
    defaults=ADAPTIVE,
    sized=True,
    tied=True,
    least_curvature=CURVATURE_RANGE[0],
    step=step,
    precision=precision,
    curvature=curvature,
    upgraded=partial(of_version_0_1, least_deviation=NOISE_FLOOR**0.5),
)
