"""States that older versions saved, as they are kept now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def of_version_0_1(saved: Mapping[str, Any], least_deviation: float) -> Mapping[str, Any]:
    """A state of the default form that holds ĝ and R themselves, as u = ĝ/(sσ) and σ; any other as it is.

    Elementwise: the tensors may be sharded in any way.
    """
    gradient, noise, relative = (saved.get(name) for name in ("gradient", "noise", "curvature"))
    if "deviation" in saved or not (isinstance(gradient, Tensor) and isinstance(noise, Tensor)):
        return saved
    if not isinstance(relative, Tensor) or not gradient.shape == noise.shape == relative.shape:
        return saved  # which is then refused by name
    deviation = noise.to(torch.promote_types(noise.dtype, torch.float32)).sqrt()
    deviation = torch.where(deviation < least_deviation, least_deviation, deviation)  # NaN stays NaN, and is refused
    rest = {name: value for name, value in saved.items() if name not in ("gradient", "noise")}
    return rest | {"direction": gradient / (relative * deviation), "deviation": deviation, "pending": 0.0, "moved": 0.0}
