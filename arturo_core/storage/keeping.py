"""From what is kept to what is counted with, and back: flat tensors of a pass, or whole parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from arturo_core.algorithm.compact import Kept
from arturo_core.contexts import is_readable
from arturo_core.storage import codes
from arturo_core.storage.kinds import ROWS, Kind, is_codes, kind_of
from arturo_core.storage.random_bits import rounded


def unpacked(state: Sequence[Tensor]) -> Kept:
    """The statistics of a chunk as float32, new tensors; ``state`` is flat, in the order of the entries."""
    if is_codes(state[0].dtype):
        direction, deviation, curvature, displacement, *scales = state
        return Kept(
            codes.signed_values(direction, scales[0]),
            deviation.to(torch.float32),
            codes.log_values(curvature),
            codes.signed_values(displacement, scales[1]),
        )
    return Kept(*(tensor.to(torch.float32) for tensor in state))


def pack(state: Sequence[Tensor], kept: Kept, bits: Tensor, ok: Tensor) -> None:
    """Keep what an update has left; ``bits`` are an element's random ones. Where ``ok`` is 0 nothing is written."""
    _write(state, packed(kept, bits, is_codes(state[0].dtype)), ok)


def pack_moved(state: Sequence[Tensor], kept: Kept, bits: Tensor, ok: Tensor) -> None:
    """Keep u and D as a step has left them; the rest is as it was."""
    noise = codes.noises(bits)
    if not is_codes(state[0].dtype):
        fresh = [rounded(kept.direction, bits & 0xFFFF), kept.displacement.to(torch.bfloat16)]
        _write([state[0], state[3]], fresh, ok)
        return
    scales = [codes.scales(kept.direction), codes.scales(kept.displacement)]
    fresh = [
        codes.signed_codes(kept.direction, scales[0], noise.direction),
        codes.signed_codes(kept.displacement, scales[1], noise.displacement),
        *scales,
    ]
    _write([state[0], state[3], state[4], state[5]], fresh, ok)


def packed(kept: Kept, bits: Tensor, coded: bool) -> list[Tensor]:
    """The entries of float32 statistics, new tensors; flat. u and σ are rounded at random, in 8 bits s and D, too."""
    noise = codes.noises(bits)
    deviation = rounded(kept.deviation, noise.deviation)
    if not coded:
        narrow = [tensor.to(torch.bfloat16) for tensor in (kept.curvature, kept.displacement)]
        return [rounded(kept.direction, bits & 0xFFFF), deviation, *narrow]
    scales = [codes.scales(kept.direction), codes.scales(kept.displacement)]
    return [
        codes.signed_codes(kept.direction, scales[0], noise.direction),
        deviation,
        codes.log_codes(kept.curvature, noise.curvature),
        codes.signed_codes(kept.displacement, scales[1], noise.displacement),
        *scales,
    ]


def to_nearest(kept: Kept, coded: bool) -> list[Tensor]:
    """The entries of statistics that are converted once; flat."""
    wide = Kept(*(tensor.to(torch.float32) for tensor in kept))
    if not coded:
        return [tensor.to(torch.bfloat16) for tensor in wide]
    half = torch.full_like(wide.direction, 0.5)
    scales = [codes.scales(wide.direction), codes.scales(wide.displacement)]
    return [
        codes.signed_codes(wide.direction, scales[0], half),
        wide.deviation.to(torch.bfloat16),
        codes.log_codes(wide.curvature, half),
        codes.signed_codes(wide.displacement, scales[1], half),
        *scales,
    ]


def values(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The rows of the table that entries keep, at least float32 and shaped as the codes are; other entries as given.

    Args:
        held: plain tensors, in the shape of the parameter or a part of whole blocks.
    """
    kept = kind_of(held)
    if kept is Kind.WIDE:
        return dict(held)
    rest = {name: value for name, value in held.items() if not name.endswith(("_8bit", "_scale"))}
    if kept is Kind.NARROW:
        return rest | {name: held[name].to(torch.float32) for name in ROWS}
    shape = held["direction_8bit"].shape
    state = [held[name].reshape(-1) for name in CODED_NAMES]
    return rest | {name: value.view(shape) for name, value in unpacked(state)._asdict().items()}


#: Names in 8 bits, in the order of a pass.
CODED_NAMES = (
    "direction_8bit",
    "deviation",
    "curvature_8bit",
    "displacement_8bit",
    "direction_scale",
    "displacement_scale",
)


def _write(into: Sequence[Tensor], fresh: Sequence[Tensor], ok: Tensor) -> None:
    if is_readable(ok):
        if not bool(ok):
            return
    else:
        # A skipped step leaves what is kept as it was, bit for bit.
        fresh = [torch.where(ok > 0, new, old) for new, old in zip(fresh, into, strict=True)]
    for target, value in zip(into, fresh, strict=True):
        target.copy_(value)
