"""One step of each form: gains, passes over the chunks, the dual between them.

Every write goes through the step's journal (:mod:`arturo_core.transaction`), and the scalars of parameters and groups
are left to the end (:class:`Outcome`), so that a step that breaks off leaves nothing half done.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from arturo_core import reductions, trust_region
from arturo_core.curvature import CompactBelief, FullBelief, Gains, riccati
from arturo_core.diagnostics import Report
from arturo_core.kernels.chunks import Chunk, Source
from arturo_core.kernels.passes import FullObserved, GroupTerms, Passes
from arturo_core.options import DAMPING, NOISE_GAIN, RADIUS_PER_LR, RADIUS_PER_SIGNAL, Options
from arturo_core.reductions import Reduction
from arturo_core.transaction import Journal

#: Tensors, and the values that are to be written to them.
Writes = tuple[list[Tensor], list[Tensor]]


@dataclass(frozen=True)
class GroupRates:
    """What a parameter group asks of this step: 0-dimensional tensors, wide, on the home device.

    Attributes:
        lr: learning rate, as far as the weights' size lets it count, or the KL bound in nats.
        decay: lr × weight decay, at most 1 (which takes the whole weight away); None for none.
        length: ℓ, weight units.
        share: lr as a share of the group's largest so far.
        peak: the group's largest lr so far, this step's included.
        longest: ℓ to keep, or 0 where the weights' size has not been seen.
        maximize: whether the gradients are of a gain instead of a loss.
    """

    lr: Tensor
    decay: Tensor | None
    length: Tensor
    share: Tensor
    peak: Tensor
    longest: Tensor
    maximize: bool


@dataclass(frozen=True)
class Step:
    """Everything a step of either form works on.

    Attributes:
        chunks: the parameters, cut up; in the same order for every pass.
        empty: the parameters of which this rank holds no elements; their scalars go on as on other ranks.
        rates: of the groups that take part, by index.
        options: of the optimizer.
        passes: the form of the passes to run.
        ok: 1, or 0 if the step is to be skipped; 0-dimensional, wide.
        relative: largest trust radius that the weights' size allows at the peak of the schedule, weight units, or
            infinite; 0-dimensional, wide.
        home: device of the scalars.
        reduction: how sums over all parameters are taken.
    """

    chunks: Sequence[Chunk]
    empty: Sequence[Source]
    rates: dict[int, GroupRates]
    options: Options
    passes: Passes
    ok: Tensor
    relative: Tensor
    home: torch.device
    reduction: Reduction

    @cached_property
    def ok_of(self) -> dict[int, Tensor]:
        """``ok`` of every group: 0 also for one that stands still and whose lr only the device knows."""
        return {group: self.ok * (rates.lr > 0.0) for group, rates in self.rates.items()}

    @cached_property
    def sources(self) -> list[Source]:
        """The parameters, each once: those of all chunks in their order, then the empty ones."""
        found: list[Source] = []
        for chunk in self.chunks:
            found += [source for source in chunk.sources if not found or source is not found[-1]]
        return [*found, *self.empty]

    def counted(self) -> Writes:
        """Every parameter's own count of updates, this one included, yet to be written."""
        # A parameter with padding inside has several sources, and one counter.
        sources = list({id(source.scalars["step"]): source for source in self.sources}.values())
        counters = [source.scalars["step"] for source in sources]
        if not counters:
            return [], []
        ok = {
            (source.group, source.theta.device): self.ok_of[source.group].to(source.scalars["step"])
            for source in {(source.group, source.theta.device): source for source in sources}.values()
        }
        added = [ok[source.group, here.device] for source, here in zip(sources, counters, strict=True)]
        return counters, list(torch._foreach_add(counters, added))

    def reference_lr(self) -> Tensor:
        """The largest learning rate of the step."""
        return torch.stack([rates.lr for rates in self.rates.values()]).amax()

    def local(self) -> list[Local]:
        """The scalars of every chunk; chunks of one group, device and dtype share theirs."""
        known: dict[tuple[int, torch.device, torch.dtype], Local] = {}
        found = []
        for chunk in self.chunks:
            key = (chunk.group, chunk.theta.device, chunk.state[0].dtype)
            if key not in known:
                known[key] = Local.of(self, *key)
            found.append(known[key])
        return found


@dataclass(frozen=True)
class Local:
    """The scalars of a step where a chunk lives: on its device, in its dtype."""

    ok: Tensor
    terms: GroupTerms

    @classmethod
    def of(cls, step: Step, group: int, device: torch.device, dtype: torch.dtype) -> Local:
        rates = step.rates[group]
        # Not a product with ok: a learning rate that is not finite skips the step, and 0·NaN would be NaN.
        decay = (
            None if rates.decay is None else torch.where(step.ok_of[group] > 0.0, rates.decay, 0.0).to(device, dtype)
        )
        weight = torch.ones_like(rates.lr)
        if step.options.trust_region == "rms":
            moves = (rates.lr > 0.0) & torch.isfinite(rates.lr)
            weight = torch.where(moves, (step.reference_lr() / rates.lr) ** 2, weight)
        return cls(
            ok=step.ok_of[group].to(device, dtype),
            terms=GroupTerms(decay, rates.length.to(device, dtype), weight.to(device, dtype)),
        )


@dataclass(frozen=True)
class Outcome:
    """What a step leaves besides weights and statistics.

    Attributes:
        report: of the step.
        level: mean relative curvature, or None (the full form has none).
        scalars: of the parameters, yet to be written.
    """

    report: Report
    level: Tensor | None
    scalars: Writes


def take(step: Step, level: Tensor, journal: Journal) -> Outcome:
    """One step of the form that the options choose; ``level`` is the mean relative curvature of the last step."""
    return full_step(step, journal) if step.options.noise == "fixed" else compact_step(step, level, journal)


def compact_step(step: Step, level: Tensor, journal: Journal) -> Outcome:
    """A step of the self-calibrating form: two passes, the dual in closed form.

    With "rms" the bound is the KL divergence that moving every weight by the trust radius of its own group would spend,
    ε = ½ Σ λr². The radius of a group is c·lr, or lr × the RMS of ĝ/(sσ) in the metric of λ (over all groups) if that
    is more, and at most the relative radius of :mod:`arturo_core.weight_scale` times the share of its peak lr. Groups
    move in proportion to their lr: Newton's step −a/b grows with ℓ and so with the group's peak lr, and the share w of
    that peak, relative to the largest share, scales it: δ = −w f a/b.
    """
    options, ok = step.options, step.ok
    local = step.local()
    gains, variances = _gains(step, level)
    layouts = range(len(step.reduction.layouts))
    rows: dict[Hashable, list[Sequence[Tensor]]] = {(layout, group): [] for layout in layouts for group in step.rates}
    for chunk, here, gain in zip(step.chunks, local, gains, strict=True):
        observed = chunk.change(
            journal,
            partial(
                step.passes.compact_observe,
                chunk.theta,
                chunk.grad,
                CompactBelief(*chunk.state),
                here.ok,
                gain,
                here.terms,
                options,
                step.rates[chunk.group].maximize,
            ),
            chunk.state if here.terms.decay is None else (chunk.theta, *chunk.state),
            step.passes.ATOMIC,
        )
        sums = [one for one in observed if one is not None]
        rows[chunk.layout, chunk.group].append([torch.full_like(observed.decrement, chunk.theta.numel()), *sums])
    # One row a group; a group that stands still on its device takes no part.
    total = reductions.totals(rows, 8 if options.prior else 6, step.home)
    everywhere = journal.once(partial(step.reduction.sum, total.unflatten(0, (len(layouts), len(step.rates)))))
    elements, decrement, stiffness, deviation, surprise, squared, *of_prior = everywhere.unbind(dim=1)
    signal, pull = of_prior or (decrement, torch.zeros_like(decrement))
    lr = torch.stack([rates.lr for rates in step.rates.values()])
    length = torch.stack([rates.length for rates in step.rates.values()])
    precision = (stiffness / length + options.prior * elements) / options.temperature
    share = torch.stack([rates.share for rates in step.rates.values()])
    moves = (lr > 0.0).to(lr.dtype)
    if options.trust_region == "kl":
        budget = 2.0 * step.reference_lr()
    else:
        # Newton's step times lr/ℓ is lr·ĝ/(sσ); N is its RMS in units of lr. The prior's pull is no signal.
        agreement = ((lr / length) ** 2 * signal).sum() / options.temperature / (lr * lr * precision).sum()
        asked = torch.clamp(RADIUS_PER_SIGNAL**2 * agreement, min=RADIUS_PER_LR**2)
        squared_radius = torch.minimum(lr * lr * asked, torch.where(moves > 0.0, (step.relative * share) ** 2, 0.0))
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
    factor_of = dict(zip(step.rates, factors.unbind(), strict=True))
    for chunk, here in zip(step.chunks, local, strict=True):
        belief = CompactBelief(*chunk.state)
        chunk.change(
            journal,
            partial(
                step.passes.compact_apply,
                chunk.theta,
                belief,
                factor_of[chunk.group].to(here.ok),
                here.terms,
                options,
            ),
            (chunk.theta, belief.gradient, belief.displacement),
            step.passes.ATOMIC,
        )
        chunk.write_back(journal)
    found = stiffness.sum() / deviation.sum()
    level = torch.where((ok > 0.0) & torch.isfinite(found) & (found > 0.0), found, level)
    # Known before the step is taken: reducing what it did would cost every step another collective.
    squared_length = torch.where(factors > 0.0, factors * factors * squared, 0.0).sum()
    counters, counts = replace(step, ok=ok).counted()
    return Outcome(
        report=Report(multiplier, ok, surprise.sum(), squared_length, elements.sum()),
        level=level,
        scalars=([*counters, *variances[0]], [*counts, *variances[1]]),
    )


def _gains(step: Step, level: Tensor) -> tuple[list[Gains], Writes]:
    """The filter's gains of every chunk, and the variances of ĝ after it, yet to be written.

    Each parameter's filter is as far as the updates it has had.

    The expected gradient drifts because the weights move: its process noise falls with the square of the step length.
    """
    sources = step.sources
    if not sources:
        return [], ([], [])

    def column(name: str) -> Tensor:
        return torch.stack([source.scalars[name].to(step.home) for source in sources]).to(step.ok.dtype)

    ages, variance = column("step"), column("variance")
    ok = torch.stack([step.ok_of[source.group] for source in sources])
    share = torch.stack([step.rates[source.group].share for source in sources])
    predicted, gain = riccati(variance, step.options.process_noise * share * share)
    updated = torch.where(ok > 0.0, gain, variance)
    variances = [source.scalars["variance"] for source in sources], list(updated.unbind())
    columns = (
        torch.where(ok > 0.0, gain, 0.0),
        ok * torch.clamp(1.0 / (1.0 + ages), min=NOISE_GAIN),
        torch.where(ok > 0.0, predicted, 0.0),
    )
    found: list[Gains] = []
    start = 0
    for chunk in step.chunks:
        # Chunks come in the order of the sources; the slices of one share it.
        if found and not chunk.packed and chunk.sources[0] is sources[start - 1]:
            found.append(found[-1])
            continue
        like = chunk.state[0]
        part = slice(start, start + len(chunk.sources))
        gradient, noise, expected = (chunk.spread(column[part].to(like)) for column in columns)
        moves = step.ok_of[chunk.group]
        curvature, common = (moves * step.options.init_covariance).to(like), (moves * torch.log(level)).to(like)
        found.append(Gains(gradient, noise, curvature, expected, common))
        start = part.stop
    return found, variances


def full_step(step: Step, journal: Journal) -> Outcome:
    """A step of the published form: observe, the evaluations of the dual, apply."""
    options, ok = step.options, step.ok
    local = step.local()
    layouts = range(len(step.reduction.layouts))
    rows: dict[Hashable, list[Sequence[Tensor]]] = {layout: [] for layout in layouts}
    lowest: list[list[Tensor]] = [[] for _ in layouts]
    spectra: list[trust_region.Spectrum] = []
    units: list[Tensor] = []
    for chunk, here in zip(step.chunks, local, strict=True):
        observed, terms_of_dual = chunk.change(
            journal,
            partial(_full_observe, step, chunk, here),
            chunk.state[1:] if here.terms.decay is None else (chunk.theta, *chunk.state[1:]),
            step.passes.ATOMIC,
        )
        spectra.append(terms_of_dual)
        lowest[chunk.layout].append(observed.least)
        units.append(observed.unit.to(step.home, ok.dtype))
        size = torch.full_like(observed.total, chunk.theta.numel())
        sums = [observed.total, observed.value, observed.first, observed.precision, observed.surprise, size]
        rows[chunk.layout].append(sums)
    least = journal.once(partial(step.reduction.least, lowest, step.home))
    # Every chunk has its own unit of η, so that no sum leaves float32.
    unit = torch.stack(units) if units else ok.new_zeros(0)
    factors = _by_layout(step, [unit**2, None, 1.0 / unit, None, None, None], unit)
    everywhere = journal.once(partial(step.reduction.sum, reductions.totals(rows, 6, step.home, factors)))
    total, value, first_derivative, precision_sum, surprise, elements = everywhere.unbind()

    lr = step.reference_lr()
    budget = 2.0 * lr if options.trust_region == "kl" else (RADIUS_PER_LR * lr) ** 2 * precision_sum
    eta_min = (-least).clamp(min=0.0)
    convex = least > 0.0
    # Negative curvature somewhere: the Newton step does not exist, and the bound decides.
    newton_value = torch.where(convex, value, torch.inf)
    newton = trust_region.SecularSums(newton_value, first_derivative, first_derivative)
    bracket = trust_region.start(budget, total, newton, convex)
    factors = _by_layout(step, [None, 1.0 / unit, 1.0 / unit**2], unit)
    pole = _spread(eta_min / unit, local)
    for _ in range(trust_region.EVALUATIONS):
        values: dict[Hashable, list[Sequence[Tensor]]] = {layout: [] for layout in layouts}
        for chunk, spectrum, low, t in zip(step.chunks, spectra, pole, _spread(bracket.t / unit, local), strict=True):
            values[chunk.layout].append(step.passes.full_secular(spectrum, low, t))
        everywhere = journal.once(partial(step.reduction.sum, reductions.totals(values, 3, step.home, factors)))
        bracket = trust_region.advance(bracket, trust_region.SecularSums(*everywhere.unbind()), budget)
    multiplier = trust_region.settle(bracket, newton_value, eta_min, budget, options.kl_rtol)
    if options.trust_region == "rms":
        lengths: dict[Hashable, list[Sequence[Tensor]]] = {layout: [] for layout in layouts}
        for chunk, spectrum, here, low, t in zip(
            step.chunks, spectra, local, pole, _spread(multiplier.t / unit, local), strict=True
        ):
            length = step.passes.full_length(chunk.state[0], spectrum, low, t, here.terms)
            lengths[chunk.layout].append([length.to(ok.dtype) * here.terms.weight])
        squared_length = journal.once(partial(step.reduction.sum, reductions.totals(lengths, 1, step.home)))[0]
        multiplier = trust_region.within(multiplier, squared_length, (RADIUS_PER_LR * lr) ** 2 * elements)
    ok = ok * trust_region.usable(multiplier)
    # A skipped step takes a step of length zero from a point where nothing is infinite.
    points = (
        _spread(torch.where(ok > 0.0, eta_min / unit, 0.0), local),
        _spread(torch.where(ok > 0.0, multiplier.t / unit, 1.0), local),
        _spread(torch.where(ok > 0.0, multiplier.scale * multiplier.share, 0.0).expand_as(unit), local),
    )
    moved: dict[Hashable, list[Sequence[Tensor]]] = {layout: [] for layout in layouts}
    for chunk, spectrum, here, low, t, scale in zip(step.chunks, spectra, local, *points, strict=True):
        precision, *belief = chunk.state
        squared = chunk.change(
            journal,
            partial(
                step.passes.full_apply,
                chunk.theta,
                precision,
                FullBelief(*belief),
                spectrum,
                here.ok * ok.to(here.ok),
                low,
                t,
                scale * here.ok,
                here.terms,
                options,
            ),
            (chunk.theta, *chunk.state),
            step.passes.ATOMIC,
        )
        moved[chunk.layout].append([squared])
        chunk.write_back(journal)
    squared_length = journal.once(partial(step.reduction.sum, reductions.totals(moved, 1, step.home)))[0]
    taken = replace(step, ok=ok)
    return Outcome(Report(multiplier, ok, surprise, squared_length, elements), None, taken.counted())


def _full_observe(step: Step, chunk: Chunk, here: Local) -> tuple[FullObserved, trust_region.Spectrum]:
    """The first pass, and what the evaluations of the dual read: two tensors instead of the four behind them."""
    precision, *belief = chunk.state
    terms_of_dual = trust_region.Spectrum(torch.empty_like(precision), torch.empty_like(precision))
    first = chunk.spread(torch.stack([source.scalars["step"] for source in chunk.sources]).eq(0).to(precision))
    observed = step.passes.full_observe(
        chunk.theta,
        chunk.grad,
        precision,
        FullBelief(*belief),
        terms_of_dual,
        here.ok,
        first,
        here.terms,
        step.options,
        step.rates[chunk.group].maximize,
    )
    return observed, terms_of_dual


def _spread(values: Tensor, local: Sequence[Local]) -> list[Tensor]:
    """One wide scalar a chunk, on the chunks' own devices and in their dtypes."""
    known = {here.ok: values.to(here.ok).unbind() for here in local}
    return [known[here.ok][index] for index, here in enumerate(local)]


def _by_layout(step: Step, columns: Sequence[Tensor | None], like: Tensor) -> dict[Hashable, Tensor]:
    """Factors of the sums of every chunk, one column each (None for 1), by layout."""
    table = torch.stack([torch.ones_like(like) if column is None else column for column in columns], dim=1)
    found: dict[Hashable, Tensor] = {}
    for layout in range(len(step.reduction.layouts)):
        own = [index for index, chunk in enumerate(step.chunks) if chunk.layout == layout]
        found[layout] = table if len(own) == len(table) else table[own]
    return found
