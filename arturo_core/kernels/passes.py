"""What the passes over the parameters take and return, whichever form runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor

from arturo_core.algorithm.trust_region import SecularSums, Spectrum
from arturo_core.options import Options

if TYPE_CHECKING:
    from arturo_core.algorithm.compact import Gains, Kept
    from arturo_core.algorithm.published import FullBelief


class GroupTerms(NamedTuple):
    """What a step needs of a parameter group; 0-dimensional tensors on the parameters' device.

    Attributes:
        ok: 1, or 0 if the step is skipped.
        decay: lr × weight decay, zero when the step is skipped; None for none.
        length: ℓ, the length of the curvature prior (weight units); compact form only.
        weight: ω, weight of this group's precision in the KL metric, (lr_ref/lr)² with
            ``trust_region="rms"`` and 1 with "kl"; full form only.
    """

    ok: Tensor
    decay: Tensor | None
    length: Tensor
    weight: Tensor


class CompactObserved(NamedTuple):
    """Sums over a chunk, 0-dimensional, in the state's dtype or wider."""

    decrement: Tensor  # Σ a²/b
    stiffness: Tensor  # Σ s√R
    deviation: Tensor  # Σ √R
    surprise: Tensor  # Σ e²/S
    squared: Tensor  # Σ (a/b)²
    # With a prior alone; without one they are Σ a²/b and 0, and need not be summed over ranks.
    signal: Tensor | None = None  # Σ ĝ²/b
    pull: Tensor | None = None  # Σ (κλ0θ/b)²


class FullObserved(NamedTuple):
    """Sums over a chunk, 0-dimensional, in the state's dtype or wider; λ stands for ωλ except in ``precision``.

    ``total`` and ``first`` are in the chunk's unit of η, and so are the terms of the dual that the pass has filled in.
    """

    least: Tensor  # min b/λ
    total: Tensor  # Σ a²/λ
    value: Tensor  # Σ λδ² at η = 0
    first: Tensor  # its derivative
    precision: Tensor  # Σ λ
    surprise: Tensor  # Σ e²/S
    unit: Tensor  # of η in this chunk, a power of two


class Passes(Protocol):
    """The six passes. All change their chunk's tensors in place; ``terms.ok`` = 0 makes every one of them a no-op.

    Attributes:
        ATOMIC: whether an exception in a pass comes before its first write.
    """

    ATOMIC: bool

    def compact_observe(
        self,
        theta: Tensor,
        grad: Tensor,
        kept: Kept,
        gains: Gains,
        terms: GroupTerms,
        options: Options,
        maximize: bool,
    ) -> CompactObserved:
        """Re-centre what is pending, decay the weights, update with a gradient, and sum what the dual needs."""

    def compact_sums(self, theta: Tensor, kept: Kept, terms: GroupTerms, options: Options) -> CompactObserved:
        """What :meth:`compact_observe` returns of what is kept, without a surprise."""

    def compact_apply(self, theta: Tensor, kept: Kept, factor: Tensor, terms: GroupTerms, options: Options) -> None:
        """Take the step −factor·a/b; re-centre where that cannot wait for the next step."""

    def full_observe(
        self,
        theta: Tensor,
        grad: Tensor,
        precision: Tensor,
        belief: FullBelief,
        terms_of_dual: Spectrum,
        first: Tensor,
        terms: GroupTerms,
        options: Options,
        maximize: bool,
    ) -> FullObserved:
        """Decay the weights, update the belief with a gradient, fill in the terms of the dual, and sum.

        ``first`` is 1 where the gradient is the parameter's first, else 0.
        """

    def full_secular(self, terms_of_dual: Spectrum, eta_min: Tensor, t: Tensor) -> SecularSums:
        """Evaluate 2·KL and its two derivatives at t; multiplier and derivatives are in the chunk's unit."""

    def full_length(
        self, precision: Tensor, terms_of_dual: Spectrum, eta_min: Tensor, t: Tensor, terms: GroupTerms
    ) -> Tensor:
        """Σ δ² of the primal step, which is not taken."""

    def full_apply(
        self,
        theta: Tensor,
        precision: Tensor,
        belief: FullBelief,
        terms_of_dual: Spectrum,
        eta_min: Tensor,
        t: Tensor,
        scale: Tensor,
        terms: GroupTerms,
        options: Options,
    ) -> Tensor:
        """Take the primal step (multiplier in the chunk's unit), update the precision and re-centre. Returns Σ δ²."""
