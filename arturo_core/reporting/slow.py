"""Steps that go the slow way because the compiled CPU kernel is missing: told once in a process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arturo_core.kernels import cpu, select

if TYPE_CHECKING:
    from arturo_core.optimizer import Arturo

#: Weights from which on it is worth a line.
MANY = 1 << 20

_told: list[str] = []


def notice(optimizer: Arturo) -> str | None:
    """What to say if the kernel could take the steps of a large model on the CPU, and is not there."""
    if _told or optimizer.options.fused is not None or cpu.available() or not select.suits(optimizer._options):
        return None
    params = [param for group in optimizer.param_groups for param in group["params"]]
    if sum(param.numel() for param in params if param.device.type == "cpu") < MANY:
        return None
    _told.append(
        f"Arturo: steps take several times as long as with the compiled CPU kernel: {cpu.why_not()} fused=False keeps "
        "this quiet."
    )
    return _told[0]
