"""Checkpoints of version 0.1, recorded with it (commit e08078a): they load, and training goes on as it did there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from problems import MODES, build, train

RECORDED = Path(__file__).parents[1] / "data/version_0_1.pt"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    found: dict[str, Any] = torch.load(RECORDED, weights_only=True)
    return found


#: With "fixed-rms" the plain RMS of a step is bounded since.
SAME_RULES = [mode for mode in MODES if mode != "fixed-rms"]


@pytest.mark.parametrize("mode", SAME_RULES)
def test_training_goes_on_as_it_did(recorded: dict[str, Any], mode: str) -> None:
    saved = recorded[mode]
    params, optimizer = build(saved["options"])
    with torch.no_grad():
        for param, weight in zip(params, saved["weights"], strict=True):
            param.copy_(weight)
    with pytest.warns(UserWarning, match="older version"):
        optimizer.load_state_dict(saved["state"])
    assert optimizer.diagnostics()["steps"] == 5
    train(optimizer, params, range(5, 9))
    for param, later, before in zip(params, saved["later"], saved["weights"], strict=True):
        moved = float((later - before).abs().max())
        torch.testing.assert_close(param.detach(), later, rtol=0.0, atol=2e-5 * moved)


@pytest.mark.parametrize("storage", ["bfloat16", "8bit"])
@pytest.mark.parametrize("mode", [mode for mode in SAME_RULES if mode.startswith("adaptive")])
def test_it_loads_into_a_narrow_state(recorded: dict[str, Any], mode: str, storage: str) -> None:
    saved = recorded[mode]
    params, optimizer = build({**saved["options"], "state_dtype": storage})
    _, wide = build(saved["options"])
    with pytest.warns(UserWarning, match=f"is converted: this optimizer has state_dtype={storage}"):
        optimizer.load_state_dict(saved["state"])
    with pytest.warns(UserWarning, match="older version"):
        wide.load_state_dict(saved["state"])
    for param, other in zip(params, wide.state, strict=True):
        relative = optimizer.precision(param) / wide.precision(other)
        assert float(relative.log().abs().max()) < 0.02
    with torch.no_grad():
        for param, weight in zip(params, saved["weights"], strict=True):
            param.copy_(weight)
    train(optimizer, params, range(5, 9))
    for param, later, before in zip(params, saved["later"], saved["weights"], strict=True):
        moved = float((later - before).abs().max())
        torch.testing.assert_close(param.detach(), later, rtol=0.0, atol=0.1 * moved)


@pytest.mark.parametrize("name", ["gradient", "noise", "curvature", "displacement"])
def test_a_damaged_one_is_refused(recorded: dict[str, Any], name: str) -> None:
    saved = recorded["adaptive-rms"]
    state_dict = {**saved["state"], "state": {key: dict(held) for key, held in saved["state"]["state"].items()}}
    state_dict["state"][0][name] = torch.full_like(state_dict["state"][0][name], torch.nan)
    _, optimizer = build(saved["options"])
    with pytest.raises(ValueError, match="the checkpoint is damaged"):
        optimizer.load_state_dict(state_dict)
    assert not optimizer.state
