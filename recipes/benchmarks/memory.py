"""What a step takes and gives back: the most memory it holds besides weights, gradients and state."""

from __future__ import annotations

import torch
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile


def peak_of_a_step(optimizer: Optimizer, device: str) -> int:
    """Bytes that torch's allocator hands out in a step at once, at most; what was there before is not counted."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        optimizer.step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        optimizer.step()
    changes = [(event.start_ns(), event.nbytes()) for event in _events(record) if event.name() == "[memory]"]
    held = most = 0
    for _, change in sorted(changes):
        held += change
        most = max(most, held)
    return most


def _events(record: profile) -> list:  # type: ignore[type-arg]
    assert record.profiler is not None
    assert record.profiler.kineto_results is not None
    found: list = record.profiler.kineto_results.events()  # type: ignore[type-arg]
    return found
