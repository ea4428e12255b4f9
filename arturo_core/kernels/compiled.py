"""The reference passes through ``torch.compile``: one fused loop each.

Everything that changes from step to step (lr, gains, the multiplier) enters as 0-dimensional tensors and sizes
are dynamic, so nothing recompiles during training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import torch

from arturo_core.kernels import reference
from arturo_core.kernels.passes import Passes


@functools.cache
def passes() -> Passes:
    """The compiled passes; compilation itself happens at their first call."""
    names = (
        "compact_observe",
        "compact_sums",
        "compact_apply",
        "full_observe",
        "full_secular",
        "full_length",
        "full_apply",
    )
    compiled = {name: _explained(torch.compile(getattr(reference, name), dynamic=True)) for name in names}
    # What raises is the compiler, before a pass begins.
    return cast(Passes, SimpleNamespace(ATOMIC=True, **compiled))


def _explained(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Name the way out where a pass cannot be compiled."""

    @functools.wraps(compiled)
    def run(*arguments: Any) -> Any:
        try:
            return compiled(*arguments)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise RuntimeError(
                f"Arturo: compile=True could not compile a pass ({said[:200]}). Torch needs a C++ compiler on PATH (or "
                "in CXX) for that, and Triton on a GPU; or build the optimizer with compile=False, which needs neither."
            ) from error

    return run
