"""What rounding leaves of a step over several processes, and statistics in float32 under bfloat16 weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import MATRIX
from problem import MODES
from ranks import run
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from arturo_core import Arturo

#: Sums of a quarter of a million float32 elements, cut in as many ways as there are ranks.
WIDTHS = (300, 500, 211)
RANKS = (2, 3, 4)
MANY = 8


def wide(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    first, middle, last = WIDTHS
    return nn.Sequential(nn.Linear(first, middle), nn.Tanh(), nn.Linear(middle, last)).to(dtype)


def wide_steps(optimizer: Arturo, params: list[Any]) -> list[float]:
    """η of steps with gradients that are the same however the weights are split."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    found = []
    for step in range(4):
        source = torch.Generator().manual_seed(step)
        for param in params:
            grad = torch.randn(param.shape, generator=source).to(param.dtype)
            split = isinstance(param, DTensor)
            param.grad = distribute_tensor(grad, param.device_mesh, param.placements) if split else grad
        optimizer.step()
        found.append(optimizer.diagnostics()["eta"])
    return found


def eta_of_float32(mode: str) -> list[float]:
    model = wide(torch.float32)
    for module in (model[0], model[2], model):
        fully_shard(module, mesh=init_device_mesh("cpu", (distributed.get_world_size(),)))
    params = list(model.parameters())
    return wide_steps(Arturo(params, **MODES[mode]), params)


def bfloat16(layout: str) -> tuple[dict[str, Any], set[torch.dtype]]:
    """Weights and state after some steps, with float32 statistics under bfloat16 weights."""
    parallel = MATRIX[layout][0](MODES["rms"], torch.bfloat16)
    model, optimizer = parallel.model, parallel.optimizer
    params = list(model.parameters())
    etas = wide_steps(optimizer, params)
    state = {"weights": parallel.whole(), "etas": etas}
    dtypes = {value.dtype for held in optimizer.state.values() for value in held.values() if value.dim()}
    return state, dtypes


def work_of_multipliers() -> dict[str, Any]:
    return {mode: eta_of_float32(mode) for mode in ("rms", "kl", "fixed")}


def work() -> dict[str, Any]:
    world = distributed.get_world_size()
    found = work_of_multipliers()
    found["bfloat16"] = bfloat16(f"FSDP2-{world}")
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    folder = Path(tmp_path_factory.mktemp("precision"))
    return {world: run(work, world, folder / str(world)) for world in RANKS}


@pytest.mark.parametrize("world", RANKS)
@pytest.mark.parametrize("mode", ["rms", "kl", "fixed"])
def test_multiplier_of_float32_sums(mode: str, world: int, results: dict[int, list[Any]]) -> None:
    model = wide(torch.float32)
    params = list(model.parameters())
    expected = wide_steps(Arturo(params, **MODES[mode]), params)
    for rank in results[world]:
        assert rank[mode] == results[world][0][mode]
        assert rank[mode] == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["rms", "kl", "fixed"])
def test_multiplier_of_float32_sums_on_many_ranks(mode: str, tmp_path: Path) -> None:
    test_multiplier_of_float32_sums(mode, MANY, {MANY: run(work_of_multipliers, MANY, tmp_path)})


@pytest.mark.parametrize("world", RANKS)
def test_float32_state_of_bfloat16_weights(world: int, results: dict[int, list[Any]]) -> None:
    from problem import groups, network

    model = network(torch.bfloat16)
    optimizer = Arturo(groups(model), **MODES["rms"])
    expected = wide_steps(optimizer, list(model.parameters()))
    for rank in results[world]:
        state, dtypes = rank["bfloat16"]
        assert dtypes == {torch.float32}
        assert state["etas"] == pytest.approx(expected, rel=1e-5)
        for name, param in model.named_parameters():
            found, weight = state["weights"][name], param.detach()
            assert found.dtype == torch.bfloat16
            # One multiplier a millionth off can round a weight the other way, by one unit in its last place.
            torch.testing.assert_close(found, weight, rtol=2**-7, atol=1e-6)
            assert (found != weight).float().mean() < 0.05
