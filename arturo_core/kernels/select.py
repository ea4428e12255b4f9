"""Which passes a step runs through, and how large its chunks are: decided here alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor

from arturo_core.kernels import compiled, cpu, eager, reference
from arturo_core.kernels.many import Kernel
from arturo_core.kernels.passes import Passes
from arturo_core.options import Options

#: Elements of a chunk: eager temporaries stay in the cache of two cores; compiled loops want fewer, longer calls;
#: an accelerator takes whole tensors.
CHUNK = {"eager": 1 << 18, "compiled": 1 << 20, "accelerator": 1 << 30}


def passes(options: Options) -> Passes:
    """The passes of a step."""
    return compiled.passes() if options.compile else eager


def fallback() -> Passes:
    """The passes that finish a step which those of :func:`passes` cannot go on with."""
    return reference


def kernel(options: Options, home: torch.device) -> Kernel | None:
    """The kernel that takes many tensors at once, if there is one for this step."""
    if options.fused is False or why_not(options) or home.type != "cpu" or torch.compiler.is_compiling():
        return None
    return cast(Kernel, cpu)


def suits(options: Options) -> bool:
    """Whether a kernel could take the steps of these options, if it is there."""
    return not _refusal(options)


def why_not(options: Options) -> str:
    """Why no kernel can take the steps of these options; empty if one can."""
    return _refusal(options) or ("" if cpu.available() else cpu.why_not())


def _refusal(options: Options) -> str:
    if options.noise != "adaptive":
        return 'noise="fixed" has none: leave it out, or fused'
    if options.prior:
        return f"prior_precision={options.prior_precision} has none: leave it out, or fused"
    if options.compile:
        return "compile=True compiles passes of its own: leave one of the two out"
    if options.state_dtype == torch.float64:
        return "state_dtype=torch.float64 has none: leave it out, or fused"
    return ""


def check_fused(params: Iterable[Tensor], options: Options) -> None:
    """Refuse ``fused=True`` where there is no kernel.

    Raises:
        ValueError, RuntimeError: with what works instead.
    """
    if reason := why_not(options):
        raise ValueError(f"Arturo: fused=True demands a kernel, and there is none: {reason.rstrip('.')}.")
    for param in params:
        if param.device.type != "cpu" or param.dtype not in cpu.KINDS:
            kinds = ", ".join(map(str, cpu.KINDS))
            raise ValueError(
                f"Arturo: fused=True demands a kernel, and there is none for {param.dtype} on {param.device}: it takes "
                f"{kinds} on the CPU. Leave fused out: then what it can take goes through it, and the rest does not."
            )


def chunk_size(options: Options, home: torch.device) -> int:
    """Elements of a chunk."""
    if home.type != "cpu":
        return CHUNK["accelerator"]
    return CHUNK["compiled" if options.compile else "eager"]
