"""What runs on the ranks: every optimizer's step under every layout, counted. Imports little, as every rank does."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from recipes.benchmarks.scaling.counting import count
from recipes.benchmarks.scaling.layouts import build
from recipes.benchmarks.scaling.optimizers import OPTIMIZERS

Record = dict[str, Any]

#: A rank that waits longer for another has lost it.
PATIENCE = datetime.timedelta(minutes=5)
#: DDP and FSDP do things once in their first two iterations, process groups in their first step.
WARM_UP = 2


def one(layout: str, optimizer: str) -> Record:
    """Counts of a forward and backward pass and of a step, on this rank."""
    split = build(layout)
    try:
        stepper = OPTIMIZERS[optimizer](split)
    except ValueError as error:  # Muon has no use for a shard of FSDP1: it is not a matrix
        return {"refused": str(error)}
    for _ in range(WARM_UP):
        split.passes()
        stepper.step()
        stepper.zero_grad()
    passes = count(split.passes)
    step = count(stepper.step)
    return {
        "params": sum(param.numel() for param in split.model.parameters()),
        "forward_backward": passes.record(),
        "step": step.record(),
        "step_backend_elements": step.backend_elements,
    }


def on_this_rank(pairs: Sequence[tuple[str, str]]) -> list[Record]:
    return [one(layout, optimizer) for layout, optimizer in pairs]


def run(work: Callable[..., Any], world: int, *arguments: Any) -> list[Any]:
    """What ``work(*arguments)`` returns on every rank of a new gloo process group."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, args=(world, folder, work, arguments), nprocs=world)  # type: ignore[no-untyped-call]
        return [torch.load(Path(folder) / f"rank{rank}.pt", weights_only=False) for rank in range(world)]


def _rank(rank: int, world: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world, timeout=PATIENCE
    )
    try:
        torch.save(work(*arguments), Path(folder) / f"rank{rank}.pt")
    finally:
        distributed.destroy_process_group()
