"""Steps that go the slow way because a kernel is missing: told once in a process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arturo_core.contexts import is_capturing, is_fake
from arturo_core.kernels import select

if TYPE_CHECKING:
    from arturo_core.optimizer import Arturo

#: Weights from which on it is worth a line.
MANY = 1 << 20

#: The kernel of a device. On others nothing that a user can do brings one.
_KERNELS = {"cpu": "compiled CPU kernel", "cuda": "Triton kernels", "xpu": "Triton kernels"}

_told: list[str] = []


def notice(optimizer: Arturo) -> str | None:
    """What to say if a kernel could take the steps of a large model, and is not there, where its first weight is."""
    options = optimizer.options
    if _told or options.fused is not None or not select.suits(options):
        return None
    first = next((param for group in optimizer.param_groups for param in group["params"]), None)
    if first is None or first.device.type not in _KERNELS or is_fake(first) or is_capturing(first.device):
        return None
    if not (reason := select.why_not(options, first.device)):
        return None
    params = [param for group in optimizer.param_groups for param in group["params"]]
    if sum(param.numel() for param in params if param.device == first.device) < MANY:
        return None
    _told.append(
        f"steps take several times as long as with the {_KERNELS[first.device.type]}: {reason.rstrip('.')}. "
        "fused=False keeps this quiet."
    )
    return _told[0]
