"""A step of the published form: observe, the evaluations of the dual, apply."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial

import torch
from torch import Tensor

from arturo_core.algorithm import trust_region
from arturo_core.algorithm.published import FullBelief
from arturo_core.distributed import reductions
from arturo_core.kernels.passes import FullObserved, GroupTerms
from arturo_core.options import RADIUS_PER_LR
from arturo_core.reporting.diagnostics import Report
from arturo_core.step.chunks import Chunk
from arturo_core.step.transaction import Journal
from arturo_core.step.work import Outcome, Step


def take(work: Step, level: Tensor, journal: Journal) -> Outcome:
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
            terms.decay is not None,
            range(1, len(chunk.state)),
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
            True,
            range(len(chunk.state)),
            work.passes.ATOMIC,
        )
        moved[chunk.layout].append([squared])
        chunk.write_back(journal)
    squared_length = journal.once(partial(work.reduction.sum, reductions.totals(moved, 1, work.home)))[0]
    return Outcome(Report(multiplier, ok, surprise, squared_length, elements), None, work.counted(ok))


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
