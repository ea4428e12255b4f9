"""The trust region: the step that minimises the model within a bound ε on the KL divergence, and its multiplier η.

Per coordinate the surrogate of the expected loss, with the prior's pull, is aδ + ½bδ² with a = ĝ + κλ0θ and
b = h + κλ0. The step is δ(η) = −a/(b + ηλ), and the multiplier η ≥ 0 (ONE scalar for all parameters) solves
the dual, ½ Σ λ δ(η)² = ε: a secular equation. Everything is written in the variable t = η − η_min,
with η_min = max(0, max −b/λ), so that negative curvature needs no case of its own: with

    c = max(b/λ + η_min, 0)      KL(t) = ½ Σ (a²/λ) / (c + t)²,

KL falls strictly in t > 0. One evaluation yields KL and two derivatives; a power law W (C + t)^−p is fitted to the
three and solved for the bound. p = 2 is Newton's method on 1/√KL (Moré and Sorensen 1983), exact for equal
c; by Cauchy–Schwarz p ≤ 2, and the fitted p follows spectra that spread over decades. A fixed number of
evaluations (:data:`EVALUATIONS`) needs no decision on the host; what they leave beyond the tolerance is taken off
the length of the step (:func:`settle`), so the bound holds whatever the spectrum.

Pure functions of tensors. Sums are float64 and 0-dimensional; the rest is parameter-shaped.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from arturo_core.numerics import wide_sum

#: Evaluations of KL(t), each one pass over the parameters, after the first pass of a step.
EVALUATIONS = 5

# Keeps 0/0 away from coordinates that have neither slope nor curvature.
TINY = 1e-30


def surrogate(gradient: Tensor, hessian: Tensor, theta: Tensor, prior: float) -> tuple[Tensor, Tensor]:
    """Slope a = ĝ + κλ0θ and curvature b = h + κλ0 of the objective along every coordinate; ``prior`` is κλ0."""
    return gradient + prior * theta, hessian + prior


class Spectrum(NamedTuple):
    """The model in units of the Gaussian's own standard deviations, u = √λ δ; parameter-shaped."""

    slope: Tensor  # a/√λ
    curvature: Tensor  # c = b/λ, not yet shifted by η_min


def spectrum(slope: Tensor, curvature: Tensor, precision: Tensor) -> Spectrum:
    """The surrogate's slope a and curvature b in units of √λ."""
    return Spectrum(slope / torch.sqrt(precision), curvature / precision)


def unit_of(slope: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """A unit of η in which float32 holds the squares of a spectrum and the derivatives of their sum.

    In it slopes are at most 2. It is a power of two, so that changing to it rounds nothing.

    Args:
        slope: largest |a|/√λ.
        least: least b/λ.
        most: largest b/λ.
    """
    # Where curvatures are that much larger than slopes, the squares that underflow count for nothing.
    size = torch.maximum(slope, 2.0**-100 * torch.maximum(least.abs(), most.abs()))
    return torch.exp2(torch.floor(torch.log2(size.clamp(2.0**-100, 2.0**100))))


def distance(curvature: Tensor, eta_min: Tensor | float, t: Tensor | float) -> Tensor:
    """max(c + η_min, 0) + t, how far the multiplier is from a coordinate's pole; never zero."""
    return torch.clamp(curvature + eta_min, min=TINY) + t


def primal(terms: Spectrum, precision: Tensor, eta_min: Tensor | float, t: Tensor | float) -> Tensor:
    """δ = −a/(b + ηλ) with η = η_min + t."""
    return -terms.slope / (torch.sqrt(precision) * distance(terms.curvature, eta_min, t))


class SecularSums(NamedTuple):
    """2·KL(t) and its first two derivatives in t."""

    value: Tensor
    first: Tensor
    second: Tensor


def secular_sums(terms: Spectrum, eta_min: Tensor | float, t: Tensor | float) -> SecularSums:
    """Sums over the given coordinates of u², −2u²/d and 6u²/d², where d = c + t and u = (a/√λ)/d."""
    gap = distance(terms.curvature, eta_min, t)
    moved = terms.slope / gap
    first = moved / gap
    return SecularSums(wide_sum(moved * moved), -2.0 * wide_sum(moved * first), 6.0 * wide_sum(first * first))


class Bracket(NamedTuple):
    """State of the search for t: the next point, what encloses the root, and the best point evaluated so far."""

    t: Tensor
    low: Tensor
    high: Tensor
    best_t: Tensor
    best_value: Tensor


def start(budget: Tensor, total: Tensor, newton: SecularSums, convex: Tensor) -> Bracket:
    """First point of the search.

    Args:
        budget: 2ε.
        total: Σ a²/λ, so KL(t) ≤ ½ total/t².
        newton: the sums at t = 0 with η_min = 0.
        convex: whether every b is positive; otherwise ``newton`` says nothing.

    The start solves the quadratic total/KL ≈ t² + αt + β that has the right value and slope at 0 and the right
    behaviour at infinity; without convexity it is the upper bound √(total/budget).
    """
    high = torch.sqrt(total / budget)
    alpha = -newton.first * total / (newton.value * newton.value)
    gap = (total / budget - total / newton.value).clamp(min=0.0)
    model = 2.0 * gap / (alpha + torch.sqrt(alpha * alpha + 4.0 * gap))
    usable = convex & torch.isfinite(model) & (model > 0.0)
    t = torch.where(usable, torch.minimum(model, high), high)
    zero, infinite = torch.zeros_like(high), torch.full_like(high, torch.inf)
    return Bracket(t=t, low=zero, high=high, best_t=high, best_value=infinite)


def advance(bracket: Bracket, sums: SecularSums, budget: Tensor) -> Bracket:
    """Narrow the bracket with the sums at ``bracket.t`` and propose the next point."""
    value, first, second = sums
    t = bracket.t
    ratio = value / budget
    better = (ratio - 1.0).abs() < (bracket.best_value / budget - 1.0).abs()
    low = torch.where(ratio > 1.0, t, bracket.low)
    high = torch.where(ratio > 1.0, bracket.high, t)
    power = 1.0 / (value * second / (first * first) - 1.0).clamp(min=0.5, max=20.0)
    proposal = t + power * value / -first * (ratio ** (1.0 / power) - 1.0)
    fallback = torch.sqrt(torch.maximum(low, 1e-4 * high) * high)
    inside = torch.isfinite(proposal) & (proposal >= low) & (proposal <= high)
    return Bracket(
        t=torch.where(inside, proposal, fallback),
        low=low,
        high=high,
        best_t=torch.where(better, t, bracket.best_t),
        best_value=torch.where(better, value, bracket.best_value),
    )


class Multiplier(NamedTuple):
    """The solution of the dual, 0-dimensional float64 each.

    ``t`` and ``eta_min`` give η = η_min + t; ``scale`` multiplies the primal step (1 unless the evaluations ran out
    before the tolerance was met); ``kl`` is what the step spends and ``bound`` what it may, in nats; ``active`` says
    whether the bound decided the step (0 or 1). ``share`` multiplies the step, too: what :func:`within` leaves of it.
    """

    eta_min: Tensor
    t: Tensor
    scale: Tensor
    kl: Tensor
    bound: Tensor
    active: Tensor
    share: Tensor


def settle(bracket: Bracket, newton_value: Tensor, eta_min: Tensor, budget: Tensor, kl_rtol: float) -> Multiplier:
    """The multiplier of the best point evaluated, or η = η_min where the Newton step already lies inside the bound."""
    longer = newton_value > budget
    # A point without slope is stationary, also where the model is not convex and has no minimum.
    active = longer & (bracket.best_value > 0.0)
    value = torch.where(longer, bracket.best_value, newton_value)
    met = ~active | ((value / budget - 1.0).abs() <= kl_rtol)
    scale = torch.where(met, torch.ones_like(value), torch.sqrt(budget / value))
    scale = torch.where(torch.isfinite(scale) & (active | ~longer), scale, torch.zeros_like(scale))
    zero = torch.zeros_like(value)
    return Multiplier(
        eta_min=eta_min,
        t=torch.where(active, bracket.best_t, zero),
        scale=scale,
        kl=0.5 * torch.where(scale > 0.0, value * scale * scale, zero),
        bound=0.5 * budget,
        active=active.to(value.dtype),
        share=torch.ones_like(value),
    )


def within(multiplier: Multiplier, squared: Tensor, most: Tensor) -> Multiplier:
    """The multiplier, with a shorter step and a smaller bound where the step's plain length would be too large.

    Args:
        multiplier: solution of the dual.
        squared: Σ δ² of its step, before ``scale``.
        most: what Σ δ² may be.
    """
    share = torch.sqrt(most / squared) / multiplier.scale
    too_long = share < 1.0
    kl = torch.where(too_long, multiplier.kl * share * share, multiplier.kl)
    return multiplier._replace(
        share=torch.where(too_long, share, multiplier.share),
        kl=kl,
        bound=torch.where(too_long, kl, multiplier.bound),
        active=torch.where(too_long, 1.0, multiplier.active),
    )


def usable(multiplier: Multiplier) -> Tensor:
    """Whether a step can be taken with it: everything is finite, and a bound that is active leaves some of the step."""
    finite = torch.isfinite(
        torch.stack([multiplier.eta_min, multiplier.t, multiplier.scale * multiplier.share, multiplier.kl])
    ).all()
    return finite & ((multiplier.active == 0.0) | (multiplier.kl > 0.0))


def tied_multiplier(
    decrement: Tensor, budget: Tensor, temperature: float, damping: float = 0.0
) -> tuple[Multiplier, Tensor]:
    """The dual in closed form where the precision is tied to the curvature, λ = b/κ.

    There δ = −f·a/b with f = 1/(1 + η/κ), a share of Newton's step, and 2·KL = f² Σ(a²/b)/κ, so
    1 + η/κ = max(1 + damping, √(Σ(a²/b) / (2εκ))).

    Args:
        decrement: Σ a²/b, the Newton decrement; 0-dimensional, wide.
        budget: 2ε.
        temperature: κ.
        damping: least η/κ: the weight that the KL divergence keeps where the bound does not bind.

    Returns:
        The multiplier, and f.
    """
    newton = decrement / temperature
    least = 1.0 + damping
    active = newton > least * least * budget
    ratio = torch.where(active, torch.sqrt(newton / budget), torch.full_like(newton, least))
    multiplier = Multiplier(
        eta_min=torch.full_like(newton, temperature * damping),
        t=temperature * (ratio - least),
        scale=torch.ones_like(newton),
        kl=0.5 * newton / (ratio * ratio),
        bound=0.5 * budget,
        active=active.to(newton.dtype),
        share=torch.ones_like(newton),
    )
    return multiplier, 1.0 / ratio
