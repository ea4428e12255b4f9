"""One step of each form: gains, passes over the chunks, the dual between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from arturo_core import reductions, trust_region
from arturo_core.curvature import CompactBelief, FullBelief, Gains, riccati
from arturo_core.diagnostics import Report
from arturo_core.kernels.chunks import Chunk
from arturo_core.kernels.passes import GroupTerms, Passes
from arturo_core.options import NOISE_GAIN, RADIUS_PER_LR, Options

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class GroupRates:
    """What a parameter group asks of this step: 0-dimensional tensors, wide, on the home device.

    Attributes:
        lr: learning rate, or the KL bound in nats.
        decay: lr × weight decay; None for none.
        length: ℓ, weight units.
        maximize: whether the gradients are of a gain instead of a loss.
        bucket: groups of one learning rate share a bucket of the dual.
    """

    lr: Tensor
    decay: Tensor | None
    length: Tensor
    maximize: bool
    bucket: int


@dataclass(frozen=True)
class Step:
    """Everything a step of either form works on."""

    chunks: Sequence[Chunk]
    rates: dict[int, GroupRates]
    options: Options
    passes: Passes
    ok: Tensor
    age: Tensor
    home: torch.device
    process_group: ProcessGroup | None

    def terms(self, group: int) -> GroupTerms:
        rates = self.rates[group]
        decay = None if rates.decay is None else rates.decay * self.ok
        return GroupTerms(decay, rates.length, self.weight(rates))

    @property
    def count(self) -> int:
        """Elements that take part in the step (of this rank)."""
        return sum(chunk.theta.numel() for chunk in self.chunks)

    def reference_lr(self) -> Tensor:
        """The largest learning rate of the step: the metric's unit of length."""
        return torch.stack([rates.lr for rates in self.rates.values()]).amax()

    def weight(self, rates: GroupRates) -> Tensor:
        """ω of a group: (lr_ref/lr)² with "rms"; a group that stands still does not count."""
        if self.options.trust_region == "kl":
            return torch.ones_like(rates.lr)
        ratio = self.reference_lr() / rates.lr
        return torch.where(rates.lr > 0.0, ratio * ratio, torch.ones_like(ratio))

    def budget(self, precision: Tensor) -> Tensor:
        """2ε: twice lr in nats with "kl"; with "rms" what moving every weight by the trust radius would spend.

        Args:
            precision: Σ λ over all parameters of the step.
        """
        lr = self.reference_lr()
        return 2.0 * lr if self.options.trust_region == "kl" else (RADIUS_PER_LR * lr) ** 2 * precision


@dataclass(frozen=True)
class Local:
    """The scalars of a step where a chunk lives: on its device, in its dtype, looked up once for all its chunks."""

    ok: Tensor
    terms: GroupTerms
    gains: Gains | None = None


def _localize(step: Step, gains: Gains | None = None) -> list[Local]:
    """One entry a chunk; chunks of one group, device and dtype share theirs."""
    known: dict[tuple[int, torch.device, torch.dtype], Local] = {}
    found = []
    for chunk in step.chunks:
        device, dtype = chunk.theta.device, chunk.state[0].dtype
        key = (chunk.group, device, dtype)
        if key not in known:

            def here(value: Tensor, device: torch.device = device, dtype: torch.dtype = dtype) -> Tensor:
                return value.to(device, dtype)

            terms = step.terms(chunk.group)
            known[key] = Local(
                ok=here(step.ok),
                terms=GroupTerms(
                    None if terms.decay is None else here(terms.decay), here(terms.length), here(terms.weight)
                ),
                gains=None if gains is None else Gains(*map(here, gains)),
            )
        found.append(known[key])
    return found


def compact_step(step: Step) -> Report:
    """A step of the self-calibrating form: two passes, the dual in closed form."""
    options, ok = step.options, step.ok
    predicted = riccati(step.age, options.process_noise)
    gain = predicted / (1.0 + predicted)
    gains = Gains(
        gradient=ok * gain,
        noise=ok * torch.clamp(1.0 / (1.0 + step.age), min=NOISE_GAIN),
        curvature=ok * options.init_covariance,
        predicted=predicted,
    )
    local = _localize(step, gains)
    buckets = 1 + max((rates.bucket for rates in step.rates.values()), default=0)
    rows: list[list[Sequence[Tensor]]] = [[] for _ in range(buckets)]
    for chunk, here in zip(step.chunks, local, strict=True):
        assert here.gains is not None
        rates = step.rates[chunk.group]
        observed = step.passes.compact_observe(
            chunk.theta,
            chunk.grad,
            CompactBelief(*chunk.state),
            here.ok,
            here.gains,
            here.terms,
            options,
            rates.maximize,
        )
        rows[rates.bucket].append(observed)
    sums = torch.stack([reductions.totals(bucket, 3, step.home) for bucket in rows])
    decrement, curvatures, surprises = reductions.across(sums, step.process_group).unbind(dim=1)
    curvature, surprise = curvatures.sum(), surprises.sum()

    weight = torch.ones_like(decrement)
    alive = torch.ones_like(decrement)
    for rates in step.rates.values():
        weight[rates.bucket] = step.weight(rates)
        alive[rates.bucket] = (rates.lr > 0.0).to(alive.dtype)
    budget = step.budget(curvature / options.temperature)
    multiplier, factor = trust_region.tied_multiplier(
        decrement * alive, weight, budget, options.temperature, options.kl_rtol
    )
    factor = factor * alive * ok
    moved = []
    factors: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}
    for chunk, here in zip(step.chunks, local, strict=True):
        key = (step.rates[chunk.group].bucket, chunk.theta.device, chunk.state[0].dtype)
        if key not in factors:
            factors[key] = factor[key[0]].to(here.ok)
        squared = step.passes.compact_apply(chunk.theta, CompactBelief(*chunk.state), factors[key], here.terms, options)
        moved.append([squared])
        chunk.write_back()
    length = reductions.totals(moved, 1, step.home)[0]
    return Report(multiplier, ok, surprise, length, step.count)


def full_step(step: Step) -> Report:
    """A step of the published form: observe, the evaluations of the dual, apply."""
    options, ok = step.options, step.ok
    local = _localize(step)
    rows: list[list[Tensor]] = []
    lowest: list[Tensor] = []
    spectra: list[trust_region.Spectrum] = []
    for chunk, here in zip(step.chunks, local, strict=True):
        precision, *belief = chunk.state
        # Read by every evaluation of the dual: two tensors instead of the four they come from.
        spectra.append(trust_region.Spectrum(torch.empty_like(precision), torch.empty_like(precision)))
        observed = step.passes.full_observe(
            chunk.theta,
            chunk.grad,
            precision,
            FullBelief(*belief),
            spectra[-1],
            here.ok,
            (chunk.step == 0).to(precision.dtype),
            here.terms,
            options,
            step.rates[chunk.group].maximize,
        )
        lowest.append(observed.least)
        rows.append([observed.total, observed.value, observed.first, observed.precision, observed.surprise])
    least = reductions.least(lowest, step.home, step.process_group)
    sums = reductions.across(reductions.totals(rows, 5, step.home), step.process_group)
    total, value, first, precision_sum, surprise = sums.unbind()

    eta_min = (-least).clamp(min=0.0)
    convex = least > 0.0
    budget = step.budget(precision_sum)
    # Negative curvature somewhere: the Newton step does not exist, and the bound decides.
    newton = trust_region.SecularSums(torch.where(convex, value, torch.full_like(value, torch.inf)), first, first)
    bracket = trust_region.start(budget, total, newton, convex)
    for _ in range(trust_region.EVALUATIONS):
        points = {here.ok: (eta_min.to(here.ok), bracket.t.to(here.ok)) for here in local}
        sums = reductions.totals(
            [
                step.passes.full_secular(spectrum, *points[here.ok])
                for spectrum, here in zip(spectra, local, strict=True)
            ],
            3,
            step.home,
        )
        sums = reductions.across(sums, step.process_group)
        bracket = trust_region.advance(bracket, trust_region.SecularSums(*sums.unbind()), budget)
    multiplier = trust_region.settle(bracket, newton.value, eta_min, budget, options.kl_rtol)
    moved = []
    solved = {
        here.ok: (multiplier.eta_min.to(here.ok), multiplier.t.to(here.ok), (multiplier.scale * ok).to(here.ok))
        for here in local
    }
    for chunk, spectrum, here in zip(step.chunks, spectra, local, strict=True):
        precision, *belief = chunk.state
        squared = step.passes.full_apply(
            chunk.theta, precision, FullBelief(*belief), spectrum, here.ok, *solved[here.ok], here.terms, options
        )
        moved.append([squared])
        chunk.write_back()
    length = reductions.totals(moved, 1, step.home)[0]
    return Report(multiplier, ok, surprise, length, step.count)
