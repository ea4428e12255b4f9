"""One parity matrix: every fast form of the passes against the pure functions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import PASSES as MODES

from arturo_core import Arturo, optimizer
from arturo_core.kernels import compiled, eager, reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def parameters(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """Small and large, matrices, a channels-last filter, a scalar and an empty tensor."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(60, 50), (7,), (), (0,), (4, 3, 5, 5), (11, 13)]
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
    params[4] = torch.nn.Parameter(params[4].detach().to(memory_format=torch.channels_last))
    return params


def run(passes: Any, mode: dict[str, Any], dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch) -> Arturo:
    """Twelve steps on a noisy quadratic with some negative curvature, one of them with a NaN."""
    monkeypatch.setattr(optimizer, "eager", passes)
    monkeypatch.setitem(optimizer.CHUNK, "eager", chunk)
    params = parameters(dtype)
    half = len(params) // 2
    ours = Arturo([{"params": params[:half]}, {"params": params[half:]}], **mode)
    generator = torch.Generator().manual_seed(2)
    curvatures = [torch.randn(param.shape, generator=generator) + 0.7 for param in params]
    for step in range(12):
        for param, curvature in zip(params, curvatures, strict=True):
            noise = torch.randn(param.shape, generator=generator)
            sign = -1 if mode.get("maximize") else 1
            param.grad = (sign * curvature * param.detach() + 0.3 * noise).to(dtype)
        if step == 5:
            params[0].grad[3, 3] = torch.nan  # type: ignore[index]
        ours.step()
    assert ours.diagnostics()["skipped_steps"] == 1
    return ours


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chunk", [1 << 16, 64])
def test_eager_passes_equal_the_reference(
    mode: str, dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(reference, MODES[mode], dtype, 1 << 30, monkeypatch)
    found = run(eager, MODES[mode], dtype, chunk, monkeypatch)
    compare(found, expected, dtype)


@pytest.mark.parametrize("mode", ["adaptive, prior and decay", "fixed, kl"])
def test_compiled_passes_equal_the_reference(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(reference, MODES[mode], torch.float32, 1 << 30, monkeypatch)
    found = run(compiled.passes(), MODES[mode], torch.float32, 1 << 30, monkeypatch)
    compare(found, expected, torch.float32)


def compare(found: Arturo, expected: Arturo, dtype: torch.dtype) -> None:
    # bfloat16 weights round each step, so that a difference of one rounding of float32 can flip one of bfloat16.
    tolerance = {torch.float64: 1e-6, torch.float32: 2e-3, torch.bfloat16: 3e-2}[dtype]
    for group, other in zip(found.param_groups, expected.param_groups, strict=True):
        for param, wanted in zip(group["params"], other["params"], strict=True):
            torch.testing.assert_close(param, wanted, rtol=tolerance, atol=tolerance * 1e-1)
            for name, value in expected.state[wanted].items():
                scale = float(value.abs().max()) if value.numel() else 0.0
                torch.testing.assert_close(
                    found.state[param][name], value, rtol=tolerance, atol=tolerance * scale, msg=lambda m, n=name: n + m
                )
    ours, theirs = found.diagnostics(), expected.diagnostics()
    assert ours.keys() == theirs.keys()
    for key in ("kl_bound", "kl_ratio", "innovation_ratio", "step_rms"):
        assert ours[key] == pytest.approx(theirs[key], rel=10 * tolerance, abs=1e-9), key
    assert ours["bound_active"] == theirs["bound_active"]


def one_step(passes: Any, mode: dict[str, Any], start: Callable[[], Arturo], monkeypatch: pytest.MonkeyPatch) -> Arturo:
    monkeypatch.setattr(optimizer, "eager", passes)
    ours = start()
    ours.step()
    return ours


@pytest.mark.parametrize("mode", MODES)
def test_one_step_agrees_to_rounding(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same state a single step may differ by a few roundings of float64 only."""
    trained = run(reference, MODES[mode], torch.float64, 1 << 30, monkeypatch)
    generator = torch.Generator().manual_seed(5)
    for group in trained.param_groups:
        for param in group["params"]:
            param.grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
    expected = one_step(reference, MODES[mode], lambda: copy.deepcopy(trained), monkeypatch)
    found = one_step(eager, MODES[mode], lambda: copy.deepcopy(trained), monkeypatch)
    for group, other in zip(found.param_groups, expected.param_groups, strict=True):
        for param, wanted in zip(group["params"], other["params"], strict=True):
            torch.testing.assert_close(param, wanted, rtol=1e-10, atol=1e-12)
            for name, value in expected.state[wanted].items():
                torch.testing.assert_close(found.state[param][name], value, rtol=1e-9, atol=1e-12)


def test_compiled_passes_do_not_recompile_as_lr_and_multiplier_change() -> None:
    torch._dynamo.reset()
    compiled.passes.cache_clear()
    param = torch.nn.Parameter(torch.randn(500))
    other = torch.nn.Parameter(torch.randn(40, 3))
    ours = Arturo([param, other], lr=1e-2, compile=True)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        for tensor in (param, other):
            tensor.grad = torch.randn(tensor.shape, generator=generator)
        ours.step()

    for _ in range(3):
        step()
    counters = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert counters > 0
    for index in range(10):
        ours.param_groups[0]["lr"] = 1e-2 / (index + 1)
        step()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == counters


def rounded_away(dtype: torch.dtype, step: Callable[[Arturo], Callable[[], Any]], **options: Any) -> Arturo:
    """Six steps of weights around 100, none of which is large enough to reach the next number of a narrow dtype."""
    generator = torch.Generator().manual_seed(3)
    large = torch.nn.Parameter((100 + torch.randn(300, 7, generator=generator)).to(dtype))
    small = torch.nn.Parameter(torch.randn(9, generator=generator).to(dtype))
    ours = Arturo([large, small], lr=1e-3, weight_decay=0.01, **options)
    take = step(ours)
    for _ in range(6):
        for param in (large, small):
            param.grad = (0.3 + torch.randn(param.shape, generator=generator)).to(dtype)
        take()
    return ours


def check_rounded_away(found: Arturo, expected: Arturo) -> None:
    """Movement that rounding swallows is not counted, and what is left of it is, to a few roundings of float32."""
    ours, theirs = found.param_groups[0]["params"], expected.param_groups[0]["params"]
    assert not found.state[ours[0]]["displacement"].any(), "no weight has moved"
    assert found.state[ours[1]]["displacement"].any()
    for param, wanted in zip(ours, theirs, strict=True):
        assert torch.equal(param, wanted)
        for name, value in expected.state[wanted].items():
            scale = float(value.abs().max())
            torch.testing.assert_close(found.state[param][name], value, rtol=2e-6, atol=2e-6 * scale)


NARROW = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@NARROW
def test_every_pass_learns_the_displacement_from_the_rounded_weights(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rounded_away(dtype, lambda ours: ours.step)
    compiles = dtype == torch.bfloat16  # each takes ten seconds to compile
    through_compiler = rounded_away(dtype, lambda ours: ours.step, compile=True) if compiles else found
    monkeypatch.setattr(optimizer, "eager", reference)
    expected = rounded_away(dtype, lambda ours: ours.step)
    check_rounded_away(found, expected)
    check_rounded_away(through_compiler, expected)


def test_float32_weights_under_float64_statistics_round_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of 1e-6 is far below the spacing of float32 numbers around 100."""
    options = {"state_dtype": torch.float64}
    through_compiler = rounded_away(torch.float32, _tiny, compile=True, **options)
    monkeypatch.setattr(optimizer, "eager", reference)
    check_rounded_away(through_compiler, rounded_away(torch.float32, _tiny, **options))


def _tiny(ours: Arturo) -> Callable[[], Any]:
    for group in ours.param_groups:
        group["lr"] = 1e-7
    return ours.step


@pytest.mark.slow
@NARROW
def test_a_step_that_its_user_compiles_counts_what_rounding_leaves(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    check_rounded_away(
        rounded_away(dtype, lambda ours: torch.compile(ours.step)), rounded_away(dtype, lambda ours: ours.step)
    )
