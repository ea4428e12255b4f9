"""What a step costs on a device: time, host's time, memory, launches, waiting, and the same in a graph."""

from __future__ import annotations

import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch.optim import AdamW, Optimizer

from arturo_core import Arturo, __version__
from recipes.text.errors import reason

Params = Sequence[torch.nn.Parameter]
Rate = float | torch.Tensor
Shapes = list[tuple[int, ...]]


def _bert() -> Shapes:
    matrices: Shapes = [*[(768, 768)] * 4, (3072, 768), (768, 3072)]
    vectors: Shapes = [*[(768,)] * 9, (3072,)]
    return [(30522, 768), (512, 768), (2, 768), *(matrices + vectors) * 12]


def _decoder(layers: int, width: int, inner: int, words: int) -> Shapes:
    layer: Shapes = [*[(width, width)] * 4, (inner, width), (inner, width), (width, inner), (width,), (width,)]
    return [(words, width), *layer * layers, (width,)]


SETS: dict[str, Shapes] = {"110M": _bert(), "1B": _decoder(18, 2048, 5632, 32000)}


def _torchao(params: Params, lr: Rate) -> Optimizer:
    from torchao.optim import AdamW8bit

    built: Optimizer = AdamW8bit(params, lr=lr)
    return built


def _bitsandbytes(params: Params, lr: Rate) -> Optimizer:
    from bitsandbytes.optim import AdamW8bit

    built: Optimizer = AdamW8bit(params, lr=lr)
    return built


BASELINE = "AdamW fused"
OPTIMIZERS: dict[str, Callable[[Params, Rate], Optimizer]] = {
    BASELINE: lambda params, lr: AdamW(params, lr=lr, fused=True, capturable=isinstance(lr, torch.Tensor)),
    "Arturo": lambda params, lr: Arturo(params, lr=lr, fused=True),
    "Arturo bfloat16 state": lambda params, lr: Arturo(params, lr=lr, fused=True, state_dtype="bfloat16"),
    "Arturo 8-bit state": lambda params, lr: Arturo(params, lr=lr, state_dtype="8bit"),
    "Arturo without kernel": lambda params, lr: Arturo(params, lr=lr, fused=False),
    "AdamW 8-bit torchao": _torchao,
    "AdamW 8-bit bitsandbytes": _bitsandbytes,
}

#: Turns before anything is measured: they compile, allocate, and settle clocks.
WARM = 5

#: Sets of gradients that take turns: filters would converge on one.
GRADIENTS = 2


def environment() -> dict[str, str]:
    """Hardware and versions."""
    device = torch.cuda.get_device_properties(0)
    found = {
        "device": device.name,
        "memory": f"{device.total_memory / 2**30:.0f} GiB",
        "capability": f"{device.major}.{device.minor}",
        "CUDA": str(torch.version.cuda or torch.version.hip),
        "arturo": __version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    for package in ("triton", "torchao", "bitsandbytes"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def missing(name: str, dtype: torch.dtype, device: str) -> str:
    """Why an optimizer cannot be measured: its package is not there, or it refuses what it is asked for."""
    try:
        params = _weights([(64, 64)], dtype, device)
        params[0].grad = torch.ones_like(params[0])
        OPTIMIZERS[name](params, 1e-4).step()
    except Exception as error:
        return reason(error)
    return ""


def measure(shapes: Shapes, dtype: torch.dtype, name: str, rounds: int, device: str) -> dict[str, Any]:
    """An optimizer beside the baseline, by turns."""
    grads = [[grad.mul_(0.05) for grad in _drawn(shapes, dtype, device, seed)] for seed in range(1, 1 + GRADIENTS)]
    baseline, ours = (OPTIMIZERS[one](_weights(shapes, dtype, device), 1e-4) for one in (BASELINE, name))
    for turn in range(WARM):
        for one in (baseline, ours):
            _give(one, grads[turn % GRADIENTS])
            one.step()
    series: dict[str, list[float]] = {"baseline": [], "ours": [], "host": []}
    for turn in range(rounds):
        for key, one in (("baseline", baseline), ("ours", ours)):
            _give(one, grads[turn % GRADIENTS])
            _wait(device)
            begin = time.perf_counter()
            one.step()
            if key == "ours":
                series["host"].append(1e3 * (time.perf_counter() - begin))
            _wait(device)
            series[key].append(1e3 * (time.perf_counter() - begin))
    del baseline
    ratios = [mine / theirs for mine, theirs in zip(series["ours"], series["baseline"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    count = sum(torch.Size(shape).numel() for shape in shapes)
    row = {
        "weights_in_all": count,
        "tensors": len(shapes),
        "median_ms": statistics.median(series["ours"]),
        "ratio": middle,
        "ratio_quartiles": [low, high],
        "baseline_ms": statistics.median(series["baseline"]),
        "host_ms": statistics.median(series["host"]),
        "state_bytes_per_weight": _state_bytes(ours) / count,
        "peak_bytes_per_weight": _peak(ours, device) / count,
        "launches": _launches(ours, device),
        "waits": _waits(ours, device),
    }
    del ours
    row["graph_ms"] = _in_a_graph(shapes, dtype, name, grads[0], rounds, device)
    return row


def fine_tuning(
    names: Sequence[str],
    rounds: int,
    device: str,
    layers: int = 12,
    width: int = 768,
    batch: tuple[int, int] = (32, 128),
) -> list[dict[str, Any]]:
    """The optimizer's share of a training step of an encoder under bfloat16 autocast; ``batch`` is texts and tokens."""
    rows = []
    for name in names:
        if missing(name, torch.float32, device):
            continue
        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(width, 12, 4 * width, batch_first=True, dropout=0.0)
        model = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).to(device)
        optimizer = OPTIMIZERS[name](list(model.parameters()), 1e-4)
        texts = torch.randn(*batch, width, device=device)
        whole, own = [], []
        for turn in range(WARM + rounds):
            _wait(device)
            begin = time.perf_counter()
            with torch.autocast(device, torch.bfloat16):
                loss = model(texts).square().mean()
            loss.backward()
            _wait(device)
            middle = time.perf_counter()
            optimizer.step()
            optimizer.zero_grad()
            _wait(device)
            end = time.perf_counter()
            if turn >= WARM:
                whole.append(1e3 * (end - begin))
                own.append(1e3 * (end - middle))
        step, took = statistics.median(whole), statistics.median(own)
        rows.append({"optimizer": name, "step_ms": step, "optimizer_ms": took, "share": took / step})
    return rows


def _drawn(shapes: Shapes, dtype: torch.dtype, device: str, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    return [(0.02 * torch.randn(shape, generator=generator, device=device)).to(dtype) for shape in shapes]


def _weights(shapes: Shapes, dtype: torch.dtype, device: str) -> list[torch.nn.Parameter]:
    """The same at every call."""
    return [torch.nn.Parameter(value) for value in _drawn(shapes, dtype, device, 0)]


def _give(optimizer: Optimizer, grads: Sequence[torch.Tensor]) -> None:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _state_bytes(optimizer: Optimizer) -> int:
    """Of all tensors that a state holds, and of those inside them (torchao's 8 bits are such)."""

    def size(value: Any) -> int:
        if not isinstance(value, torch.Tensor):
            return 0
        if hasattr(value, "__tensor_flatten__"):
            return sum(size(getattr(value, name)) for name in value.__tensor_flatten__()[0])
        return value.numel() * value.element_size()

    return sum(size(value) for held in optimizer.state.values() for value in held.values())


def _peak(optimizer: Optimizer, device: str) -> int:
    """Most bytes that a step holds besides what was there before."""
    if device != "cuda":
        return 0
    _wait(device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    optimizer.step()
    _wait(device)
    return torch.cuda.max_memory_allocated() - before


def _launches(optimizer: Optimizer, device: str) -> int:
    """Kernels and copies that a step starts on the device."""
    from torch.profiler import ProfilerActivity, profile

    if device != "cuda":
        return 0
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        optimizer.step()
        _wait(device)
    return sum(event.device_type.name == "CUDA" for event in record.events() or ())


def _waits(optimizer: Optimizer, device: str) -> int:
    """How often the host waits for the device in a step."""
    if device != "cuda":
        return 0
    _wait(device)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(one.message) for one in said)


def _in_a_graph(
    shapes: Shapes, dtype: torch.dtype, name: str, grads: Sequence[torch.Tensor], rounds: int, device: str
) -> float | str:
    """Milliseconds of a step that is replayed, or why there is none."""
    if device != "cuda":
        return "no graphs"
    try:
        optimizer = OPTIMIZERS[name](_weights(shapes, dtype, device), torch.tensor(1e-4, device=device))
        _give(optimizer, grads)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                optimizer.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            optimizer.step()
        times = []
        for _ in range(rounds):
            _wait(device)
            begin = time.perf_counter()
            graph.replay()
            _wait(device)
            times.append(1e3 * (time.perf_counter() - begin))
    except torch.OutOfMemoryError:
        return "does not fit"
    except Exception as error:  # not every optimizer can be captured
        return f"none: {reason(error, 60)}"
    return statistics.median(times)
