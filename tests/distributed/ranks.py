"""Real process groups for tests: gloo, one process a rank, results handed back through files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from limits import PATIENCE
from torch import distributed, multiprocessing


def run(work: Callable[..., Any], world: int, folder: Path, *arguments: Any) -> list[Any]:
    """What ``work(*arguments)`` returns on every rank of a new process group."""
    folder.mkdir(parents=True, exist_ok=True)
    multiprocessing.spawn(_rank, args=(world, os.fspath(folder), work, arguments), nprocs=world)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(world)]


def _rank(rank: int, world: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world, timeout=PATIENCE)
    try:
        torch.save(work(*arguments), Path(folder) / f"rank{rank}.pt")
    finally:
        distributed.destroy_process_group()
