"""A state in bfloat16 and in 8 bits over several processes, to the bit: also in shards that cut rows or blocks.

:mod:`test_narrow_states` has the ordinary layouts.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from arturo_core import Arturo
from arturo_core.distributed import fsdp1

STORAGES = ("bfloat16", "8bit")
#: Steps before a checkpoint, and the step after it.
BEFORE, AFTER = range(5), 5
WHOLE = StateDictOptions(full_state_dict=True)


SHAPES = {"wide": (7, 128), "tall": (48, 64), "filters": (6, 8, 4, 3), "odd": (4, 6), "vector": (20,)}


class Weights(nn.Module):
    """Rows that ranks share unevenly, in codes; a row and a vector that are not."""

    def __init__(self) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(0)
        for name, shape in SHAPES.items():
            setattr(self, name, nn.Parameter(torch.randn(shape, generator=source)))

    def forward(self, given: dict[str, Tensor]) -> Tensor:
        """What has these gradients, exactly."""
        parts = []
        for name in SHAPES:
            param = getattr(self, name)  # FSDP1 puts plain tensors there
            grad = given[name].to(param.dtype)
            if isinstance(param, DTensor):
                grad = distribute_tensor(grad, param.device_mesh, param.placements)
            part = (param * grad).sum()
            parts.append(part.full_tensor() if isinstance(part, DTensor) else part)
        return torch.stack(parts).sum()


def gradients(step: int) -> dict[str, Tensor]:
    """Of few bits, so that averages over ranks are exact."""
    source = torch.Generator().manual_seed(100 + step)
    found = {}
    for name, param in Weights().named_parameters():
        noise = torch.randn(param.shape, generator=source) + 0.5 * torch.sign(param.detach())
        found[name] = (noise * 4.0).round().clamp(-15.0, 15.0) / 4.0
    return found


def take(model: nn.Module, optimizer: Any, step: int) -> None:
    optimizer.zero_grad()
    model(gradients(step)).backward()
    optimizer.step()


def build(dtype: torch.dtype) -> Weights:
    return Weights().to(dtype)


def one(dtype: torch.dtype = torch.float32) -> nn.Module:
    return build(dtype)


def split(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    return fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))


def fsdp2(dtype: torch.dtype = torch.float32) -> nn.Module:
    return split(build(dtype), init_device_mesh("cpu", (distributed.get_world_size(),)))


def columns(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Tensor parallelism along rows' elements: blocks of the first two are whole, those of the filters would be cut."""
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    model = build(dtype)
    for name in ("wide", "tall", "filters"):
        setattr(model, name, nn.Parameter(distribute_tensor(getattr(model, name).detach(), mesh, [Shard(1)])))
    return model


def rows_and_columns(dtype: torch.dtype = torch.float32) -> nn.Module:
    """FSDP2 over tensor parallelism, along the same and along the other dimension."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp"))
    model = build(dtype)
    model.wide = nn.Parameter(distribute_tensor(model.wide.detach(), mesh["tp"], [Shard(1)]))
    model.tall = nn.Parameter(distribute_tensor(model.tall.detach(), mesh["tp"], [Shard(0)]))
    return split(model, mesh["fsdp"])


#: Layouts whose shards of a matrix are not consecutive elements: no kernel takes these, the eager passes do.
CUTTING = (columns, rows_and_columns)

#: Layouts by the number of ranks.
LAYOUTS: dict[int, tuple[Callable[..., nn.Module], ...]] = {
    2: (columns,),
    3: (fsdp2,),
    4: (rows_and_columns,),
}


def whole(value: Tensor) -> Tensor:
    return (value.full_tensor() if isinstance(value, DTensor) else value).clone()


def kept(model: nn.Module, optimizer: Arturo) -> dict[str, dict[str, Tensor]]:
    """The whole state by the names of the parameters, as it is stored."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, param in model.named_parameters():
        state = optimizer.state[param].items()
        found[name] = {key: whole(value) for key, value in state}
    return found


def optimizer_of(model: nn.Module, storage: str, fused: bool | None) -> Arturo:
    return Arturo(model.parameters(), lr=1e-2, weight_decay=0.1, state_dtype=storage, fused=fused)


def first_steps(layout: Callable[..., nn.Module], storage: str, fused: bool | None, dtype: torch.dtype) -> Any:
    """What is kept after the first step, and after some more."""
    model = layout(dtype)
    optimizer = optimizer_of(model, storage, fused)
    take(model, optimizer, 0)
    first = kept(model, optimizer)
    for step in BEFORE[1:]:
        take(model, optimizer, step)
    return first, kept(model, optimizer)


def resumed(layout: Callable[..., nn.Module], storage: str, folder: Path) -> Any:
    """What is loaded of the checkpoint of one process, and kept by the step after it."""
    model = layout()
    optimizer = optimizer_of(model, storage, None)
    if layout is columns:  # which keeps the filters in another way, so not every name is in the checkpoint
        saved = torch.load(folder / f"{storage}.pt", weights_only=True)
        set_model_state_dict(model, saved["model"], options=WHOLE)
        set_optimizer_state_dict(model, optimizer, saved["optimizer"], options=WHOLE)
    else:
        saved = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
        checkpoint.load(saved, checkpoint_id=folder / storage)
        set_model_state_dict(model, saved["model"])
        set_optimizer_state_dict(model, optimizer, saved["optimizer"])
    loaded = kept(model, optimizer)
    take(model, optimizer, AFTER)
    return loaded, kept(model, optimizer)


def of_flat_shards(use_orig_params: bool) -> tuple[list[list[Tensor]], list[str]]:
    """Of every parameter what is kept on this rank of σ and u after the first step; and what was said of 8 bits."""
    model = FullyShardedDataParallel(
        build(torch.float32), use_orig_params=use_orig_params, device_id=torch.device("cpu")
    )
    optimizer = Arturo(model.parameters(), lr=1e-2, state_dtype="8bit", process_group=model.process_group)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(2):
            take(model, optimizer, step)
            if step == 0:
                first = [
                    [fsdp1.without_padding(param, held[name]).clone() for name in ("deviation", "direction")]
                    for param, held in optimizer.state.items()
                ]
    return first, [str(one.message) for one in said if "8bit" in str(one.message)]


def work(folder: Path) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    if distributed.get_world_size() in (2, 3):
        found["FSDP1"], found["FSDP1 flat"] = of_flat_shards(True), of_flat_shards(False)
    for layout in LAYOUTS[distributed.get_world_size()]:
        for storage in STORAGES:
            for fused in (None, False):
                found[layout.__name__, storage, fused] = first_steps(layout, storage, fused, torch.float32)
            for fused in (False,) if layout in CUTTING else (None, False):
                found[layout.__name__, storage, fused, "bfloat16"] = first_steps(layout, storage, fused, torch.bfloat16)
            found[layout.__name__, storage, "resumed"] = resumed(layout, storage, folder)
    return found


def alone(folder: Path) -> dict[Any, Any]:
    """One process without any layout, which also writes the checkpoints."""
    found: dict[Any, Any] = {}
    for storage in STORAGES:
        for fused in (None, False):
            found[storage, fused] = first_steps(one, storage, fused, torch.float32)
            found[storage, fused, "bfloat16"] = first_steps(one, storage, fused, torch.bfloat16)
        model = one()
        optimizer = optimizer_of(model, storage, None)
        for step in BEFORE:
            take(model, optimizer, step)
        saved = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
        checkpoint.save(saved, checkpoint_id=folder / storage)
        torch.save(saved, folder / f"{storage}.pt")
        loaded = kept(model, optimizer)
        for fused in (None, False):
            twin = copy.deepcopy(model)
            other = optimizer_of(twin, storage, fused)
            other.load_state_dict(optimizer.state_dict())
            take(twin, other, AFTER)
            found[storage, fused, "resumed"] = loaded, kept(twin, other)
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[Any, Any], dict[int, list[Any]]]:
    folder = Path(tmp_path_factory.mktemp("narrow"))
    expected = alone(folder)
    return expected, {world: run(work, world, folder / str(world), folder) for world in LAYOUTS}


CASES = [(layout.__name__, world) for world, layouts in LAYOUTS.items() for layout in layouts]
every_layout = pytest.mark.parametrize(("layout", "world"), CASES)
every_storage = pytest.mark.parametrize("storage", STORAGES)
by_default_and_eager = pytest.mark.parametrize("fused", [None, False], ids=["by default", "eager"])


def apart(found: dict[str, Any], *expected: dict[str, Any], but: str = "") -> dict[str, float]:
    """Share of the elements of every tensor that are others than expected, or as expected in another way of steps."""
    shares = {}
    for name in found.keys() - {but}:
        assert found[name].keys() == expected[0][name].keys()
        for key, value in found[name].items():
            shares[f"{key} of {name}"] = min(float((value != one[name][key]).float().mean()) for one in expected)
    return shares


def cut(layout: str, storage: str) -> str:
    """What a layout keeps in another storage than one process."""
    return "filters" if (layout, storage) == ("columns", "8bit") else ""


@by_default_and_eager
@every_storage
@every_layout
def test_the_same_is_kept_on_any_ranks(layout: str, world: int, storage: str, fused: bool | None, results: Any) -> None:
    alone, ranks = results
    but = cut(layout, storage)
    cuts = fused is None and layout in [one.__name__ for one in CUTTING]
    for rank in ranks[world]:
        first, later = rank[layout, storage, fused]
        (expected, last), (eager, _) = alone[storage, fused], alone[storage, False]
        # σ of the first step depends on the gradient alone, and its noise on the element, whatever keeps the rest.
        assert not any(apart(first, expected, eager, but=but).values())
        assert all(torch.equal(first[name]["deviation"], expected[name]["deviation"]) for name in first)
        # Sums over ranks are added up in another order, and the multiplier's last digit decides a rounding at times.
        if not cuts:
            assert max(apart(later, last, but=but).values()) < (0.15 if but else 0.02)


@by_default_and_eager
@every_storage
@every_layout
def test_under_bfloat16_weights(layout: str, world: int, storage: str, fused: bool | None, results: Any) -> None:
    """u and D are rounded again after the step, with noise of their own."""
    alone, ranks = results
    for rank in ranks[world]:
        for mine, expected in zip(
            rank.get((layout, storage, fused, "bfloat16"), ()), alone[storage, fused, "bfloat16"], strict=False
        ):
            assert max(apart(mine, expected, but=cut(layout, storage)).values()) < (
                0.15 if layout == "columns" else 0.02
            )


@every_storage
@every_layout
def test_resuming_on_any_ranks_is_exact(layout: str, world: int, storage: str, results: Any) -> None:
    alone, ranks = results
    for rank in ranks[world]:
        for mine, *expected in zip(
            rank[layout, storage, "resumed"],
            alone[storage, None, "resumed"],
            alone[storage, False, "resumed"],
            strict=True,
        ):
            assert not any(apart(mine, *expected, but=cut(layout, storage)).values())


@every_layout
def test_columns_that_cut_blocks_are_kept_in_bfloat16(layout: str, world: int, results: Any) -> None:
    first = results[1][world][0][layout, "8bit", None][0]
    assert first["wide"]["direction_scale"].shape == (7, 4)
    assert first["tall"]["direction_8bit"].shape == (48, 64)
    assert ("direction_8bit" in first["filters"]) == (layout != "columns")
    assert first["odd"]["direction"].dtype == first["vector"]["direction"].dtype == torch.bfloat16


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("flat", [False, True], ids=["original parameters", "flat"])
def test_flat_shards_are_kept_in_bfloat16_with_a_word(world: int, flat: bool, results: Any) -> None:
    """One says so once; and what is kept is what one process keeps of the same vectors."""
    params = list(build(torch.float32).parameters())
    grads = list(gradients(0).values())
    if flat:
        params = [nn.Parameter(torch.cat([param.detach().reshape(-1) for param in params]))]
        grads = [torch.cat([grad.reshape(-1) for grad in grads])]
    expected = Arturo(params, lr=1e-2, state_dtype="bfloat16")
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.clone()
    expected.step()
    ranks = [rank["FSDP1 flat" if flat else "FSDP1"] for rank in results[1][world]]
    for index, param in enumerate(params):
        for row, name in enumerate(("deviation", "direction")):
            found = torch.cat([kept[index][row] for kept, _ in ranks])
            assert found.dtype == torch.bfloat16
            assert torch.equal(found, expected.state[param][name].reshape(-1)), name
    assert [len(said) for _, said in ranks] == [1] + [0] * (world - 1)
    assert "100% of the weights in bfloat16" in ranks[0][1][0]
    assert "FSDP2 (fully_shard) keeps them" in ranks[0][1][0]
