"""A step of the default form: what its two passes take, and what is written at its end."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from arturo_core.algorithm import trust_region
from arturo_core.algorithm.compact import Gains, Kept, Sums, dual, filters
from arturo_core.distributed import reductions
from arturo_core.kernels import many
from arturo_core.kernels.passes import CompactObserved, GroupTerms
from arturo_core.reporting.diagnostics import Report
from arturo_core.step import narrow
from arturo_core.step.chunks import Chunk
from arturo_core.step.columns import Writes, joined
from arturo_core.step.transaction import Journal
from arturo_core.step.work import Outcome, Step


def take(work: Step, level: Tensor, journal: Journal) -> Outcome:
    """Two passes over the parameters, and the dual in closed form between them."""
    options, ok = work.options, work.ok
    terms_of = work.terms()
    parts = _parts(work)
    gains, variances = _gains(work, level, parts)
    seeds = _seeds(work, parts)
    layouts = range(len(work.reduction.layouts))
    rows: dict[Hashable, list[Sequence[Tensor]]] = {(layout, group): [] for layout in layouts for group in work.rates}
    for chunk, terms, gain, seed in zip(work.chunks, terms_of, gains, seeds, strict=True):
        observed = chunk.change(
            journal,
            partial(_observe, work, chunk, gain, seed, terms),
            terms.decay is not None,
            range(len(chunk.state)),
            work.is_atomic(chunk),
        )
        columns = [one for one in observed if one is not None]
        rows[chunk.layout, chunk.group].append([torch.full_like(observed.decrement, chunk.elements), *columns])
    # One row a group; a group that stands still on its device takes no part.
    total = reductions.totals(rows, 8 if options.prior else 6, work.home)
    everywhere = journal.once(partial(work.reduction.sum, total.unflatten(0, (len(layouts), len(work.rates)))))
    elements, decrement, stiffness, deviation, surprise, squared, *of_prior = everywhere.unbind(dim=1)
    signal, pull = of_prior or (decrement, torch.zeros_like(decrement))
    lr = torch.stack([rates.lr for rates in work.rates.values()])
    length = torch.stack([rates.length for rates in work.rates.values()])
    share = torch.stack([rates.share for rates in work.rates.values()])
    sums = Sums(elements, decrement, stiffness, signal, pull)
    multiplier, factors = dual(sums, lr, length, share, work.relative, options)
    ok = ok * trust_region.usable(multiplier)
    factors = torch.where((ok > 0.0) & (factors > 0.0), factors, 0.0)
    factor_of = dict(zip(work.rates, factors.unbind(), strict=True))
    for chunk, terms, seed in zip(work.chunks, terms_of, seeds, strict=True):
        chunk.change(
            journal,
            partial(_apply, work, chunk, factor_of[chunk.group].to(terms.ok), seed, terms),
            True,
            (0, 3, *range(4, len(chunk.state))),
            work.is_atomic(chunk),
        )
        chunk.write_back(journal)
    pending = _pending(work, factor_of)
    found = stiffness.sum() / deviation.sum()
    level = torch.where((ok > 0.0) & torch.isfinite(found) & (found > 0.0), found, level)
    # Known before the step is taken: reducing what it did would cost every step another collective.
    squared_length = torch.where(factors > 0.0, factors * factors * squared, 0.0).sum()
    return Outcome(
        report=Report(multiplier, ok, surprise.sum(), squared_length, elements.sum()),
        level=level,
        scalars=joined(work.counted(ok), variances, pending),
    )


def _parts(work: Step) -> list[slice]:
    """Where the sources of every chunk are among all; the slices of one source share its place."""
    found: list[slice] = []
    start = 0
    for chunk in work.chunks:
        # Chunks come in the order of the sources.
        if found and not chunk.packed and chunk.kernel is None and chunk.sources[0] is work.sources[start - 1]:
            found.append(found[-1])
        else:
            found.append(slice(start, start + len(chunk.sources)))
            start = found[-1].stop
    return found


def _seeds(work: Step, parts: Sequence[slice]) -> list[Tensor | None]:
    """What every chunk is rounded with, where it is rounded at random."""
    at_random = [narrow.is_rounded(chunk, work.options) for chunk in work.chunks]
    if not any(at_random):
        return [None] * len(parts)
    seeds = narrow.seeds(work.columns)
    return [seeds[part] if rounds else None for rounds, part in zip(at_random, parts, strict=True)]


def _observe(work: Step, chunk: Chunk, gains: Gains, seeds: Tensor | None, terms: GroupTerms) -> CompactObserved:
    maximize = work.rates[chunk.group].maximize
    if chunk.kernel is not None:
        return many.observe(chunk.kernel, chunk.table, len(chunk.sources), gains, terms, maximize, seeds)
    if seeds is not None:
        return narrow.observe(work.passes, chunk, gains, seeds, terms, work.options, maximize)
    return work.passes.compact_observe(
        chunk.theta, chunk.grad, Kept(*chunk.state), gains, terms, work.options, maximize
    )


def _apply(work: Step, chunk: Chunk, factor: Tensor, seeds: Tensor | None, terms: GroupTerms) -> None:
    if chunk.kernel is not None:
        work.squares.append((chunk, chunk.kernel.apply(chunk.table, factor, terms.length, seeds)))
    elif seeds is not None:
        narrow.apply(work.passes, chunk, factor, seeds, terms, work.options)
    else:
        work.passes.compact_apply(chunk.theta, Kept(*chunk.state), factor, terms, work.options)


def _pending(work: Step, factor_of: Mapping[int, Tensor]) -> Writes:
    """What of this step's re-centring the next one has to do, yet to be written; ``factor_of`` is f of every group."""
    if not work.sources:
        return [], []
    columns = work.columns
    takes = columns.of_groups(work.ok_of) > 0.0
    found = {
        "pending": factor_of,
        "moved": {group: factor * work.rates[group].length for group, factor in factor_of.items()},
    }
    mask = columns.deferred(work.options)
    writes: Writes = ([], [])
    for name, values in found.items():
        column = columns.of_groups(values)
        column = torch.where(takes, column if mask is None else column * mask, columns.read(name))
        writes = joined(writes, columns.write(name, column))
    return writes


def _gains(work: Step, level: Tensor, parts: Sequence[slice]) -> tuple[list[Gains], Writes]:
    """The filter's gains of every chunk, and the variances of ĝ after it, yet to be written."""
    if not work.sources:
        return [], ([], [])
    read, of_groups = work.columns.read, work.columns.of_groups
    share = of_groups({group: rates.share for group, rates in work.rates.items()})
    where = filters(read("step"), read("variance"), share, of_groups(work.ok_of), work.options)
    columns = (where.gradient, where.noise, where.predicted, read("pending"), read("moved"))
    found: list[Gains] = []
    for index, (chunk, part) in enumerate(zip(work.chunks, parts, strict=True)):
        if index and part == parts[index - 1]:
            found.append(found[-1])
            continue
        device, dtype = chunk.state[0].device, chunk.dtype
        gradient, noise, expected, *last = (chunk.spread(column[part].to(device, dtype)) for column in columns)
        moves = work.ok_of[chunk.group]
        curvature, common = moves * work.options.init_covariance, moves * torch.log(level)
        curvature, common = curvature.to(device, dtype), common.to(device, dtype)
        found.append(Gains(gradient, noise, curvature, expected, common, *last))
    return found, work.columns.write("variance", where.variance)
