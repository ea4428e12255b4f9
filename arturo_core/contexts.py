"""Contexts that a step may be taken in, and what must not outlive them.

Tensors made under ``torch.inference_mode()`` can never be written to outside of it. Those made under FakeTensorMode
hold no numbers. Without an explicit device, tensors go where a ``torch.device`` context says. What an optimizer keeps
from one step to the next is therefore made inside :func:`lasting`, with device and dtype.


Nor must a step wait for a device, or leave in a graph that it records what the host reads once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

_PLAIN = (Tensor, torch.nn.Parameter)


def lasting() -> Any:
    """A context in which tensors are made that may outlive the caller's inference mode; without gradients."""
    return _outside_of_inference() if torch.is_inference_mode_enabled() else nullcontext()


@contextmanager
def _outside_of_inference() -> Iterator[None]:
    with torch.inference_mode(False), torch.no_grad():
        yield


def is_fake(tensor: Any) -> bool:
    """Whether a tensor has a shape but no numbers: of FakeTensorMode, or on the meta device."""
    return tensor.device.type == "meta" or (type(tensor) not in _PLAIN and hasattr(tensor, "fake_mode"))


def fake_mode_is_active() -> bool:
    """Whether tensors that are made now hold no numbers; not where ``torch.compile`` traces, which takes them back."""
    return not torch.compiler.is_compiling() and type(torch.empty(0, dtype=torch.float32, device="cpu")) is not Tensor


def is_readable(tensor: Tensor) -> bool:
    """Whether the host can read a tensor without waiting for a device, or breaking a graph that is being compiled."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and not is_fake(tensor)


def is_capturing(device: torch.device) -> bool:
    """Whether what is done on a device now is recorded in a graph instead, to be replayed without the host."""
    if device.type != "cuda" or torch.compiler.is_compiling() or not torch.cuda.is_initialized():
        return False
    return torch.cuda.is_current_stream_capturing()


def brought(numbers: Sequence[Any] | float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A vector or a matrix of numbers on a device, without waiting for it."""
    if is_capturing(device):
        # A graph would copy from memory that is gone when it is replayed; what is filled in is part of it.
        if isinstance(numbers, (int, float)):
            return torch.full((), numbers, dtype=dtype, device=device)
        return torch.stack([brought(part, device, dtype) for part in numbers])
    here = torch.tensor(numbers, dtype=dtype, device="cpu")
    pinned = here.pin_memory() if device.type in ("cuda", "xpu") and not is_fake(here) else here
    return pinned.to(device, non_blocking=True)
