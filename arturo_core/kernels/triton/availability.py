"""Whether Triton and a device are there; asked once a device."""

from __future__ import annotations

import functools
import importlib.util
from types import ModuleType
from typing import Any

import torch

from arturo_core.contexts import fake_mode_is_active, is_capturing

#: Of the compiler. Products and sums are not fused, so that its versions agree.
OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}


@functools.cache
def kernels() -> ModuleType:
    from arturo_core.kernels.triton import jit

    return jit


#: By device: why not.
_reasons: dict[torch.device, str] = {}


def available(device: torch.device) -> bool:
    """Whether these passes can run on a device."""
    return not why_not(device)


def why_not(device: torch.device) -> str:
    """Why these passes cannot run on a device; empty if they can.

    Asked for the first time it compiles and launches a small kernel. Under Triton's interpreter they run on the CPU.
    """
    known = _reasons.get(device)
    if known is None:
        if is_capturing(device):
            return "a step has to be taken before a graph is captured"
        if fake_mode_is_active():
            return "tensors hold no numbers"
        known = _reasons[device] = _reason(device)
    return known


def _reason(device: torch.device) -> str:
    if device.type not in ("cpu", "cuda", "xpu"):
        return f"there are no Triton kernels for {device.type!r}"
    try:
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        if (device.type == "cpu") != kernels().INTERPRETED:
            return f"Triton has no kernels for {device.type!r} now (its interpreter has them for the CPU)"
        if device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device) < (8, 0):
            return "Triton needs compute capability 8.0 or more"
        if device.type == "xpu" and not torch.xpu.get_device_properties(device).has_fp64:
            return "the device has no float64"
        _load(device)
    except Exception as error:  # of the compiler, the driver, or a broken installation
        return f"Triton does not work here ({_first_line(error)})"
    return ""


def _load(device: torch.device) -> None:
    from arturo_core.kernels.triton import tables

    tables.written([0], device)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
