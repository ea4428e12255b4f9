"""Checkpoints of sharded optimizers: written by some processes, read by as many, more or fewer, on other meshes."""

from __future__ import annotations

import copy
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

#: One mode for each kind of state.
KINDS = ("rms", "fixed")
#: Steps before the checkpoint (one of them skipped), and after it.
BEFORE, AFTER = range(5), range(5, 7)

#: Name of a way to keep a state dict: options of ``torch.distributed.checkpoint``, and whether every rank writes.
WAYS: dict[str, tuple[StateDictOptions, bool]] = {
    "sharded": (StateDictOptions(), True),
    "sharded, flat": (StateDictOptions(flatten_optimizer_state_dict=True), True),
    "full": (StateDictOptions(full_state_dict=True, cpu_offload=True), False),
    "full, flat": (
        StateDictOptions(full_state_dict=True, cpu_offload=True, flatten_optimizer_state_dict=True),
        False,
    ),
}

#: Layouts that write, and layouts that read what each of them wrote.
READERS = {
    "FSDP2-2": ("FSDP2-1", "FSDP2-2", "FSDP2-3", "FSDP2-4", "HSDP-2x2", "FSDP2xTP-2x2", "TP-2", "DDP-2"),
    "FSDP2-4": ("FSDP2-2", "FSDP2-4", "DDP-3"),
    "FSDP2xTP-2x2": ("FSDP2xTP-2x2", "FSDP2-3"),
    "HSDP-2x2": ("HSDP-2x2", "FSDP2-2"),
    "DDP-2": ("FSDP2-4", "DDP-2"),
}


def built(layout: str, mode: str) -> Parallel:
    return MATRIX[layout][0](MODES[mode], torch.float64)


def plain(model: torch.nn.Module) -> torch.nn.Module:
    return getattr(model, "module", model)


def write(layout: str, folder: Path) -> dict[str, Any]:
    """Train, write a checkpoint in every way, and go on: what an uninterrupted run comes to."""
    found = {}
    for mode in KINDS:
        parallel = built(layout, mode)
        train(parallel, BEFORE, MODES[mode]["lr"])
        model, optimizer = plain(parallel.model), parallel.optimizer
        before = copy.deepcopy([optimizer.state[param] for param in model.parameters()])
        for way, (options, everyone) in WAYS.items():
            saved = {
                "model": get_model_state_dict(model, options=options),
                "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
            }
            place = folder / layout / mode / way
            if everyone:
                checkpoint.save(saved, checkpoint_id=place)
            elif distributed.get_rank() == 0:
                place.mkdir(parents=True)
                torch.save(saved, place / "full.pt")
        saved = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
        checkpoint.async_save(saved, checkpoint_id=folder / layout / mode / "async").result()
        for param, state in zip(model.parameters(), before, strict=True):
            for name, value in state.items():
                now, then = (getattr(one, "_local_tensor", one) for one in (optimizer.state[param][name], value))
                assert torch.equal(now, then), f"reading the state dict changed {name}"
        found[mode] = train(parallel, AFTER, MODES[mode]["lr"])
    return found


def read(layout: str, written: str, folder: Path) -> dict[tuple[str, str], Any]:
    """Resume from every checkpoint that another layout wrote."""
    found = {}
    for mode in KINDS:
        for way, (options, everyone) in {**WAYS, "async": WAYS["sharded"]}.items():
            parallel = built(layout, mode)
            model, optimizer = plain(parallel.model), parallel.optimizer
            with torch.no_grad():
                for param in model.parameters():
                    param.zero_()
            place = folder / written / mode / way
            if everyone:
                saved = {
                    "model": get_model_state_dict(model, options=options),
                    "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
                }
                checkpoint.load(saved, checkpoint_id=place)
            else:
                # torch takes a flat dictionary only if it is not asked for one, of any optimizer.
                options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
                first = distributed.get_rank() == 0
                saved = torch.load(place / "full.pt", weights_only=True) if first else {"model": {}, "optimizer": {}}
            set_model_state_dict(model, saved["model"], options=options)
            set_optimizer_state_dict(model, optimizer, saved["optimizer"], options=options)
            found[mode, way] = train(parallel, AFTER, MODES[mode]["lr"])
    return found


def of_this_world(folder: Path, writing: bool) -> dict[Any, Any]:
    """On one rank: everything that layouts of this number of ranks write, or read."""
    world = distributed.get_world_size()
    if writing:
        return {layout: write(layout, folder) for layout in READERS if MATRIX[layout][1] == world}
    return {
        (written, layout): read(layout, written, folder)
        for written, layouts in READERS.items()
        for layout in layouts
        if MATRIX[layout][1] == world
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[tuple[str, str], Any]]:
    folder = Path(tmp_path_factory.mktemp("checkpoints"))
    written: dict[str, Any] = {}
    resumed: dict[tuple[str, str], Any] = {}
    for writing, found in ((True, written), (False, resumed)):
        for world in (2, 4) if writing else (1, 2, 3, 4):
            ranks = run(of_this_world, world, folder / f"ranks{world}{writing}", folder, writing)
            found.update(ranks[0])
    return written, resumed


@pytest.mark.parametrize("way", [*WAYS, "async"])
@pytest.mark.parametrize("mode", KINDS)
@pytest.mark.parametrize(("written", "layout"), [(one, other) for one, others in READERS.items() for other in others])
def test_resumes_as_if_never_interrupted(written: str, layout: str, mode: str, way: str, results: Any) -> None:
    uninterrupted, resumed = results
    found = resumed[written, layout][mode, way]
    same = written == layout
    expected = uninterrupted[written][mode] if same else _single(mode)
    assert found["numbers"][-1]["skipped_steps"] == 1
    for name, weight in expected["weights"].items():
        if same:  # the same arithmetic in the same order
            assert torch.equal(found["weights"][name], weight), name
        else:
            torch.testing.assert_close(found["weights"][name], weight, rtol=1e-8, atol=1e-11)
    for ours, theirs in zip(found["numbers"], expected["numbers"], strict=True):
        assert ours == (theirs if same else pytest.approx(theirs, rel=1e-8))


def _single(mode: str) -> dict[str, Any]:
    alone = single(MODES[mode])
    train(alone, BEFORE, MODES[mode]["lr"])
    return train(alone, AFTER, MODES[mode]["lr"])
