"""The reference passes through ``torch.compile``: one fused loop each.

Everything that changes from step to step (lr, gains, the multiplier) enters as 0-dimensional tensors and sizes
are dynamic, so nothing recompiles during training.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import cast

import torch

from arturo_core.kernels import reference
from arturo_core.kernels.passes import Passes


@functools.cache
def passes() -> Passes:
    """The five compiled passes; compilation itself happens at their first call."""
    names = ("compact_observe", "compact_apply", "full_observe", "full_secular", "full_apply")
    compiled = {name: torch.compile(getattr(reference, name), dynamic=True) for name in names}
    return cast(Passes, SimpleNamespace(ATOMIC=True, **compiled))  # what raises is the compiler, before a pass begins
