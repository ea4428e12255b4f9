"""What a step costs: milliseconds, bytes of state a parameter, and bytes it takes besides, beside torch's AdamW.

    python -m recipes.benchmarks.step_cost            # or: make bench

All optimizers step in one interleaved run (one step each, round after round, on their own copies of the same
parameters and gradients), so that a drifting machine touches them alike. Reported are the median of the rounds, and the
ratio to fused AdamW as the median of the ratios round by round with its quartiles.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.optim import AdamW, Optimizer

from arturo_core import Arturo, __version__
from arturo_core.kernels import cpu
from arturo_core.kernels.cpu.library import LEVELS, level
from recipes.arguments import Parser, listing, nearest, path, positive, threads
from recipes.benchmarks.memory import peak_of_a_step
from recipes.folders import try_file, write
from recipes.text.errors import exit_code

_TRANSFORMER: list[tuple[int, ...]] = [(12000, 384), (512, 384)]
_TRANSFORMER += [(384, 384)] * 24 + [(1536, 384)] * 6 + [(384, 1536)] * 6 + [(384,)] * 66 + [(1536,)] * 6

_BERT: list[tuple[int, ...]] = [(30522, 768), (512, 768), (2, 768)]
_BERT += [(768, 768)] * 48 + [(3072, 768)] * 12 + [(768, 3072)] * 12 + [(768,)] * 110 + [(3072,)] * 12

SETS: dict[str, list[tuple[int, ...]]] = {
    "few large: 4 matrices of 1536 x 1536": [(1536, 1536)] * 4,
    "transformer: 6 layers of 384, vocabulary 12,000": _TRANSFORMER,
    "BERT-base: 12 layers of 768": _BERT,
    "many small: 600 tensors of 64 to 4096": [(64,), (64, 64), (256,)] * 200,
}

Builder = Callable[[Sequence[torch.nn.Parameter]], Optimizer]
BASELINE = "AdamW fused"
OPTIMIZERS: dict[str, Builder] = {
    BASELINE: lambda params: AdamW(params, lr=1e-4, fused=True),
    "AdamW foreach": lambda params: AdamW(params, lr=1e-4, foreach=True),
    "Arturo": lambda params: Arturo(params, lr=1e-4),
    "Arturo bfloat16 state": lambda params: Arturo(params, lr=1e-4, state_dtype="bfloat16"),
    "Arturo 8-bit state": lambda params: Arturo(params, lr=1e-4, state_dtype="8bit"),
    "Arturo without kernel": lambda params: Arturo(params, lr=1e-4, fused=False),
    "Arturo compiled": lambda params: Arturo(params, lr=1e-4, compile=True),
    "Arturo fixed noise": lambda params: Arturo(params, lr=1e-4, noise="fixed"),
    "Arturo fixed noise compiled": lambda params: Arturo(params, lr=1e-4, noise="fixed", compile=True),
}


def _torchao(params: Sequence[torch.nn.Parameter]) -> Optimizer:
    from torchao.optim import AdamW8bit

    built: Optimizer = AdamW8bit(params, lr=1e-4)
    return built


def _bitsandbytes(params: Sequence[torch.nn.Parameter]) -> Optimizer:
    from bitsandbytes.optim import AdamW8bit

    built: Optimizer = AdamW8bit(params, lr=1e-4)
    return built


#: Peers that are measured where their package is installed.
OPTIONAL: dict[str, tuple[str, Builder]] = {
    "AdamW 8-bit torchao": ("torchao", _torchao),
    "AdamW 8-bit bitsandbytes": ("bitsandbytes", _bitsandbytes),
}
OPTIMIZERS |= {name: build for name, (package, build) in OPTIONAL.items() if find_spec(package)}

#: Of sets above so many elements only these are measured: the others take seconds a step, and copies gigabytes.
LARGE = 50_000_000
FOR_LARGE = (
    BASELINE,
    "AdamW foreach",
    "Arturo",
    "Arturo bfloat16 state",
    "Arturo 8-bit state",
    *OPTIONAL,
)


class Gradients:
    """A few sets of gradients handed out in turn: with one set the filters would converge on it."""

    SETS = 3

    def __init__(self, shapes: Sequence[tuple[int, ...]], device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self._sets = [
            [(1e-3 * torch.randn(shape, generator=generator)).to(device) for shape in shapes] for _ in range(self.SETS)
        ]

    def give(self, optimizer: Optimizer, turn: int) -> None:
        """Set every parameter's gradient."""
        params = [param for group in optimizer.param_groups for param in group["params"]]
        for param, grad in zip(params, self._sets[turn % self.SETS], strict=True):
            param.grad = grad


def make_parameters(shapes: Sequence[tuple[int, ...]], device: str) -> list[torch.nn.Parameter]:
    """The same values at every call."""
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter((0.02 * torch.randn(shape, generator=generator)).to(device)) for shape in shapes]


def state_bytes(optimizer: Optimizer) -> float:
    """Bytes of state tensors for each parameter element."""
    held = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
    return float(held / sum(param.numel() for group in optimizer.param_groups for param in group["params"]))


def timed_step(optimizer: Optimizer, device: str) -> float:
    """Milliseconds of one step, the device's work included."""
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begin)


def measure(shapes: Sequence[tuple[int, ...]], names: Sequence[str], rounds: int, device: str) -> dict[str, Any]:
    """Interleaved timing of one parameter set."""
    gradients = Gradients(shapes, device)
    optimizers: dict[str, Optimizer] = {}
    first: dict[str, float] = {}
    for name in names:
        optimizers[name] = OPTIMIZERS[name](make_parameters(shapes, device))
        for turn in range(2):
            gradients.give(optimizers[name], turn)
            elapsed = timed_step(optimizers[name], device)
            first.setdefault(name, elapsed)  # it compiles and allocates
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in track(range(rounds), description="interleaved rounds", transient=True):
        for name, optimizer in optimizers.items():
            gradients.give(optimizer, turn)
            times[name].append(timed_step(optimizer, device))
    base = times[BASELINE]
    count = sum(torch.Size(shape).numel() for shape in shapes)
    rows = {}
    for name, series in times.items():
        ratios = sorted(ours / theirs for ours, theirs in zip(series, base, strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows[name] = {
            "median_ms": statistics.median(series),
            "ratio": middle,
            "ratio_quartiles": [low, high],
            "first_step_ms": first[name],
            "state_bytes_per_parameter": state_bytes(optimizers[name]),
            "step_bytes_per_parameter": peak_of_a_step(optimizers[name], device) / count,
        }
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see ``--help``."""
    return exit_code(lambda: work(arguments))


def work(arguments: Sequence[str] | None) -> None:
    """Measure, print, and write if told."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=30, help="interleaved rounds (default 30)")
    parser.add_argument("--threads", type=threads, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--optimizers", default=",".join(OPTIMIZERS), help="comma-separated subset")
    parser.add_argument("--json", type=path, help="also write the figures here")
    options = parser.parse_args(arguments)
    names = listing(options.optimizers)
    if unknown := [name for name in names if name not in OPTIMIZERS]:
        hint = nearest(unknown[0], OPTIMIZERS)
        parser.error(f"unknown optimizer {', '.join(unknown)}: choose from {', '.join(OPTIMIZERS)}{hint}")
    if not names:
        parser.error("--optimizers needs at least one entry")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device here; choose cpu")
    if options.json:
        try_file(options.json, "--json")
    if options.rounds < 2:
        parser.error("--rounds must be at least 2: the spread needs two")
    names = [BASELINE, *(name for name in names if name != BASELINE)]
    torch.set_num_threads(options.threads)
    console = Console()
    hardware = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    header = f"{hardware}, {options.threads} threads, torch {torch.__version__}, arturo {__version__}"
    results: dict[str, Any] = {"machine": header, "rounds": options.rounds, "sets": {}}
    for title, shapes in SETS.items():
        count = sum(torch.Size(shape).numel() for shape in shapes)
        measured = [name for name in names if count <= LARGE or name in FOR_LARGE]
        rows = results["sets"][title] = measure(shapes, measured, options.rounds, options.device)
        table = Table(title=f"{title}: {count / 1e6:.1f} M parameters in {len(shapes)} tensors", title_justify="left")
        for column in (
            "optimizer",
            "ms a step",
            "x fused AdamW (quartiles)",
            "first step, ms",
            "state, bytes/param",
            "in a step",
        ):
            table.add_column(column, justify="left" if column == "optimizer" else "right")
        for name, row in rows.items():
            low, high = row["ratio_quartiles"]
            table.add_row(
                name,
                f"{row['median_ms']:.2f}",
                f"{row['ratio']:.2f} ({low:.2f}-{high:.2f})",
                f"{row['first_step_ms']:.0f}",
                f"{row['state_bytes_per_parameter']:.2f}",
                f"{row['step_bytes_per_parameter']:.2f}",
            )
        console.print(table)
    console.print(header)
    console.print(f"CPU kernel: {cpu.why_not() or LEVELS[level()]}")
    if options.json:
        write(options.json, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
