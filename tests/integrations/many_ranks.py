"""What tests of several frameworks on several ranks share: many cases in one start of processes, and comparisons."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch


def attempted(cases: Mapping[Any, Callable[[], Any]]) -> dict[Any, Any]:
    """What every case returns on this rank; of one that fails the traceback, so that the others still run."""
    found: dict[Any, Any] = {}
    for name, case in cases.items():
        try:
            found[name] = case()
        except BaseException:
            found[name] = traceback.format_exc()
    return found


def sums(numbers: dict[str, float]) -> dict[str, float]:
    """Without what is read from a rank's own shard: quantiles, and the resolution of its weights."""
    return {key: value for key, value in numbers.items() if "_q" not in key and "resolution" not in key}


def assert_same_run(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """To rounding: sums over ranks are taken in another order."""
    for ours, theirs in zip(found["numbers"], expected["numbers"], strict=True):
        assert sums(ours) == pytest.approx(sums(theirs), rel=1e-8)
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight.detach(), rtol=1e-8, atol=1e-11)
