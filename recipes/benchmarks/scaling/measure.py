"""Count what every optimizer's step does under every layout, and check that the counts agree."""

from __future__ import annotations

from collections.abc import Sequence

import torch

import arturo_core
from recipes.benchmarks.quality.environment import commit, cpu
from recipes.benchmarks.scaling.layouts import LAYOUTS
from recipes.benchmarks.scaling.optimizers import OPTIMIZERS
from recipes.benchmarks.scaling.ranks import Record, on_this_rank, run


def measure(
    worlds: Sequence[int], layouts: Sequence[str] = tuple(LAYOUTS), optimizers: Sequence[str] = tuple(OPTIMIZERS)
) -> list[Record]:
    """Counts of every layout that these numbers of ranks allow, with every optimizer.

    Raises:
        RuntimeError: ranks differ in what they did, or torch's count of them from the backend's.
    """
    found = []
    about = {"torch": torch.__version__, "arturo": arturo_core.__version__, "commit": commit()}
    about |= {"backend": "gloo", "hardware": cpu()}
    for world in worlds:
        pairs = [(name, optimizer) for name in layouts if world in LAYOUTS[name][1] for optimizer in optimizers]
        ranks = run(on_this_rank, world, pairs) if pairs else []
        for (layout, optimizer), *records in zip(pairs, *ranks, strict=True):
            where = f"{layout} on {world} ranks, {optimizer}"
            steps = [record.get("step") for record in records]
            if any(step != steps[0] for step in steps):
                raise RuntimeError(f"{where}: ranks differ: {steps}")
            for part in ("step", "forward_backward"):
                counts = records[0].get(part)
                if counts and counts["calls"] != counts["backend_calls"]:
                    raise RuntimeError(
                        f"{where}: torch dispatched {counts['calls']} collectives in {part}, "
                        f"and gloo carried out {counts['backend_calls']}"
                    )
            found.append({"layout": layout, "ranks": world, "optimizer": optimizer, **records[0], **about})
    return found
