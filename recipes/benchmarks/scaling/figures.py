"""The figure: collectives as counted, and what they would cost on more GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no window, no display needed

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from recipes.benchmarks.quality.figures import STYLES, save
from recipes.benchmarks.scaling.model import GPUS, Assumptions, cost

SHOWN = {"adamw": "adamw", "arturo": "arturo", "arturo paper": "arturo-paper", "muon": "muon"}
TITLES = {
    "adamw": "AdamW",
    "adamw foreach": "AdamW, foreach",
    "arturo": "arTuRO",
    "arturo paper": "arTuRO, published form",
    "muon": "Muon + AdamW",
}
SIZES = (1e9, 8e9, 70e9)  # few enough that their bands do not overlap
SIZE_OF_EXTRA = 8e9
LATENCY = 4.0  # upper edge of the bands
MOST_CALLS = 2500  # where the axis ends: room for the labels of the longest bars


def in_bytes(count: float) -> str:
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def billions(params: float) -> str:
    return f"{params / 1e9:g} B"


def called(count: dict[str, Any]) -> str:
    """Calls and bytes of a count."""
    return f"{count['calls']} ({in_bytes(count['bytes'])})" if count["calls"] else "0"


def percent(share: float) -> str:
    """Two digits, however small."""
    return f"{float(f'{100 * share:.2g}'):g}%"


def largest_worlds(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Records by layout and optimizer, of the largest number of ranks."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for record in sorted(records, key=lambda record: int(record["ranks"])):
        found.setdefault(record["layout"], {})[record["optimizer"]] = record
    return found


def collectives(axes: Axes, records: Sequence[dict[str, Any]]) -> None:
    """Bars: calls inside a step; beside them calls and bytes."""
    layouts = largest_worlds(records)
    height = 0.8 / len(SHOWN)
    for line, found in enumerate(layouts.values()):
        for place, (name, style) in enumerate(SHOWN.items()):
            y = line + (place - (len(SHOWN) - 1) / 2) * height
            step = found.get(name, {}).get("step")
            text = "refuses its shards"
            calls = 0
            if step:
                calls, text = step["calls"], called(step)
            label = TITLES[name] if line == 0 else None
            axes.barh(y, max(calls, 0.001), height * 0.9, color=STYLES[style]["color"], label=label)
            axes.annotate(text, (calls, y), (3, 0), textcoords="offset points", va="center", fontsize=6.5)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(0, MOST_CALLS)
    axes.xaxis.set_major_locator(FixedLocator([0, 1, 10, 100]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    names = [f"{layout}\n{next(iter(found.values()))['ranks']} ranks" for layout, found in layouts.items()]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("collectives (bytes)")
    params = max(record.get("params", 0) for record in records)
    title = f"Counted in optimizer.step(), {params / 1e3:.0f} thousand parameters"
    axes.set_title(title, loc="left", fontsize=10)


def waiting(axes: Axes, given: Assumptions) -> None:
    """The share of a step that arTuRO waits for its all-reduces, by size; a band for slower networks."""
    slow = replace(given, latency_factor=LATENCY * given.latency_factor)
    for index, params in enumerate(SIZES):
        color = plt.get_cmap("viridis")(index / len(SIZES))
        low = [100 * cost(params, gpus, given).waiting_share for gpus in GPUS]
        high = [100 * cost(params, gpus, slow).waiting_share for gpus in GPUS]
        axes.plot(GPUS, low, color=color, marker="o", markersize=3, label=billions(params))
        axes.fill_between(GPUS, low, high, color=color, alpha=0.15, linewidth=0)
        axes.annotate(
            billions(params),
            (GPUS[-1], low[-1]),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=color,
        )
    axes.set_yscale("log")
    axes.set_ylabel("% of a step")
    axes.set_title("Calculated: waiting for all-reduces (FSDP)", loc="left", fontsize=10)


def extra(axes: Axes, given: Assumptions) -> None:
    """What arTuRO's step adds to a step with AdamW, and what of that is waiting."""
    costs = [cost(SIZE_OF_EXTRA, gpus, given) for gpus in GPUS]
    color = STYLES["arturo"]["color"]
    lines = {
        "eager": ([one.eager_extra_share for one in costs], "--", "s"),
        "compiled, each pass one loop": ([one.extra_share for one in costs], "-", "o"),
        "waiting for all-reduces alone": ([one.waiting_share for one in costs], ":", "."),
    }
    for label, (shares, dash, marker) in lines.items():
        axes.plot(GPUS, [100 * share for share in shares], color=color, linestyle=dash, marker=marker, label=label)
    axes.set_yscale("log")
    axes.set_ylabel("% of a step with AdamW")
    axes.set_title(f"Calculated: all that is added ({billions(SIZE_OF_EXTRA)})", loc="left", fontsize=10)
    axes.legend(fontsize=8, frameon=False)


def draw(records: Sequence[dict[str, Any]], given: Assumptions, folder: Path) -> None:
    """The whole figure, as PNG and SVG."""
    with plt.rc_context({"svg.hashsalt": "arturo", "font.size": 8.5}):  # the same file for the same results
        figure, (left, middle, right) = plt.subplots(
            1, 3, figsize=(13, 4.9), layout="constrained", width_ratios=(1.25, 1, 1)
        )
        collectives(left, records)
        waiting(middle, given)
        extra(right, given)
        for axes in (middle, right):
            axes.set_xscale("log", base=2)
            axes.set_xticks(GPUS, [str(gpus) for gpus in GPUS], fontsize=7.5)
            axes.set_xlim(GPUS[0] * 0.85, GPUS[-1] * (1.9 if axes is middle else 1.2))
            axes.set_xlabel("GPUs (H100, 8 a node)")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.grid(alpha=0.25)
        for axes in (left, middle, right):
            axes.spines[["top", "right"]].set_visible(False)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=len(labels), frameon=False)
        note = (
            f"{given.tokens_per_gpu:,} tokens a GPU, MFU {given.mfu:g}; bands: latencies up to {LATENCY:g} times NCCL's"
        )
        figure.text(0.995, 0.012, note, ha="right", va="bottom", fontsize=8)
        save(figure, folder, "scaling")
