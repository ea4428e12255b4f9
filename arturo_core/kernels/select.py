"""Which passes a step runs through, and how large its chunks are: decided here alone."""

from __future__ import annotations

import torch

from arturo_core.kernels import compiled, eager, reference
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
    return None


def chunk_size(options: Options, home: torch.device) -> int:
    """Elements of a chunk."""
    if home.type != "cpu":
        return CHUNK["accelerator"]
    return CHUNK["compiled" if options.compile else "eager"]
