"""What can be read from an optimizer: its options and ranks, its last step, what it has learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from arturo_core.contexts import is_fake
from arturo_core.distributed.types import DeviceMesh, ProcessGroup
from arturo_core.options import Options
from arturo_core.persistence import Persistent
from arturo_core.reporting import diagnostics as reporting
from arturo_core.reporting import readings
from arturo_core.state import holds
from arturo_core.step import bookkeeping, rehearsal


class Readable(Persistent):
    """An optimizer that says what it is, what it did and what it knows."""

    @property
    def options(self) -> Options:
        """The options as they count, defaults filled in; they never change (:class:`arturo_core.options.Options`)."""
        return self._options

    @property
    def process_group(self) -> ProcessGroup | DeviceMesh | None:
        """Ranks over which the parameters are split; None if they say so themselves, or are whole."""
        found: ProcessGroup | DeviceMesh | None = self._process_group
        return found

    @property
    def last_report(self) -> reporting.Report | None:
        """The last step's numbers as tensors, where they were computed: nothing is copied or waited for.

        None before the first step and in a copy. :meth:`diagnostics` has them as plain numbers, with what they mean.
        """
        return self._report

    @torch.no_grad()
    def diagnostics(self) -> dict[str, Any]:
        """Numbers about the last step and the learned state, as plain Python values.

        Costs a copy to the host and a sample of the state, at the call only. Before the first step it holds the
        counters alone; where tensors hold no numbers (FakeTensorMode) it is empty. Keys:

        * ``eta``: multiplier of the trust region; at its least where the bound was inactive (2κ with "adaptive", else 0
          or what makes the model convex).
        * ``kl``, ``kl_bound``, ``kl_ratio``: KL divergence used, its bound, in nats, and used/bound. Of the step
          before it is rounded to the weights' dtype: rounding to bfloat16 can swallow most of it.
          Where the plain RMS of a step (``noise="fixed"`` with ``trust_region="rms"``), or of a prior's part of it, was
          the limit, the bound is the divergence that was left.
        * ``bound_active``: whether the bound decided the step's length.
        * ``step_scale``: 1; below or above only if the dual ran out of evaluations before meeting ``kl_rtol``.
        * ``step_rms``: root mean square of the step without weight decay, also before it is rounded (weight units).
        * ``step_resolution``: ``step_rms`` over half the distance between a weight and its neighbour in its dtype, the
          median over the weights that move; below 1 rounding swallows most of a step. Left out where most are 0.
        * ``innovation_ratio``: mean of e²/S, 1 when the filter is consistent.
        * ``steps``, ``skipped_steps``: steps taken, and skipped for non-finite gradients (with several ranks and an
          accelerator also where no rank had a gradient, one raised, or ranks differed in lr).
        * ``curvature_q05``, ``_q50``, ``_q95``: curvature relative to its prior.
        * ``precision_q05``, ``_q50``, ``_q95``: precision of the weights (1/weight²).
        """
        if any(is_fake(group["skipped"]) for group in self.param_groups):
            return {}  # built under FakeTensorMode: there are no numbers
        with rehearsal.aside(param for group in self.param_groups for param in group["params"]):
            return self._numbers()

    def _numbers(self) -> dict[str, Any]:
        group = bookkeeping.first(self.param_groups)
        skipped = int(group["skipped"])
        numbers = reporting.summarize(self._report, group["calls"] - skipped, skipped)
        if self._report is not None:
            gap = readings.half_spacing(self.param_groups)
            if gap > 0.0:
                numbers["step_resolution"] = numbers["step_rms"] / gap
            sample = readings.sample(self.param_groups, self.state, self._options)
            if sample:
                numbers |= reporting.quantiles("curvature", [curvature for curvature, _ in sample])
                numbers |= reporting.quantiles("precision", [precision for _, precision in sample])
        return numbers

    @torch.no_grad()
    def precision(self, param: Tensor) -> Tensor:
        """λ, the precision of the Gaussian over a parameter (its real shape, 1/weight²; a new tensor).

        Raises:
            KeyError: the parameter has no state yet.
        """
        held = self.state.get(param)
        if not holds(held, self._options):
            raise KeyError("Arturo: this parameter has no state yet: its precision exists after the first step().")
        group = next(group for group in self.param_groups if any(param is member for member in group["params"]))
        return readings.precision(readings.widened(held, param, self._options), group, self._options)
