"""What every record of training with an Arturo has to show, whoever wrote it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from arturo_core import Arturo
from arturo_integrations.metrics import arturo_metrics

#: README: wherever the bound is active, the divergence spent equals it to 0.1 %.
TOLERANCE = 1e-3


def assert_records(records: Sequence[dict[str, Any]], steps: Sequence[int]) -> None:
    """Every record has the numbers of its own step, and that step kept to its trust region."""
    assert [record["arturo/steps"] for record in records] == list(steps)
    for record in records:
        assert_within_trust_region(record)


def assert_within_trust_region(record: dict[str, Any]) -> None:
    assert 0 < record["arturo/kl_bound"] < math.inf
    assert record["arturo/kl"] <= record["arturo/kl_bound"] * (1 + TOLERANCE)
    assert record["arturo/skipped_steps"] == 0
    assert record["arturo/step_rms"] > 0
    if record["arturo/bound_active"]:
        assert record["arturo/kl_ratio"] == pytest.approx(1, abs=TOLERANCE)


def assert_falls(losses: Sequence[float], to: float) -> None:
    """The mean of the last quarter is at most a share of the mean of the first quarter."""
    quarter = max(1, len(losses) // 4)
    first, last = sum(losses[:quarter]) / quarter, sum(losses[-quarter:]) / quarter
    assert last < to * first, losses


def assert_holds_arturo(optimizer: Any, steps: int, model: torch.nn.Module) -> Arturo:
    """The optimizer is an Arturo that has stepped all that can be trained, so often; returns it."""
    assert isinstance(optimizer, Arturo)
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad} == trainable
    assert {id(p) for p in optimizer.state} == trainable
    numbers = arturo_metrics(optimizer)
    assert numbers["arturo/steps"] == steps
    assert_within_trust_region(numbers)
    return optimizer
