"""The Triton kernels as devices run them: compiled for chips that are not there, captured in a graph, on huge tensors.

Tests that compile need Triton and no device: its wheel brings the assembler along.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from triton_problem import (
    CUDA,
    INTERPRETED,
    LENGTH,
    NEEDS_TRITON,
    ORDINARY,
    copied,
    drawn,
    gains,
    same_bits,
    scalar,
    seeds,
    sources,
)

from arturo_core.kernels import triton as triton_kernel
from arturo_core.kernels.triton import availability, tables
from arturo_core.step.chunks import Source

compiled_only = pytest.mark.skipif(INTERPRETED, reason="the interpreter has no compiler")
on_cuda = pytest.mark.parametrize("device", [CUDA])

#: The types of what a launch is given.
ARGUMENTS = {
    "table": "*i64",
    "low": "i32",
    "high": "i32",
    "first": "i32",
    "sums": "*fp64",
    "rows": "i32",
    "gains": "*fp64",
    "ok": "*fp64",
    "decay": "*fp64",
    "length": "*fp64",
    "factor": "*fp64",
    "seeds": "*i64",
    "out": "*fp64",
    "columns": "i32",
}

#: Weights, gradients and state.
DTYPES = [
    ("float32", "float32", "float32"),
    ("float32", "float32", "bfloat16"),
    ("bfloat16", "bfloat16", "float32"),
    ("bfloat16", "bfloat16", "bfloat16"),
    ("float16", "float32", "float32"),
]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that was compiled before counts."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def assembled(name: str, capability: int, constants: dict[str, Any]) -> str:
    """PTX of a kernel for a chip; that it assembles has been asserted."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernels = availability.kernels()
    kernel = getattr(kernels, name)
    given = {**ARGUMENTS, "values": ("i64",) * kernels.WRITTEN}
    names = kernel.arg_names
    assert {name for name in names if name not in given} == set(constants), "all compile-time constants"
    source = ASTSource(
        fn=kernel,
        signature={name: given.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
    )
    found = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=availability.OPTIONS)
    assert found.asm["cubin"][:4] == b"\x7fELF"
    ptx: str = found.asm["ptx"]
    assert f".target sm_{capability}" in ptx
    return ptx


def constants(name: str, weights: str, grads: str, state: str, **more: Any) -> dict[str, Any]:
    names = getattr(availability.kernels(), name).arg_names
    known = {"THETA": weights, "GRAD": grads, "STATE": state, "BLOCK": tables.BLOCK, "SPAN": tables.SPAN}
    known |= {"ALIGNED": True, "SQUARES": True, "MAXIMIZE": True, "DECAY": True, **more}
    return {key: value for key, value in known.items() if key in names}


@NEEDS_TRITON
@compiled_only
@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("capability", [80, 90])
def test_every_kernel_compiles_without_a_device(capability: int) -> None:
    """And moves 8 or 16 bytes at a time, without fused products and sums."""
    assembled("write", capability, {})
    assembled("total", capability, {"BLOCK": triton_kernel.ADDED, "SPAN": tables.SPAN})
    # What is read and written widely: the gradient and four tensors of state; θ and u, and D where θ is narrow.
    for weights, grads, state in DTYPES:
        narrow = weights != "float32"
        for name, loads, stores in (("survey", 2, 0), ("observe", 6, 5), ("apply", 2 + narrow, 1 + 2 * narrow)):
            ptx = assembled(name, capability, constants(name, weights, grads, state))
            wide = r"\.global\S*\.(v4\.b32|v2\.b32|v2\.b64)"
            assert len(re.findall("ld" + wide, ptx)) >= loads, (name, weights, grads, state)
            assert len(re.findall("st" + wide, ptx)) >= stores, (name, weights, grads, state)
            assert "fma.rn.f32" not in ptx


@NEEDS_TRITON
@compiled_only
@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("flags", [{"DECAY": False}, {"MAXIMIZE": False}, {"ALIGNED": False}], ids=str)
def test_other_flags_compile(flags: dict[str, bool]) -> None:
    for name in ("survey", "observe", "apply"):
        given = constants(name, "bfloat16", "float32", "bfloat16", SQUARES=False)
        ptx = assembled(name, 90, given | {key: value for key, value in flags.items() if key in given})
        if not flags.get("ALIGNED", True):
            assert not re.search(r"(ld|st)\.global\S*\.v[24]", ptx), "an address may be that of any element"


class NoDriver:
    """Names the chip; nothing can be launched."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@NEEDS_TRITON
@compiled_only
@pytest.mark.usefixtures("own_cache")
def test_launches_bind_their_arguments_and_compile_once(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Whatever the number of tensors, their sizes, and where scalars lie; up to the launch, which has no device."""
    from triton.runtime import JITFunction, driver

    run = JITFunction.run
    monkeypatch.setattr(
        JITFunction, "run", lambda self, *given, **named: run(self, *given, **{**named, "warmup": True})
    )
    monkeypatch.setattr(driver, "_active", NoDriver())
    made = {name: getattr(availability.kernels(), name) for name in ("survey", "observe", "apply", "total", "write")}
    for kernel in made.values():
        kernel.device_caches.clear()
        request.addfinalizer(kernel.device_caches.clear)
    for shapes in ([(1,)], [(16,)], [(9000,), (3, 5)], [(16, 16)] * 16):
        given = sources("cpu", shapes=[*shapes, (2,)])[:-1]
        scalars = Scalars(given, "cpu")
        for odd in (False, True):
            room = torch.ones(5, dtype=torch.float64)
            scalars.ok, scalars.factor = room[odd], room[2 + odd]
            scalars.step(given)
        tables.written(list(range(3 * len(given))), torch.device("cpu"))
    assert {name: len(kernel.device_caches[0][0]) for name, kernel in made.items()} == dict.fromkeys(made, 1)


class Scalars:
    """What a step reads on the device, in place."""

    def __init__(self, given: list[Source], device: str) -> None:
        self.gains = gains([ORDINARY] * len(given), device)
        self.ok, self.decay = scalar(1.0, device), scalar(0.01, device)
        self.length, self.factor = scalar(LENGTH, device), scalar(0.2, device)
        self.seeds = seeds(given, device)

    def step(self, given: list[Source]) -> tuple[Tensor, ...]:
        batch = triton_kernel.table(given)
        unusable, before = triton_kernel.survey(batch)
        ok = self.ok * (1.0 - unusable)
        sums = triton_kernel.observe(batch, self.gains, ok, self.decay, self.length, False, self.seeds)
        after = triton_kernel.apply(batch, self.factor * ok, self.length, self.seeds)
        return unusable, before, sums, after


@on_cuda
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
def test_a_captured_step_is_the_step(device: str, weights: torch.dtype, state: torch.dtype) -> None:
    """Replayed with other gradients, gains and learning rates, also once that memory of the step before is reused."""
    shapes = [(10 + number, 7) for number in range(40)]
    captured = sources(device, weights, weights, state, shapes=shapes)
    eager = copied(captured)
    scalars = Scalars(captured, device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        scalars.step(captured)
    torch.cuda.current_stream().wait_stream(stream)
    scalars.step(eager)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = scalars.step(captured)
    assert same_bits(captured, eager), "a capture runs nothing"
    tables._tables.clear()
    gc.collect()
    generator = torch.Generator().manual_seed(8)
    for number, worst in enumerate((0.0, 0.0, torch.nan, 0.0)):
        for source, twin in zip(captured, eager, strict=True):
            source.grad.copy_(drawn(source.grad.shape, generator))
            source.grad[0, 0] += worst
            twin.grad.copy_(source.grad)
        scalars.length.fill_(LENGTH / (number + 1))
        scalars.factor.fill_(0.1 * number)
        torch.full((1 << 20,), -1, dtype=torch.int64, device=device)
        graph.replay()
        wanted = scalars.step(eager)
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
        assert same_bits(captured, eager)
        assert float(found[0]) == float(worst != 0.0)


@on_cuda
def test_gradients_may_be_made_inside_the_graph(device: str) -> None:
    """As ``zero_grad()`` and a backward pass under capture make them, at new addresses."""
    captured = sources(device, shapes=[(50, 7), (33,)])
    eager = copied(captured)
    scalars = Scalars(captured, device)
    scalars.step(captured)
    scalars.step(eager)
    feed = [torch.randn_like(source.grad) for source in captured]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for source, given in zip(captured, feed, strict=True):
            source.grad = given * 2.0
        scalars.step(captured)
    for _ in range(3):
        for twin, given in zip(eager, feed, strict=True):
            given.normal_()
            twin.grad = given * 2.0
        graph.replay()
        scalars.step(eager)
        assert same_bits(captured, eager)


@pytest.fixture
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@on_cuda
def test_the_host_never_waits_and_memory_is_next_to_none(device: str, request: pytest.FixtureRequest) -> None:
    """Below 1% of bfloat16 weights at the peak, also when gradients have moved."""
    given = sources(device, *[torch.bfloat16] * 3, shapes=[(4000, 4000), (1000,), (3000, 1000)])
    scalars = Scalars(given, device)
    scalars.step(given)
    torch.cuda.synchronize()
    request.getfixturevalue("no_waiting")
    for source in given:
        source.grad = source.grad.clone()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    scalars.step(given)
    peak = torch.cuda.max_memory_allocated() - held
    assert 0 < peak < 0.01 * sum(source.theta.numel() * 2 for source in given)


@on_cuda
def test_a_huge_tensor_is_stepped_to_its_end(device: str) -> None:
    count, tail = 2**31 + 1000, 900
    if torch.cuda.mem_get_info()[0] < 7 * 2 * count:
        pytest.skip(f"needs {14 * count >> 30} GiB of free memory")
    end = sources(device, *[torch.bfloat16] * 3, shapes=[(tail,)])[0]

    def grown(values: Tensor, fill: float) -> Tensor:
        whole = torch.full((count,), fill, dtype=values.dtype, device=device)
        whole[-tail:] = values
        return whole

    fills = (0.0, 1.0, 1.0, 0.0)
    state = tuple(grown(held, fill) for held, fill in zip(end.state, fills, strict=True))
    whole = [Source(grown(end.theta, 0.0), grown(end.grad, 0.0), state, {}, 0)]
    scalars, last = Scalars(whole, device), Scalars([end], device)
    scalars.seeds = torch.tensor([[99, 0]], device=device)
    last.seeds = torch.tensor([[99, count - tail]], device=device)
    _, before, sums, after = scalars.step(whole)
    _, before_end, _, after_end = last.step([end])
    cut = Source(whole[0].theta[-tail:], whole[0].grad[-tail:], tuple(held[-tail:] for held in state), {}, 0)
    assert same_bits([cut], [end])
    # All others rest: weights, gradients and u are zero, σ and s near one.
    torch.testing.assert_close(torch.stack([before, after]), torch.stack([before_end, after_end]), rtol=1e-6, atol=0.0)
    assert float(sums[0, 2]) == pytest.approx(count, rel=0.02)
