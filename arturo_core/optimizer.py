"""The optimizer: options, parameter groups, order of a step. No formulas live here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from arturo_core import habits
from arturo_core.contexts import fake_mode_is_active
from arturo_core.distributed import agreement, sharding
from arturo_core.distributed.reductions import Reduction
from arturo_core.distributed.types import DeviceMesh, ProcessGroup
from arturo_core.groups import Grouped
from arturo_core.kernels import select
from arturo_core.options import (
    LARGEST_LR,
    PAPER,
    PAPER_KL_BOUND,
    check_group,
    check_process_group,
    make_options,
)
from arturo_core.reporting import noticing
from arturo_core.state import holds
from arturo_core.step import bookkeeping, gathering, learning_rate, preparing, rehearsal, roster, transaction
from arturo_core.step.chunks import Chunk, Source, chunks
from arturo_core.step.forms import step_of
from arturo_core.step.found import Found
from arturo_core.step.roster import Roster
from arturo_core.step.transaction import Journal
from arturo_core.step.work import Step
from arturo_core.surroundings import check_caller, check_step


class Arturo(Grouped):
    """arTuRO: a Gaussian over the weights, a learned diagonal Hessian, steps inside a KL trust region.

    Weights are a factorised Gaussian N(θ, 1/λ). Along every coordinate a Kalman filter learns the expected gradient and
    its slope from ordinary stochastic gradients (no extra pass, no Hessian-vector product), and each step
    minimises the resulting model within a bound on the KL divergence from the old Gaussian to the new one. ONE
    multiplier for all parameters enforces the bound, so an instance must hold all trainable parameters of the
    model. After Dahlinger, Becker, Hüttenrauch, Neumann, "Information-Theoretic Trust Regions for Stochastic
    Gradient-Based Optimization" (arXiv 2310.20574); :meth:`paper` is the published algorithm.

    By default the filter calibrates itself (``noise="adaptive"``) and the bound is sized by a learning rate in
    AdamW's units (``trust_region="rms"``), so AdamW's learning rates, schedules and weight decay carry over. Groups
    have a key ``momentum``, for schedulers that cycle it (``OneCycleLR``, ``CyclicLR``). Nothing reads it: the filter
    averages over more steps as lr falls below its peak, which is what cycled momentum is for.

    Args:
        params: parameters, named parameters or parameter groups, as for every ``torch.optim`` optimizer. A group may
            set ``lr``, ``weight_decay`` and ``maximize``.
        lr: with ``trust_region="rms"`` a learning rate in AdamW's units: the trust radius is an RMS step of
            0.35·lr, weighted by precision: ½ Σ λδ² ≤ ½ Σ λ(0.35·lr)². With "adaptive" noise it is longer where
            gradients agree (lr × the RMS of ĝ/(sσ), if that is more), and bounded in proportion to the weights of
            two and more dimensions (:mod:`arturo_core.step.weight_scale`): an lr whose peak asks for more counts as the
            largest that does not, and falls with its schedule. The peak is the largest lr of a step so far; an lr set
            back by hand goes on as the end of a schedule until :meth:`restart_schedule` is called.
            With "fixed" noise, whose precisions can spread over decades, the plain RMS of a step is at most 0.35·lr
            too. With "kl" the bound ε in nats. A float or a 1-element
            tensor; 0 freezes a group.
        weight_decay: decoupled, as AdamW's: θ ← θ − lr·weight_decay·θ before the step; lr·weight_decay beyond 1 counts
            as 1.
        trust_region: "rms" or "kl".
        noise: "adaptive" estimates the gradient noise of every weight from the filter's innovations; then all gains are
            dimensionless and the step does not depend on the scale of the loss. "fixed" is the published filter
            with constant noise levels.
        kl_rtol: relative tolerance of the bound: wherever it is active, \\|KL/ε − 1\\| ≤ kl_rtol. At least 1e-6, or
            1e-12 with a float64 state.
        temperature: κ, weight of the prior N(0, 1/λ0). Default 1 ("adaptive"), 0.296786 ("fixed").
        prior_precision: λ0, 1/weight². Default 0, no prior ("adaptive"), 0.0015 ("fixed"). With "adaptive" noise and
            "rms" the plain RMS of the prior's part of a step is at most the trust radius.
        precision_momentum: ν, weight of the old precision, "fixed" only (there 1.3).
        init_variance: initial variance 1/λ of a weight, "fixed" only (there 0.01).
        init_hessian: initial curvature; in units of its prior √R/ℓ with "adaptive" (1), in gradient units per
            weight unit with "fixed" (0.1).
        init_covariance: the filter's uncertainty of the curvature: with "adaptive" the (constant) variance of the
            logarithm of the relative curvature (0.8), with "fixed" the initial variance of intercept and slope (5e-5).
        measurement_noise: R, variance of a gradient's noise, "fixed" only (there 1.21975, gradient units²).
        process_noise: d, variance by which the model drifts in a step: in absolute units with "fixed" (0.00245526);
            with "adaptive" in units of the estimated R, at the peak learning rate (0.03), falling with lr².
        length_scale: ℓ, the displacement over which curvature is expected to change a gradient by its own noise,
            "adaptive" only (weight units). Default: 8 × the largest lr that counted so far, or 8e-3 with
            ``trust_region="kl"``.
        state_dtype: how the state is kept: ``torch.float32`` (16 bytes a parameter), ``torch.bfloat16`` (8) or "8bit"
            (5.1), with "adaptive" noise; ``torch.float64``; or a dtype's name. Arithmetic is float32, or float64 where
            weights or state are (:mod:`arturo_core.storage.kinds`).
        maximize: ascend instead of descend.
        compile: run the passes through ``torch.compile`` (fewer passes over memory; the first step compiles).
        fused: take steps by a kernel: None where there is one, True to demand it, False to refuse it. There is one for
            float32, bfloat16 and float16 weights, "adaptive" noise and no prior: on the CPU where the package was
            installed with a C++ compiler at hand or from a wheel, on an accelerator by Triton, which comes with torch.
            Other parameters of the model go the other way.
        stochastic_rounding: round bfloat16 weights at random, so that steps too short for their dtype add up.
        process_group: ranks over which the parameters are split (a group, or a mesh), for layouts whose parameters do
            not say so themselves (FSDP1, ``ZeroRedundancyOptimizer``, pipeline stages); sums are then taken over them.
            Plain parameters beside FSDP1's shards count once, and need the same gradients everywhere. Leave it None
            for DDP, and for DTensors (FSDP2, tensor parallelism), which say themselves which ranks hold what.

    Raises:
        ValueError, TypeError: an option is out of range or has no meaning in the chosen mode, a parameter is not a
            floating-point leaf, appears twice, or there is none; parameters are split in a way that the sums could not
            follow. The message names what is allowed.

    State per parameter is the table in :mod:`arturo_core.state`.

    Ranks that hold parts of one model decide together: what they compare, when, and what leaves others waiting is said
    in :mod:`arturo_core.distributed.agreement`. Of replicated plain parameters (DDP) nothing is asked.
    """

    @habits.explained
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *,
        weight_decay: float = 0.0,
        trust_region: Literal["rms", "kl"] = "rms",
        noise: Literal["adaptive", "fixed"] = "adaptive",
        kl_rtol: float = 1e-3,
        temperature: float | None = None,
        prior_precision: float | None = None,
        precision_momentum: float | None = None,
        init_variance: float | None = None,
        init_hessian: float | None = None,
        init_covariance: float | None = None,
        measurement_noise: float | None = None,
        process_noise: float | None = None,
        length_scale: float | None = None,
        state_dtype: torch.dtype | str = torch.float32,
        maximize: bool = False,
        compile: bool = False,
        fused: bool | None = None,
        stochastic_rounding: bool = False,
        process_group: ProcessGroup | DeviceMesh | None = None,
    ) -> None:
        options = make_options(
            trust_region=trust_region,
            noise=noise,
            kl_rtol=kl_rtol,
            length_scale=length_scale,
            state_dtype=state_dtype,
            compile=compile,
            fused=fused,
            stochastic_rounding=stochastic_rounding,
            temperature=temperature,
            prior_precision=prior_precision,
            precision_momentum=precision_momentum,
            init_variance=init_variance,
            init_hessian=init_hessian,
            init_covariance=init_covariance,
            measurement_noise=measurement_noise,
            process_noise=process_noise,
        )
        check_process_group(process_group)
        self._begin(options, process_group)
        defaults = {"lr": lr, "weight_decay": weight_decay, "maximize": maximize, habits.MOMENTUM: habits.NO_MOMENTUM}
        check_group(defaults, options)
        if fused:
            select.check_fused((), options)
        super().__init__(params, defaults)
        check_caller((param for group in self.param_groups for param in group["params"]), process_group)

    @classmethod
    @habits.explained
    def paper(
        cls,
        params: ParamsT,
        kl_bound: float | Tensor = PAPER_KL_BOUND,
        *,
        temperature: float = PAPER["temperature"],
        measurement_noise: float = PAPER["measurement_noise"],
        process_noise: float = PAPER["process_noise"],
        weight_decay: float = 0.0,
        init_variance: float = PAPER["init_variance"],
        prior_precision: float = PAPER["prior_precision"],
        init_covariance: float = PAPER["init_covariance"],
        precision_momentum: float = PAPER["precision_momentum"],
        init_hessian: float = PAPER["init_hessian"],
        kl_rtol: float = 1e-3,
        **options: Any,
    ) -> Arturo:
        """The published algorithm (constant noise levels, bound in nats), with a dual that meets its bound.

        The defaults are the published CIFAR settings for the small CNN.

        Args:
            params: as for the class.
            kl_bound: ε in nats; it is the ``lr`` of the parameter groups, so schedulers act on it.
            weight_decay: decoupled; multiplied by the bound, as published.
            options: ``state_dtype``, ``maximize``, ``compile``, ``process_group``. Those between are the class's own:
                κ, R, d, the initial 1/λ, λ0, the initial variance of intercept and slope, ν, the initial h.
        """
        return cls(
            params,
            kl_bound,
            weight_decay=weight_decay,
            trust_region="kl",
            noise="fixed",
            kl_rtol=kl_rtol,
            temperature=temperature,
            prior_precision=prior_precision,
            precision_momentum=precision_momentum,
            init_variance=init_variance,
            init_hessian=init_hessian,
            init_covariance=init_covariance,
            measurement_noise=measurement_noise,
            process_noise=process_noise,
            **options,
        )

    # -- the step ----------------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step inside the trust region.

        Where the learning rate of every group is 0 the step only allocates missing state: nothing moves, no statistic
        changes. If a gradient is not finite (or not below 1e18) in any group that moves, the whole step is skipped
        and counted (``skipped_steps`` of :meth:`diagnostics`); no weight and no statistic changes.

        Args:
            closure: re-evaluates the model and returns the loss; called once, with gradients enabled.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: a gradient is sparse; the optimizer was unpickled and has lost its ``process_group``; another
                rank raises; an earlier step could not be finished (:class:`arturo_core.step.transaction.TornStep`).
            ValueError, TypeError: an lr or weight decay was set that is negative, not finite or no number, or groups
                differ in lr with ``trust_region="kl"``, or ranks differ in lr, options or groups, or a
                parameter's shape, dtype or device is no longer that of its statistics.

        On accelerators, where reading would wait, ranks that differ in lr, and those whose neighbour raises, skip and
        count the step instead.

        Whatever is raised, also from outside as by Ctrl-C, leaves nothing half done: weights, statistics and counters
        are as before the step, or, with more than a million weights, where the step had begun to write, as after it. An
        exception inside a pass of so large a model (unless ``compile=True``), or one that also stops the undoing,
        raises :class:`arturo_core.step.transaction.TornStep`: then only a checkpoint helps, and every further step says
        so.
        """
        check_step(self.param_groups)
        noticing.before_step(self)
        self._check_whole()
        loss: float | None = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if fake_mode_is_active() and rehearsal.is_due(
            preparing.taking_part(self.param_groups, self.state, self._options)
        ):
            rehearsal.stand_in(self).step()
            return loss
        found = self._again() or self._anew()
        if found is None:
            return loss
        options, home, refusal, work = self._options, found.home, found.refusal, found.chunks
        moving, reduction = found.moving, found.reduction
        seen = gathering.survey(self.param_groups, moving, work, found.sizes, reduction, home, refusal)
        if seen.idle or not moving:
            return loss
        asking = self.param_groups if refusal is None else agreement.asking_nothing(self.param_groups)
        rates = learning_rate.rates(asking, moving, options, seen.relative)
        lr = torch.stack([rate.lr for rate in rates.values()])
        step = Step(
            chunks=work,
            empty=found.empty,
            rates=rates,
            options=options,
            passes=select.passes(options),
            ok=seen.ok
            * (
                torch.isfinite(lr).all()
                & (lr.amin() >= 0.0)
                & (lr.amax() > 0.0)
                & (lr.amax() <= LARGEST_LR[options.trust_region])
            ),
            relative=seen.relative,
            home=home,
            reduction=reduction,
            flat=None if found.roster is None else found.roster.flat,
        )
        level = learning_rate.scalar(bookkeeping.first(self.param_groups)["level"], home)
        attempts = [step, step, replace(step, passes=select.fallback())]
        # What kernels do cannot break off in the middle, so it is finished instead of undone.
        breakable = any(chunk.kernel is None for chunk in work)
        undoable = breakable and sum(chunk.elements for chunk in work) <= transaction.UNDOABLE
        try:
            transaction.carry_out(
                [partial(self._take, attempt, level, found.roster) for attempt in attempts],
                undoable=undoable,
            )
        except transaction.TornStep:
            self._torn = True
            raise
        if refusal is not None:
            raise refusal
        if found.roster is None:
            self._roster = None
            # Replaying a graph changes weights, and nothing tells a roster of it.
            if not self._squares.recorded and roster.suits(self.param_groups, self.state, work, reduction, home):
                self._roster = roster.Roster(self.param_groups, self.state, moving, work, reduction, home, options)
        return loss

    def _again(self) -> Found | None:
        """What the step works on, if nothing is new about it since the last one."""
        if self._roster is None or self._process_group is not None:
            return None
        moving = self._moving()
        sources = self._roster.call(self.param_groups, self.state, moving)
        if sources is None:
            return None
        preparing.check_groups(self.param_groups, self._options)
        work = self._roster.chunks(sources)
        sizes = self._roster.sizes(work, len(self.param_groups) if gathering.is_sized(self._options) else 0)
        return Found(work, [], moving, self._roster.reduction, self._roster.home, sizes, roster=self._roster)

    def _anew(self) -> Found | None:
        """What the step works on, every parameter looked at; None if there is nothing to do."""
        options = self._options
        taking_part = preparing.taking_part(self.param_groups, self.state, options)
        reduction = Reduction.over(taking_part, sharding.process_groups(self._process_group))
        new = not all(holds(self.state.get(param), options) for param in taking_part)
        prepare = partial(preparing.prepare, taking_part, self.param_groups, self.state, options, self._process_group)
        refusal = agreement.refusal(prepare, reduction.distributed)
        moving = self._moving()
        if not moving and (new or not self._joins_at_rest(reduction)):
            if refusal is not None:
                raise refusal
            return None
        home = self._home(reduction)
        sources: list[Source] = []
        work: list[Chunk] = []

        def collect() -> None:
            sources[:] = gathering.gather(self.param_groups, self.state, moving, reduction, options)
            work[:] = chunks(
                sources, select.chunk_size(options, home), select.kernel(options, home), options.stochastic_rounding
            )

        found = agreement.refusal(collect, reduction.distributed)
        if not sources and not reduction.distributed:
            return None
        refusal = refusal or found
        if refusal is not None:
            sources, work = [], []
        seen = moving if refusal is None else ()
        sizes = gathering.sizes(self.param_groups, self.state, seen, work, reduction, options, home, self._squares)
        empty = [source for source in sources if not source.theta.numel()]
        return Found(work, empty, moving, reduction, home, sizes, refusal)

    def _moving(self) -> list[int]:
        return [index for index, group in enumerate(self.param_groups) if not learning_rate.stands_still(group["lr"])]

    def _take(self, step: Step, level: Tensor, roster: Roster | None, journal: Journal) -> None:
        """All of a step that changes anything."""
        outcome = step_of(self._options)(step, level, journal)
        bookkeeping.after_step(self.param_groups, outcome.report.ok, outcome, step.rates, journal)
        self._report = outcome.report
        if roster is not None:
            roster.keep(step.squares)
            return
        for chunk, squares in step.squares:
            self._squares.keep([source.param for source in chunk.sources], squares)

    def _joins_at_rest(self, reduction: Reduction) -> bool:
        """Whether this rank tells the others that it stands still: one of them may not.

        Distributed checkpointing allocates state by a step at lr 0. Of a process group every rank without parameters
        would do so again and again, alone.
        """
        return reduction.distributed and self._process_group is None and self._own_home().type == "cpu"

    def _home(self, reduction: Reduction) -> torch.device:
        """Where the scalars of a step live: an accelerator if any parameter is on one; the same on all ranks."""
        home = self._own_home()
        if not reduction.distributed:
            return home
        if self._agreed is None:
            meshes = [group for group, _ in reduction.meshes]
            self._agreed = agreement.agree(reduction.groups, self.param_groups, self._options, home, meshes)
        return self._agreed

    def _own_home(self) -> torch.device:
        devices = [param.device for param in preparing.taking_part(self.param_groups, self.state, self._options)]
        return next((device for device in devices if device.type != "cpu"), torch.device("cpu"))
