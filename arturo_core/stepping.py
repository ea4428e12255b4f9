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

    def terms(self, group: int, device: torch.device) -> GroupTerms:
        rates = self.rates[group]
        decay = None if rates.decay is None else (rates.decay * self.ok).to(device)
        return GroupTerms(decay, rates.length.to(device), self.weight(rates).to(device))

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
    buckets = 1 + max((rates.bucket for rates in step.rates.values()), default=0)
    terms = {}
    rows: list[list[Tensor]] = []
    zero = torch.zeros_like(ok)
    count = 0
    for chunk in step.chunks:
        device = chunk.theta.device
        key = (chunk.group, device)
        if key not in terms:
            terms[key] = step.terms(*key)
        rates = step.rates[chunk.group]
        observed = step.passes.compact_observe(
            chunk.theta,
            chunk.grad,
            CompactBelief(*chunk.state),
            ok.to(device),
            Gains(*(value.to(device) for value in gains)),
            terms[key],
            options,
            rates.maximize,
        )
        row = [zero] * (buckets + 2)
        row[rates.bucket] = observed.decrement
        row[buckets], row[buckets + 1] = observed.curvature, observed.surprise
        rows.append(row)
        count += chunk.theta.numel()
    sums = reductions.totals(rows, buckets + 2, step.home, step.process_group)
    decrement, curvature, surprise = sums[:buckets], sums[buckets], sums[buckets + 1]

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
    for chunk in step.chunks:
        device = chunk.theta.device
        squared = step.passes.compact_apply(
            chunk.theta,
            CompactBelief(*chunk.state),
            factor[step.rates[chunk.group].bucket].to(device),
            terms[chunk.group, device],
            options,
        )
        moved.append([squared])
        chunk.write_back()
    length = reductions.totals(moved, 1, step.home, None)[0]
    return Report(multiplier, ok, surprise, length, count)


def full_step(step: Step) -> Report:
    """A step of the published form: observe, the evaluations of the dual, apply."""
    options, ok = step.options, step.ok
    terms = {}
    rows: list[list[Tensor]] = []
    lowest: list[Tensor] = []
    spectra: list[trust_region.Spectrum] = []
    count = 0
    for chunk in step.chunks:
        device = chunk.theta.device
        key = (chunk.group, device)
        if key not in terms:
            terms[key] = step.terms(*key)
        precision, *belief = chunk.state
        # Read by every evaluation of the dual: two tensors instead of the four they come from.
        spectra.append(trust_region.Spectrum(torch.empty_like(precision), torch.empty_like(precision)))
        observed = step.passes.full_observe(
            chunk.theta,
            chunk.grad,
            precision,
            FullBelief(*belief),
            spectra[-1],
            ok.to(device),
            (chunk.step == 0).to(precision.dtype),
            terms[key],
            options,
            step.rates[chunk.group].maximize,
        )
        lowest.append(observed.least)
        rows.append([observed.total, observed.value, observed.first, observed.precision, observed.surprise])
        count += chunk.theta.numel()
    least = reductions.least(lowest, step.home, step.process_group)
    total, value, first, precision_sum, surprise = reductions.totals(rows, 5, step.home, step.process_group).unbind()

    eta_min = (-least).clamp(min=0.0)
    convex = least > 0.0
    budget = step.budget(precision_sum)
    # Negative curvature somewhere: the Newton step does not exist, and the bound decides.
    newton = trust_region.SecularSums(torch.where(convex, value, torch.full_like(value, torch.inf)), first, first)
    bracket = trust_region.start(budget, total, newton, convex)
    for _ in range(trust_region.EVALUATIONS):
        rows = [
            list(
                step.passes.full_secular(
                    spectrum, eta_min.to(spectrum.slope.device), bracket.t.to(spectrum.slope.device)
                )
            )
            for spectrum in spectra
        ]
        sums = reductions.totals(rows, 3, step.home, step.process_group)
        bracket = trust_region.advance(bracket, trust_region.SecularSums(*sums.unbind()), budget)
    multiplier = trust_region.settle(bracket, newton.value, eta_min, budget, options.kl_rtol)
    moved = []
    for chunk, spectrum in zip(step.chunks, spectra, strict=True):
        device = chunk.theta.device
        precision, *belief = chunk.state
        squared = step.passes.full_apply(
            chunk.theta,
            precision,
            FullBelief(*belief),
            spectrum,
            ok.to(device),
            multiplier.eta_min.to(device),
            multiplier.t.to(device),
            (multiplier.scale * ok).to(device),
            terms[chunk.group, device],
            options,
        )
        moved.append([squared])
        chunk.write_back()
    length = reductions.totals(moved, 1, step.home, None)[0]
    return Report(multiplier, ok, surprise, length, count)
