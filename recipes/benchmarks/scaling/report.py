"""The counts and the calculation as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from recipes.benchmarks.quality.report import table
from recipes.benchmarks.scaling.figures import TITLES, billions, called, percent
from recipes.benchmarks.scaling.model import (
    GPUS,
    PAPER_STEP,
    PUBLISHED,
    SIZES,
    Assumptions,
    Message,
    all_reduce_us,
    cost,
    sensitivity,
    sharded_in_nodes,
    sharded_over_all,
    sharded_with_tp,
    waiting_us,
)

SHOWN_GPUS = tuple(gpus for gpus in GPUS if gpus in (8, 64, 256, 1024))
REFUSED = "refuses its shards"


def markdown(counts: Sequence[dict[str, Any]], traffic: Sequence[dict[str, Any]], given: Assumptions) -> str:
    """The whole report."""
    about = counts[0]
    params = max(record.get("params", 0) for record in counts)
    machine = f"torch {about['torch']}, arturo {about['arturo']}, commit {about['commit']}, {about['hardware']}"
    lines = ["# What one multiplier costs across GPUs", "", "![Scaling](scaling.png)", ""]
    lines += ["## Counted: collectives and bytes a step", ""]
    lines += [
        f"Real {about['backend']} process groups on a CPU ({machine}). Every cell: collectives and bytes inside "
        "`optimizer.step()`, with two parameter groups; bytes are those of the whole tensor a collective is about. "
        "Counted with `CommDebugMode`, and compared with what the backend itself recorded in the profiler. In the last "
        f"column the same for one forward and backward pass. The network has {params:,} parameters: the bytes of the "
        "passes and of Muon grow with them, arTuRO's do not.",
        "",
        *counted(counts),
        "## Calculated: share of a step spent waiting for arTuRO's all-reduces (FSDP over all GPUs)",
        "",
        f"Nothing is hidden behind other work. Of a step with AdamW: passes at MFU {given.mfu:g} with "
        f"{given.tokens_per_gpu:,} tokens a GPU, and AdamW's own step.",
        "",
        *shares(given),
        "## Calculated: all that arTuRO's step adds to a step with AdamW",
        "",
        "Waiting, and the memory traffic of the optimizer's own step. First compiled, each pass in one loop (a lower "
        "bound), then eager, operation by operation, as if nothing stayed in a GPU's cache (an upper one). No GPU was "
        "timed for it. In brackets: weights, gradients and state of float32 need more than a GPU's memory.",
        "",
        *extras(given),
        "Bytes a parameter that an eager step reads and writes, as counted: "
        + ", ".join(f"{TITLES.get(one['optimizer'], one['optimizer'])} {one['bytes_per_param']:.0f}" for one in traffic)
        + ".",
        "",
        "## Calculated: microseconds a step waits, by layout",
        "",
        *by_layout(given),
        f"## Sensitivity: share of a step spent waiting, {SHOWN_GPUS[-1]:,} GPUs",
        "",
        *sensitivities(given),
        "## The model against published measurements",
        "",
        *published(given),
        "## Assumptions",
        "",
        *table(["name", "value", "source"], [list(line) for line in given.lines()]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def counted(counts: Sequence[dict[str, Any]]) -> list[str]:
    found: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for record in counts:
        found.setdefault((record["layout"], record["ranks"]), {})[record["optimizer"]] = record
    names = list(dict.fromkeys(record["optimizer"] for record in counts))
    rows = []
    for (layout, ranks), records in found.items():
        cells = [step_of(records.get(name)) for name in names]
        passes = next(record["forward_backward"] for record in records.values() if "forward_backward" in record)
        rows.append([f"{layout}, {ranks} ranks", *cells, called(passes)])
    return table(["layout", *(TITLES.get(name, name) for name in names), "forward and backward"], rows)


def step_of(record: dict[str, Any] | None) -> str:
    if record is None:
        return ""
    return called(record["step"]) if "step" in record else REFUSED


def shares(given: Assumptions) -> list[str]:
    rows = []
    for params in SIZES:
        costs = [cost(params, gpus, given) for gpus in SHOWN_GPUS]
        rows.append([billions(params), f"{costs[-1].step_ms:,.0f}", *(percent(one.waiting_share) for one in costs)])
    waits = [f"{cost(SIZES[0], gpus, given).waiting_us:.0f} µs" for gpus in SHOWN_GPUS]
    return table(["parameters", "ms a step", *gpus_titles()], [*rows, ["waiting", "", *waits]])


def extras(given: Assumptions) -> list[str]:
    rows = []
    for params in SIZES:
        cells = []
        for gpus in SHOWN_GPUS:
            one = cost(params, gpus, given)
            text = f"{percent(one.extra_share)}, eager {percent(one.eager_extra_share)}"
            cells.append(text if one.arturo_fits else f"({text})")
        rows.append([billions(params), *cells])
    return table(["parameters", *gpus_titles()], rows)


def by_layout(given: Assumptions) -> list[str]:
    kinds: dict[str, Callable[[int], list[Message]]] = {
        "replicated (DDP)": lambda gpus: [],
        "FSDP over all GPUs": lambda gpus: sharded_over_all(gpus, given),
        "FSDP over all GPUs, published form": lambda gpus: sharded_over_all(gpus, given, PAPER_STEP),
        "HSDP, shards within a node": lambda gpus: sharded_in_nodes(gpus, given),
        "FSDP between nodes x TP within": lambda gpus: sharded_with_tp(gpus, given),
    }
    rows = []
    for title, messages in kinds.items():
        rows.append([title, *(f"{waiting_us(messages(gpus), given):.0f}" for gpus in SHOWN_GPUS)])
    return table(["layout", *gpus_titles()], rows)


def sensitivities(given: Assumptions) -> list[str]:
    rows = [
        [title, *(percent(cost(params, SHOWN_GPUS[-1], changed).waiting_share) for params in SIZES)]
        for title, changed in sensitivity(given).items()
    ]
    return table(["assumption", *map(billions, SIZES)], rows)


def published(given: Assumptions) -> list[str]:
    rows = []
    for one in PUBLISHED:
        low, high = one.measured_us
        measured = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        rows.append([one.what, f"{all_reduce_us(one.message, given):.1f}", measured, one.source])
    return table(["all-reduce", "model, µs", "measured, µs", "source"], rows)


def gpus_titles() -> list[str]:
    return [f"{gpus:,} GPUs" for gpus in SHOWN_GPUS]
