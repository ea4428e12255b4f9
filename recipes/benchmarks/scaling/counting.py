"""Collectives and their bytes, counted twice: where torch dispatches them, and where the backend carries them out.

A collective's bytes are those of the whole tensor it is about: what is reduced, or what is gathered. (What crosses a
link depends on the backend's algorithm.)
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Collective:
    """One collective: its name in torch, bytes, and the number of ranks that take part."""

    name: str
    bytes: int
    ranks: int


class Recorder(CommDebugMode):  # type: ignore[no-untyped-call]
    """:class:`CommDebugMode`, which counts collectives, and the size and ranks of each as well."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[Collective] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = Counter(self.get_comm_counts())
        out = super().__torch_dispatch__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        for counted in Counter(self.get_comm_counts()) - before:
            size = max(bytes_of(argument) for argument in (*args, *(kwargs or {}).values(), out))
            self.seen.append(Collective(str(counted), size, ranks_of(tree_leaves((args, kwargs)))))
        return out


def bytes_of(argument: object) -> int:
    """Of all tensors of one argument, which may be lists of them: what is sent is whole in one argument or result."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(argument) if isinstance(leaf, Tensor))


def ranks_of(arguments: Sequence[Any]) -> int:
    """Size of the process group among a collective's arguments, which hold it itself or by its name."""
    for argument in arguments:
        if isinstance(argument, torch.ScriptObject):
            with contextlib.suppress(RuntimeError, TypeError):  # the operation (sum, min) is such an object, too
                return int(distributed.ProcessGroup.unbox(argument).size())
    names: list[Any] = [argument for argument in arguments if isinstance(argument, str)]
    return int(distributed.distributed_c10d._resolve_process_group(names[-1]).size())  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Count:
    """What one piece of work did: all collectives, and the calls and elements that the backend itself recorded."""

    collectives: tuple[Collective, ...]
    backend_calls: int
    backend_elements: int

    @property
    def calls(self) -> int:
        return len(self.collectives)

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in self.collectives)

    def record(self) -> dict[str, Any]:
        """For JSON: alike collectives together."""
        alike = Counter(self.collectives)
        return {
            "calls": self.calls,
            "bytes": self.bytes,
            "backend_calls": self.backend_calls,
            "collectives": [{**asdict(one), "calls": times} for one, times in alike.items()],
        }


def count(work: Callable[[], object]) -> Count:
    """Run some work on this rank of a gloo process group, and count.

    gloo's own record is the profiler's: it is written in C++ where the data are sent, past every layer that the first
    count listens to. gloo carries a reduce-scatter out as an all-reduce, so only the totals are comparable.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile, Recorder() as recorder:
        work()
    # Without making torch's tree of all events, which takes longer than the step.
    events: Any = profile.profiler.kineto_results.events()
    carried_out = [event for event in events if event.name().startswith("gloo:")]
    elements = sum(math.prod(shape) for event in carried_out for shape in event.shapes())
    return Count(tuple(recorder.seen), len(carried_out), elements)
