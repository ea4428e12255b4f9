"""Real process groups for tests: gloo, one process a rank, results handed back through files.

Ranks are forked from a server that has imported torch, and nothing that a test could have changed: importing it anew
for every rank costs more than most tests.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from limits import PATIENCE
from torch import distributed, multiprocessing

_IMPORTED_ONCE = ["torch.distributed.fsdp", "torch.distributed.tensor.parallel", "torch.distributed.checkpoint"]


def run(work: Callable[..., Any], world: int, folder: Path, *arguments: Any) -> list[Any]:
    """What ``work(*arguments)`` returns on every rank of a new process group."""
    folder.mkdir(parents=True, exist_ok=True)
    multiprocessing.set_forkserver_preload([*_IMPORTED_ONCE, "arturo_core"])
    # The server knows the environment of its own start, and what is to be done may import what reads today's.
    task = dict(os.environ), world, os.fspath(folder), pickle.dumps((work, arguments))
    multiprocessing.start_processes(_rank, args=task, nprocs=world, start_method="forkserver")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(world)]


def _rank(rank: int, environment: dict[str, str], world: int, folder: str, task: bytes) -> None:
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    work, arguments = pickle.loads(task)
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world, timeout=PATIENCE)
    try:
        torch.save(work(*arguments), Path(folder) / f"rank{rank}.pt")
    finally:
        distributed.destroy_process_group()
