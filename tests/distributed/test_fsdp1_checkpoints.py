"""FSDP1's and ZeRO's own checkpoints: full and sharded, read by as many processes and by others."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import MATRIX
from problem import MODES, Parallel, single, train
from ranks import run
from torch import distributed
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel

#: The first writes; all of them read.
RANKS, ZERO_RANKS = (2, 3), (2, 4)
KINDS = ("rms", "fixed")
BEFORE, AFTER = range(5), range(5, 7)
#: FSDP1's own full dictionary, and both of ``torch.distributed.checkpoint``. On the CPU torch gathers the tensors of a
#: parameter in one buffer for its own dictionary of original parameters, and loses all but the last, of any optimizer.
WAYS = {"FSDP1": ("full", "sharded"), "FSDP1 flat": ("FSDP's own", "full", "sharded")}


def options_of(mode: str) -> dict[str, Any]:
    return {**MODES[mode], "weight_decay": 0.0}  # one flat vector has one weight decay


def built(sharding: str, mode: str) -> Parallel:
    return MATRIX[f"{sharding}-{distributed.get_world_size()}"][0](options_of(mode), torch.float64)


def save(parallel: Parallel, way: str, place: Path) -> None:
    model, optimizer = parallel.model, parallel.optimizer
    if way == "FSDP's own":
        saved: dict[str, Any] = {
            "model": get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)),
            "optimizer": FullyShardedDataParallel.optim_state_dict(model, optimizer),
        }
    else:
        how = StateDictOptions(full_state_dict=way == "full")
        saved = {
            "model": get_model_state_dict(model, options=how),
            "optimizer": get_optimizer_state_dict(model, optimizer, options=how),
        }
    if way == "sharded":
        checkpoint.save(saved, checkpoint_id=place)
    elif distributed.get_rank() == 0:
        place.mkdir(parents=True)
        torch.save(saved, place / "full.pt")
    distributed.barrier()


def load(parallel: Parallel, way: str, place: Path) -> None:
    model, optimizer = parallel.model, parallel.optimizer
    how = StateDictOptions(full_state_dict=way != "sharded")
    if way == "sharded":
        saved = {
            "model": get_model_state_dict(model, options=how),
            "optimizer": get_optimizer_state_dict(model, optimizer, options=how),
        }
        checkpoint.load(saved, checkpoint_id=place)
    else:
        saved = torch.load(place / "full.pt", weights_only=True)
    set_model_state_dict(model, saved["model"], options=how)
    if way == "FSDP's own":
        optimizer.load_state_dict(
            FullyShardedDataParallel.optim_state_dict_to_load(model, optimizer, saved["optimizer"])
        )
    else:
        set_optimizer_state_dict(model, optimizer, saved["optimizer"], options=how)


def write(folder: Path) -> dict[Any, Any]:
    found = {}
    for sharding in WAYS:
        for mode in KINDS:
            parallel = built(sharding, mode)
            train(parallel, BEFORE, MODES[mode]["lr"])
            for way in WAYS[sharding]:
                save(parallel, way, folder / sharding / mode / way)
            found[sharding, mode] = train(parallel, AFTER, MODES[mode]["lr"])
    return found


def read(folder: Path) -> dict[Any, Any]:
    found = {}
    for sharding in WAYS:
        for mode in KINDS:
            for way in WAYS[sharding]:
                parallel = built(sharding, mode)
                load(parallel, way, folder / sharding / mode / way)
                again = folder / str(distributed.get_world_size()) / sharding / mode / way
                train(parallel, AFTER[:1], MODES[mode]["lr"])
                save(parallel, way, again)
                train(parallel, AFTER, MODES[mode]["lr"])
                load(parallel, way, again)  # over an optimizer that has gone on
                found[sharding, mode, way] = train(parallel, AFTER[1:], MODES[mode]["lr"])
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[Any, Any], dict[int, dict[Any, Any]]]:
    folder = Path(tmp_path_factory.mktemp("fsdp1"))
    written = run(write, 2, folder / "writing", folder)[0]
    return written, {world: run(read, world, folder / f"reading{world}", folder)[0] for world in RANKS}


@functools.cache
def expected(mode: str) -> dict[str, Any]:
    alone = single(options_of(mode), unused_as_zero=True)
    train(alone, BEFORE, MODES[mode]["lr"])
    return train(alone, AFTER, MODES[mode]["lr"])


@pytest.mark.parametrize(("sharding", "way"), [(one, way) for one, ways in WAYS.items() for way in ways])
@pytest.mark.parametrize("mode", KINDS)
@pytest.mark.parametrize("world", RANKS)
def test_fsdp1_resumes_as_if_never_interrupted(world: int, sharding: str, mode: str, way: str, results: Any) -> None:
    written, resumed = results
    found = resumed[world][sharding, mode, way]
    assert found["numbers"][-1]["skipped_steps"] == 1
    for name, weight in expected(mode)["weights"].items():
        if world == 2:  # the same arithmetic in the same order
            assert torch.equal(found["weights"][name], written[sharding, mode]["weights"][name]), name
        torch.testing.assert_close(found["weights"][name], weight, rtol=1e-8, atol=1e-11)


def zero(folder: Path, writing: bool) -> dict[str, Any]:
    found = {}
    for mode in KINDS:
        parallel = MATRIX["ZeRO-2"][0](MODES[mode], torch.float64)
        optimizer, place = parallel.optimizer, folder / f"{mode}.pt"
        if writing:
            train(parallel, BEFORE, MODES[mode]["lr"])
            optimizer.consolidate_state_dict(to=0)
            if distributed.get_rank() == 0:
                torch.save({"model": parallel.model.module.state_dict(), "optimizer": optimizer.state_dict()}, place)
        else:
            saved = torch.load(place, weights_only=True)
            parallel.model.module.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
        found[mode] = train(parallel, AFTER, MODES[mode]["lr"])
    return found


@pytest.fixture(scope="module")
def zero_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = Path(tmp_path_factory.mktemp("zero"))
    written = run(zero, 2, folder / "writing", folder, True)[0]
    return {"written": written} | {
        str(world): run(zero, world, folder / f"reading{world}", folder, False)[0] for world in ZERO_RANKS
    }


@pytest.mark.parametrize("mode", KINDS)
@pytest.mark.parametrize("world", [str(ranks) for ranks in ZERO_RANKS])
def test_zero_resumes_as_if_never_interrupted(world: str, mode: str, zero_results: dict[str, Any]) -> None:
    found, uninterrupted = zero_results[world][mode], zero_results["written"][mode]
    assert found["numbers"][-1]["skipped_steps"] == 1
    for name, weight in uninterrupted["weights"].items():
        if world == "2":
            assert torch.equal(found["weights"][name], weight), name
        torch.testing.assert_close(found["weights"][name], weight, rtol=1e-8, atol=1e-11)
