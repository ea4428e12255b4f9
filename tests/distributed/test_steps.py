"""A step over several processes is the step of one process: the same multiplier, the same weights, in every layout."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import MATRIX, WORLDS, of_world
from problem import MODES, STEPS, single, train
from ranks import run


def every_layout(world: int, dtype: torch.dtype) -> dict[tuple[str, str], Any]:
    """On one rank: every layout of this number of ranks in every mode."""
    found: dict[tuple[str, str], Any] = {}
    for name in of_world(world):
        build, _ = MATRIX[name]
        for mode, options in MODES.items():
            if name.startswith("FSDP1 flat") and options.get("weight_decay"):
                options = {**options, "weight_decay": 0.0}  # one flat vector has one weight decay
            found[name, mode] = train(build(options, dtype), range(STEPS), options["lr"], dtype)
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    return {world: run(every_layout, world, Path(folder) / str(world), world, torch.float64) for world in WORLDS}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", MATRIX)
def test_step_is_that_of_one_process(layout: str, mode: str, results: dict[int, list[Any]]) -> None:
    options = MODES[mode]
    if layout.startswith("FSDP1 flat"):
        options = {**options, "weight_decay": 0.0}
    expected = train(single(options, unused_as_zero=layout.startswith("FSDP1")), range(STEPS), options["lr"])
    ranks = [result[layout, mode] for result in results[MATRIX[layout][1]]]
    assert expected["numbers"][-1]["skipped_steps"] == 1
    for found in ranks:
        assert repr(found["numbers"]) == repr(ranks[0]["numbers"]), "ranks disagree"
        for step, (ours, theirs) in enumerate(zip(found["numbers"], expected["numbers"], strict=True)):
            for key, value in theirs.items():
                same = math.isnan(value) and math.isnan(ours[key])
                assert same or ours[key] == pytest.approx(value, rel=1e-8), (step, key)
        for name, weight in expected["weights"].items():
            torch.testing.assert_close(found["weights"][name], weight, rtol=1e-8, atol=1e-11)
