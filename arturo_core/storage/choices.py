"""What a user may choose of storage: how the state is kept, and how bfloat16 weights are rounded."""

from __future__ import annotations

from typing import Any

import torch

#: Value of ``state_dtype`` for codes of 8 bits (:mod:`arturo_core.storage.codes`).
EIGHT_BITS = "8bit"


def check_state_dtype(value: Any) -> torch.dtype | str:
    """How the state is kept, from a dtype, its name ("bfloat16", "torch.float32") or "8bit".

    Raises:
        ValueError: it is none of those that the state can be kept in.
    """
    if isinstance(value, str) and value.strip().lower() == EIGHT_BITS:
        return EIGHT_BITS
    found = getattr(torch, value.strip().removeprefix("torch."), None) if isinstance(value, str) else value
    use = 'use torch.float32 (the default), torch.bfloat16 or "8bit" for less memory, or torch.float64.'
    if isinstance(found, torch.dtype):
        if found in (torch.float32, torch.float64, torch.bfloat16):
            return found
        raise ValueError(f"Arturo: state_dtype={value} is not supported: {use}")
    raise ValueError(f"Arturo: state_dtype={str(value)[:60]!r} ({type(value).__name__}) is no dtype: {use}")


def check_rounding(value: Any, noise: str) -> bool:
    """Raise unless ``stochastic_rounding`` is True or False, and False where there is none."""
    if not isinstance(value, bool):
        raise TypeError(f"Arturo: stochastic_rounding={str(value)[:60]!r} must be True or False.")
    if value and noise == "fixed":
        raise ValueError('Arturo: stochastic_rounding=True has no meaning with noise="fixed": leave it out.')
    return value
