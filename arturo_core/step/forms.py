"""The step of each form, by the option that chooses the form."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from arturo_core.options import Options
from arturo_core.step import compact, published
from arturo_core.step.transaction import Journal
from arturo_core.step.work import Outcome, Step

#: Takes a step, given the mean relative curvature after the last, and returns what is left to write.
Take = Callable[[Step, Tensor, Journal], Outcome]

STEPS: dict[str, Take] = {"adaptive": compact.take, "fixed": published.take}


def step_of(options: Options) -> Take:
    """The step of the form that the options choose."""
    return STEPS[options.noise]
