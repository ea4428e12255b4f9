"""Which passes a step runs through, and how large its chunks are: decided here alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor

from arturo_core.kernels import compiled, cpu, eager, reference, triton
from arturo_core.kernels.many import Kernel
from arturo_core.kernels.passes import Passes
from arturo_core.options import Options

#: Elements of a chunk: eager temporaries stay in the cache of two cores; compiled loops want fewer, longer calls;
#: an accelerator wants calls that fill it, and temporaries beside which a model's memory is large.
CHUNK = {"eager": 1 << 18, "compiled": 1 << 20, "accelerator": 1 << 24}


def passes(options: Options) -> Passes:
    """The passes of a step."""
    return compiled.passes() if options.compile else eager


def fallback() -> Passes:
    """The passes that finish a step which those of :func:`passes` cannot go on with."""
    return reference


def kernel(options: Options, home: torch.device) -> Kernel | None:
    """The kernel that takes many tensors at once, if there is one for this step."""
    if options.fused is False or not suits(options) or torch.compiler.is_compiling():
        return None
    return _kernel(options, home)


def suits(options: Options) -> bool:
    """Whether a kernel could take the steps of these options, if it is there."""
    return not _refusal(options)


def why_not(options: Options, device: torch.device) -> str:
    """Why no kernel can take the steps of these options on a device; empty if one can."""
    if (reason := _refusal(options)) or _kernel(options, device) is not None:
        return reason
    return cpu.why_not() if device.type == "cpu" else triton.why_not(device)


def _kernel(options: Options, device: torch.device) -> Kernel | None:
    """The compiled one on a CPU, Triton's on an accelerator.

    A CPU without the first takes the second if it is demanded and Triton's interpreter runs: so steps are tested.
    """
    if device.type == "cpu" and (cpu.available() or not options.fused):
        return cast(Kernel, cpu) if cpu.available() else None
    return cast(Kernel, triton) if triton.available(device) else None


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
        ValueError: with what works instead.
    """
    if reason := _refusal(options):
        raise ValueError(f"Arturo: fused=True demands a kernel, and there is none: {reason}.")
    for param in params:
        found = _kernel(options, param.device)
        if found is None:
            where = "" if param.device.type == "cpu" else f" on {param.device}"
            raise ValueError(
                f"Arturo: fused=True demands a kernel, and there is none{where}: "
                f"{why_not(options, param.device).rstrip('.')}. Leave fused out: then steps go another way."
            )
        if options.stochastic_rounding and param.dtype == torch.bfloat16:
            raise ValueError(
                "Arturo: fused=True demands a kernel, and there is none that rounds bfloat16 weights at random. Leave "
                "fused or stochastic_rounding out."
            )
        if param.dtype.to_real() not in found.KINDS:
            kinds = ", ".join(map(str, found.KINDS))
            raise ValueError(
                f"Arturo: fused=True demands a kernel, and there is none for {param.dtype} on {param.device}: it takes "
                f"{kinds}. Leave fused out: then what it can take goes through it, and the rest does not."
            )


def chunk_size(options: Options, home: torch.device) -> int:
    """Elements of a chunk."""
    if home.type != "cpu":
        return CHUNK["accelerator"]
    return CHUNK["compiled" if options.compile else "eager"]
