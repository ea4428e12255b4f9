"""What a step reports: the multiplier and the bound of the last step, and how the learned state is distributed.

A step keeps a handful of 0-dimensional tensors that it had computed anyway; reading them, and the quantiles, costs
something only when :func:`summarize` is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from arturo_core.algorithm.trust_region import Multiplier

#: Quantiles reported of precision and relative curvature.
QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class Report:
    """The last step, as 0-dimensional tensors; nothing here has been copied to the host."""

    multiplier: Multiplier
    ok: Tensor
    surprise: Tensor
    squared_length: Tensor
    count: Tensor


def summarize(report: Report | None, steps: int, skipped: int) -> dict[str, Any]:
    """Numbers of the last step, as plain Python values; see :meth:`Arturo.diagnostics` for their meaning."""
    numbers: dict[str, Any] = {"steps": steps, "skipped_steps": skipped}
    if report is None:
        return numbers
    multiplier = report.multiplier
    values = torch.stack(
        [
            multiplier.eta_min + multiplier.t,
            multiplier.kl,
            multiplier.bound,
            multiplier.active,
            multiplier.scale,
            report.surprise,
            report.squared_length,
            report.ok,
            report.count.clamp(min=1.0),
        ]
    ).tolist()
    eta, kl, bound, active, scale, surprise, squared, ok, count = values
    took = ok > 0.0
    return {
        "eta": eta if took else float("nan"),
        "kl": kl if took else 0.0,
        "kl_bound": bound,
        "kl_ratio": kl / bound if took and bound > 0.0 else 0.0,
        "bound_active": bool(active) and took,
        "step_scale": scale,
        "step_rms": (squared / count) ** 0.5,
        "innovation_ratio": surprise / count if took else float("nan"),
        **numbers,
    }


def quantiles(name: str, sample: Sequence[Tensor]) -> dict[str, float]:
    """Quantiles ``{name}_q05 …`` of a sample given in parts."""
    values = torch.cat([part.float().cpu() for part in sample])
    levels = torch.quantile(values[: 1 << 23], values.new_tensor(QUANTILES)).tolist()
    return {f"{name}_q{round(100 * level):02d}": value for level, value in zip(QUANTILES, levels, strict=True)}
