"""Parameters split over the ranks of a process group take the step that one process takes with all of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run
from torch import distributed

from arturo_core import Arturo

MODES: list[dict[str, Any]] = [
    {"lr": 1.0},
    {"lr": 1e-2},
    {"lr": 1e-1, "trust_region": "kl"},
    {"lr": 1e-1, "noise": "fixed"},
    {"lr": 3e-3, "noise": "fixed", "trust_region": "kl"},
]
#: A matrix among them: at the first lr its size bounds the steps.
SHAPES = [(8, 5), (7,), (13,)]


def train(optimizer: Arturo, params: dict[int, torch.nn.Parameter]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    for step in range(8):
        for index, shape in enumerate(SHAPES):
            grad = torch.randn(shape, generator=generator, dtype=torch.float64)
            if index in params:
                params[index].grad = grad
                if step == 6 and index == 2:
                    params[index].grad = None  # all that its rank has
                if step == 4 and index == 0:
                    params[index].grad[3, 1] = torch.nan
        if step == 5:
            group = optimizer.process_group
            optimizer = copy.deepcopy(optimizer)  # goes on with the same ranks
            assert optimizer.process_group is group
            params = dict(zip(params, optimizer.param_groups[0]["params"], strict=True))
            for param in params.values():
                param.grad = None
            generator = torch.Generator().manual_seed(1)
            continue
        optimizer.step()
    numbers = optimizer.diagnostics()
    kept = ("eta", "kl", "kl_bound", "innovation_ratio", "step_rms", "steps", "skipped_steps")
    return {"weights": {i: p.detach() for i, p in params.items()}, "numbers": {key: numbers[key] for key in kept}}


def parameters(indices: list[int]) -> dict[int, torch.nn.Parameter]:
    torch.manual_seed(0)
    everything = [torch.randn(shape, dtype=torch.float64) for shape in SHAPES]
    return {index: torch.nn.Parameter(everything[index]) for index in indices}


def work(shares: list[list[int]]) -> list[dict[str, Any]]:
    rank = distributed.get_rank()
    results = []
    for mode in MODES:
        params = parameters(shares[rank])
        # A rank without parameters holds an empty one: it takes part in every sum.
        held = list(params.values()) or [torch.nn.Parameter(torch.zeros(0, dtype=torch.float64))]
        optimizer = Arturo(held, process_group=distributed.group.WORLD, **mode)
        if not params:
            held[0].grad = torch.zeros(0, dtype=torch.float64)
            params = {99: held[0]}
        results.append(train(optimizer, params))
    return results


@pytest.mark.parametrize("shares", [[[0, 1], [2]], [[0, 1, 2], []]], ids=["split", "a rank without parameters"])
def test_split_parameters_step_as_one(shares: list[list[int]], tmp_path: Path) -> None:
    ranks = run(work, len(shares), tmp_path, shares)
    for index, mode in enumerate(MODES):
        params = parameters([0, 1, 2])
        expected = train(Arturo(params.values(), **mode), params)
        assert expected["numbers"]["skipped_steps"] == 1
        for rank, share in enumerate(shares):
            found = ranks[rank][index]
            for key, value in expected["numbers"].items():
                assert found["numbers"][key] == pytest.approx(value, rel=1e-9), (mode, rank, key)
            for name in share:
                torch.testing.assert_close(found["weights"][name], expected["weights"][name], rtol=1e-9, atol=1e-12)
