"""What the diagnostics of a run say about its settings: advice, each piece given once."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from arturo_core.optimizer import Arturo
from arturo_core.reporting import readings, sweeps
from arturo_core.reporting.memory import share_of_free

#: Share of skipped steps, and steps to judge it by.
SKIPPED, ENOUGH = 0.05, 20

#: Innovation ratios that are no cause for concern. The default form stays near 0.85 on noise alone, and falls to
#: nothing where a loss does: its noise estimate then follows from above.
CONSISTENT = (0.3, 3.0)

#: Learning rates that are common for AdamW and rare as a bound in nats, and the other way round.
LARGEST_FOR_NATS, SMALLEST_FOR_WEIGHTS = 1e-3, 0.05

#: Share of its peak below which a learning rate is at the end of its schedule, where steps are meant to vanish.
DECAYED = 0.1

#: State beside what is left of the memory from which on memory is scarce.
SCARCE = 2.0

#: Logged steps that a verdict rests on, at least.
LOGGED = 3


class ArturoAdvice(UserWarning):
    """A setting that the diagnostics speak against; ``warnings.simplefilter("ignore", ArturoAdvice)`` silences all."""


class Advisor:
    """Reads the diagnostics of the steps that are logged, and says what to change.

    Most pieces of advice wait until something has held at every logged step for ``patience`` steps.

    Args:
        optimizer: whose diagnostics they are; it is not kept alive.
        patience: steps, 100 by default; at least three of them have to have been logged.
    """

    def __init__(self, optimizer: Arturo, patience: int = 100) -> None:
        if patience < 1:
            raise ValueError(f"Arturo: patience of {patience} steps; give at least 1.")
        self._held = weakref.ref(optimizer)
        self._patience = patience
        self._given: set[str] = set()
        self._since: dict[str, tuple[int, int]] = {}

    @property
    def _optimizer(self) -> Arturo:
        held = self._held()
        assert held is not None, "the caller has its diagnostics"
        return held

    def check(self, numbers: Mapping[str, Any], clipped: bool | None = None) -> list[str]:
        """Advice that has not been given before.

        Args:
            numbers: :meth:`Arturo.diagnostics` of a logged step.
            clipped: whether clipping rescaled the gradients of that step; None if that is not known.
        """
        if "kl" not in numbers:  # no step yet
            return []
        taken = int(numbers["steps"]) + int(numbers["skipped_steps"])
        found = self._at_once(numbers, taken)
        for name, (holds, advice) in self._lasting(numbers, clipped).items():
            if not holds:
                self._since.pop(name, None)
                continue
            first, logged = self._since.get(name, (taken, 0))
            self._since[name] = (first, logged + 1)
            if taken - first >= self._patience and logged + 1 >= LOGGED:
                found[name] = advice
        fresh = [advice for name, advice in found.items() if name not in self._given]
        self._given |= found.keys()
        return fresh

    def _at_once(self, numbers: Mapping[str, Any], taken: int) -> dict[str, str]:
        found = {}
        options = self._optimizer.options
        largest = _largest(self._optimizer)
        if options.trust_region == "kl" and 0.0 < largest <= LARGEST_FOR_NATS:
            found["nats"] = (
                f'lr={largest:.3g} looks like a learning rate for AdamW, but with trust_region="kl" it is the KL '
                'divergence of a whole step, in nats (published: 0.0028 to 0.086). Use trust_region="rms" for a '
                "learning rate in AdamW's units, or a larger bound."
            )
        if options.trust_region == "rms" and largest >= SMALLEST_FOR_WEIGHTS:
            found["weights"] = (
                f'lr={largest:.3g} looks like a KL bound or a learning rate for SGD, but with trust_region="rms" it is '
                "in AdamW's units: begin with what you would give AdamW (5e-5 for fine-tuning, 1e-3 from scratch). For "
                'a bound in nats use trust_region="kl".'
            )
        if options.noise == "adaptive" and options.state_dtype == torch.float32:
            share = share_of_free(self._optimizer)
            if share > SCARCE:
                found["memory"] = (
                    f'the optimizer\'s state takes {share:.1f} times the memory that is left. state_dtype="bfloat16" '
                    'halves it, and state_dtype="8bit" takes a third of it.'
                )
        skipped = int(numbers["skipped_steps"])
        if taken >= ENOUGH and skipped > SKIPPED * taken:
            found["skipped"] = (
                f"{skipped} of {taken} steps were skipped because a gradient was not finite. Look for the batch or "
                "layer that overflows, or lower lr; with fp16 use a gradient scaler, or train in bf16."
            )
        return found

    def _lasting(self, numbers: Mapping[str, Any], clipped: bool | None) -> dict[str, tuple[bool, str]]:
        """Conditions that have to last, and the advice where they do."""
        ratio, resolution = float(numbers["innovation_ratio"]), float(numbers.get("step_resolution", torch.inf))
        scale, taken = float(numbers["step_scale"]), numbers["kl"] > 0.0
        narrow = any(param.element_size() < 4 for param in readings.trained(self._optimizer.param_groups))
        moving = any(_share(group) > DECAYED for group in self._optimizer.param_groups if group["params"])
        fixed = self._optimizer.options.noise == "fixed"
        if fixed:
            mend = f"measurement_noise is too {'small' if ratio > 1.0 else 'large'}: multiply it by about {ratio:.2g}."
        else:
            mend = (
                "The scale of the gradients changes faster than the noise estimate follows (over some 300 steps): look "
                "for losses that are summed instead of averaged, batches of very different size, or clipping."
            )
        return {
            "inactive": (
                taken and not numbers["bound_active"],
                f"the trust region has limited none of the steps logged for {self._patience} steps: they end nearer, "
                f"where the learned model allows it. {_of_larger_rates(self._optimizer)} That is ordinary near "
                "convergence, and by itself no reason to change lr. If you doubt it, compare the validation loss of "
                "runs with a third and three times of it.",
            ),
            "pinned": (
                taken and abs(scale - 1.0) > 10.0 * self._optimizer.options.kl_rtol,
                f"the search for the multiplier η ended at {numbers['eta']:.3g} before the bound was met; steps were "
                f"scaled by {scale:.3g} instead. They keep the bound, but are not the best ones inside it. Raise "
                'kl_rtol, or use noise="adaptive", which needs no search.',
            ),
            "innovation": (
                taken and (ratio > CONSISTENT[1] or (fixed and ratio < CONSISTENT[0])),
                f"innovation_ratio is {ratio:.2g}, and 1 where the filter's noise fits the gradients. {mend}",
            ),
            "clipped": (
                clipped is True,
                f"clipping has rescaled the gradients of every step logged for {self._patience} steps. The trust "
                "region bounds steps already, and the filter's noise estimate reads what clipping leaves. What it does "
                "to the loss depends on the task: try a run with max_grad_norm=0 (gradient_clip_val=None), or with a "
                "larger norm, and compare validation losses.",
            ),
            "rounded": (
                taken and moving and narrow and resolution < 1.0,
                f"a step moves weights by {resolution:.2g} of half the distance between neighbouring numbers of their "
                "dtype, so most of it is rounded away. Keep float32 weights and train with autocast (bf16=True, "
                'precision="bf16-mixed") instead of converting the model.',
            ),
        }


def advise(advice: Iterable[str]) -> None:
    """Warn of every piece of advice, on rank zero alone."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if distributed and torch.distributed.get_rank() != 0:
        return
    for text in advice:
        warnings.warn(f"Arturo: {text}", ArturoAdvice, stacklevel=2)


def _largest(optimizer: Arturo) -> float:
    """The largest learning rate that is meant; of a sweep none is, and what it leaves behind is no setting."""
    groups = [group for group in optimizer.param_groups if group["params"]]
    if sweeps.under_way(optimizer):
        return 0.0
    rates = [float(group["lr"]) for group in groups] if sweeps.seen(optimizer) else map(_intended, groups)
    return max(rates, default=0.0)


def _of_larger_rates(optimizer: Arturo) -> str:
    """What a larger lr does to steps that the trust region does not limit."""
    options = optimizer.options
    if options.noise == "adaptive" and options.length_scale is None:
        return "A larger lr still lengthens them, by way of the length ℓ, until it asks for more than counts."
    return "A larger lr lengthens the bound alone, and so none of these steps."


def _intended(group: Mapping[str, Any]) -> float:
    """The learning rate that a group was given: schedulers keep it, and otherwise it is the largest so far."""
    return max(float(group.get(name, 0.0)) for name in ("initial_lr", "max_lr", "peak_lr"))


def _share(group: Mapping[str, Any]) -> float:
    peak = float(group["peak_lr"])
    return float(group["lr"]) / peak if peak > 0.0 else 0.0


__all__ = ["Advisor", "ArturoAdvice", "advise"]
