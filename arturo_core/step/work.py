"""Everything that a step of any form works on, and what it leaves to be written at its end.

Every write goes through the step's journal (:mod:`arturo_core.step.transaction`), and the scalars of parameters and
groups are left to the end (:class:`Outcome`), so that a step that breaks off leaves nothing half done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from arturo_core.distributed.reductions import Reduction
from arturo_core.kernels.passes import GroupTerms, Passes
from arturo_core.options import Options
from arturo_core.reporting.diagnostics import Report
from arturo_core.step.chunks import Chunk, Source
from arturo_core.step.columns import Columns, Scattered, Writes
from arturo_core.step.learning_rate import GroupRates


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
        flat: columns of the scalars, where the entries lie side by side.
        squares: chunks, and Σθ² of each source after the step, as kernels find it on their way.
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
    flat: Columns | None = None
    squares: list[tuple[Chunk, Tensor]] = field(default_factory=list)

    def is_atomic(self, chunk: Chunk) -> bool:
        """Whether an exception in a pass over a chunk comes before its first write."""
        return chunk.kernel is not None or self.passes.ATOMIC

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

    @cached_property
    def columns(self) -> Columns:
        """The scalars of :attr:`sources`; there is one at least."""
        return self.flat or Scattered(self.sources, self.ok)

    def counted(self, ok: Tensor) -> Writes:
        """Every parameter's own count of updates, this one included, yet to be written; ``ok`` as :attr:`ok`."""
        if not self.sources:
            return [], []
        moves = self.columns.of_groups(self.ok_of)
        return self.columns.write("step", self.columns.read("step") + torch.where(ok > 0.0, moves, 0.0))

    def reference_lr(self) -> Tensor:
        """The largest learning rate of the step."""
        return torch.stack([rates.lr for rates in self.rates.values()]).amax()

    def terms(self) -> list[GroupTerms]:
        """The scalars of every chunk; chunks of one group, device and dtype share theirs."""
        known: dict[tuple[int, torch.device, torch.dtype], GroupTerms] = {}
        found = []
        for chunk in self.chunks:
            key = (chunk.group, chunk.theta.device, chunk.dtype)
            if key not in known:
                known[key] = self._terms(*key)
            found.append(known[key])
        return found

    def _terms(self, group: int, device: torch.device, dtype: torch.dtype) -> GroupTerms:
        rates, ok = self.rates[group], self.ok_of[group]
        # Not a product with ok: a learning rate that is not finite skips the step, and 0·NaN would be NaN.
        decay = None if rates.decay is None else torch.where(ok > 0.0, rates.decay, 0.0).to(device, dtype)
        weight = torch.ones_like(rates.lr)
        if self.options.trust_region == "rms":
            moves = (rates.lr > 0.0) & torch.isfinite(rates.lr)
            weight = torch.where(moves, (self.reference_lr() / rates.lr) ** 2, weight)
        return GroupTerms(ok.to(device, dtype), decay, rates.length.to(device, dtype), weight.to(device, dtype))


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
