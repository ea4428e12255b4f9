"""Whole steps through the Triton kernels: equal to the eager passes, without waiting, and in a CUDA graph.

Under Triton's interpreter they run on the CPU (``test_triton_kernel.py`` starts that process), where fused=True takes
Triton's kernels if the compiled ones are not there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from triton_problem import CUDA, INTERPRETED, on_device

from arturo_core import Arturo
from arturo_core.kernels import cpu
from arturo_core.kernels import triton as triton_kernel

SHAPES = [(15, 10), (20,), (), (0,), (4, 3, 2, 2), (11, 13)]
STEPS, NOT_A_NUMBER = 20, 7

CASES: dict[str, dict[str, Any]] = {
    "rms": {"lr": 1e-2},
    "kl": {"lr": 1e-1, "trust_region": "kl", "weight_decay": 0.1},
    "maximize": {"lr": 1e-2, "maximize": True, "weight_decay": 0.1},
    "tensor lr": {"lr": torch.tensor(1e-2)},
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

#: The interpreter takes milliseconds a program: every case and every dtype once.
FEW = {("rms", torch.float32), ("kl", torch.bfloat16), ("maximize", torch.float32), ("tensor lr", torch.float16)}
every_case = pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, dtype) for case in CASES for dtype in DTYPES if not INTERPRETED or (case, dtype) in FEW],
    ids=str,
)


@pytest.fixture(autouse=True)
def no_compiled_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "available", lambda: False)


def drawn(seed: int, shapes: list[tuple[int, ...]] = SHAPES) -> list[Tensor]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=source, dtype=torch.float64) for shape in shapes]


def built(device: str, dtype: torch.dtype, options: dict[str, Any]) -> tuple[list[Parameter], Arturo]:
    """Two groups; a matrix whose elements lie column by column, and one in channels-last order."""
    params = [Parameter(value.to(device, dtype)) for value in drawn(0)]
    params[0] = Parameter(params[0].detach().t().contiguous().t())
    params[4] = Parameter(params[4].detach().clone(memory_format=torch.channels_last))
    lr = options["lr"].to(device) if isinstance(options["lr"], Tensor) else options["lr"]
    other = lr if options.get("trust_region") == "kl" else 0.7 * lr
    groups = [{"params": params[:3]}, {"params": params[3:], "lr": other, "weight_decay": 0.0}]
    return params, Arturo(groups, **{**options, "lr": lr})


def give(params: list[Parameter], step: int) -> None:
    """Gradients that do not depend on the weights, so that rounding has nothing to grow in; one step lacks two."""
    for number, (param, mean, noise) in enumerate(zip(params, drawn(1), drawn(10 + step), strict=True)):
        grad = (0.3 * mean + 0.3 * noise).to(param.device, param.dtype)
        param.grad = torch.empty_like(param).copy_(grad) if (step, number) not in {(3, 0), (3, 5)} else None
    if step == NOT_A_NUMBER:
        params[-1].grad[2, 2] = torch.nan  # type: ignore[index]


@on_device
@every_case
def test_training_is_that_of_the_eager_passes(
    device: str, case: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = CASES[case]
    taken: list[int] = []
    through = triton_kernel.apply

    def counted(batch: Any, *rest: Any) -> Tensor:
        taken.append(len(batch.sources))
        return through(batch, *rest)

    monkeypatch.setattr(triton_kernel, "apply", counted)
    expected_params, expected = built(device, dtype, {**options, "fused": False})
    params, optimizer = built(device, dtype, {**options, "fused": True if INTERPRETED else None})
    start = [param.detach().double().clone() for param in params]
    steps = STEPS if case == "rms" or not INTERPRETED else STEPS // 2
    for step in range(steps):
        for which, one in ((params, optimizer), (expected_params, expected)):
            give(which, step)
            one.step()
    assert sum(taken) == 5 * steps - 2, "every weight that has a gradient, in every step, and the twin's in none"
    ours, theirs = optimizer.diagnostics(), expected.diagnostics()
    assert (ours["steps"], ours["skipped_steps"]) == (theirs["steps"], theirs["skipped_steps"]) == (steps - 1, 1)
    for key in ("eta", "kl", "kl_bound", "step_rms", "innovation_ratio"):
        assert ours[key] == pytest.approx(theirs[key], rel=1e-4), key
    for param, other, before in zip(params, expected_params, start, strict=True):
        if not param.numel():
            continue
        moved = float((other.detach().double() - before).abs().max())
        assert moved > 0.0
        spacing = (dtype != torch.float32) * float(before.abs().max()) * torch.finfo(dtype).eps
        torch.testing.assert_close(param.double(), other.double(), rtol=0.0, atol=1e-4 * moved + spacing)
        for name, value in expected.state[other].items():
            within = 1e-3 * float(value.double().abs().max())
            assert float((optimizer.state[param][name].double() - value.double()).abs().max()) <= within, name


@on_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bfloat16_state_is_rounded_as_in_the_eager_passes(device: str, dtype: torch.dtype) -> None:
    """By the same random bits, so that hardly an element differs; of those that do, by a rounding or two."""
    options = {"lr": 1e-2, "weight_decay": 0.1, "state_dtype": "bfloat16"}
    expected_params, expected = built(device, dtype, {**options, "fused": False})
    params, optimizer = built(device, dtype, {**options, "fused": True})
    for step in range(3 if INTERPRETED else STEPS):
        for which, one in ((params, optimizer), (expected_params, expected)):
            give(which, step + NOT_A_NUMBER - 2)
            one.step()
    equal = count = 0
    for param, other in zip(params, expected_params, strict=True):
        # Elements that do not lie row by row count in the order of memory here, and in that of rows in a pack.
        lies_in_rows = param.numel() and param.is_contiguous()
        for name in ("direction", "deviation", "curvature", "displacement") if lies_in_rows else ():
            found, wanted = optimizer.state[param][name], expected.state[other][name]
            assert found.dtype == torch.bfloat16
            equal += int((found == wanted).sum())
            count += found.numel()
            assert float((found.double() - wanted.double()).abs().max()) <= 0.02 * float(wanted.double().abs().max())
    assert equal > 0.97 * count


@on_device
def test_the_weights_size_is_found_on_the_way(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the pass that writes them; it is measured anew where others have changed them, and is the same to the bit."""
    measured: list[bool] = []
    through = triton_kernel.survey

    def counted(batch: Any, squares: bool = True) -> tuple[Tensor, Tensor]:
        measured.append(squares)
        return through(batch, squares)

    monkeypatch.setattr(triton_kernel, "survey", counted)
    params, optimizer = built(device, torch.float32, {"lr": 1.0, "fused": True})
    known = []
    for step in range(3):
        measured.clear()
        give(params, 4 + step)
        optimizer.step()
        known.append(any(measured))
        sizes = [optimizer._squares._known[id(param)][3] for param in params if param.numel()]
        sources = [type("Held", (), {"theta": param.detach()}) for param in params if param.numel()]
        assert len(sizes) == len(sources) == 5
        for size, source in zip(sizes, sources, strict=True):
            assert float(size) == pytest.approx(float(source.theta.double().square().sum()), rel=1e-6)  # type: ignore[attr-defined]
    assert known == [True, False, False]
    bound = float(optimizer._report.multiplier.bound)  # type: ignore[union-attr]
    with torch.no_grad():
        params[0].mul_(3.0)
    measured.clear()
    give(params, 6)
    optimizer.step()
    assert any(measured)
    assert float(optimizer._report.multiplier.bound) != pytest.approx(bound, rel=0.05)  # type: ignore[union-attr]


@pytest.fixture
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("device", [CUDA])
@every_case
def test_the_host_never_waits(device: str, case: str, dtype: torch.dtype, request: pytest.FixtureRequest) -> None:
    params, optimizer = built(device, dtype, CASES[case])
    for step in (0, 1):
        give(params, step)
        optimizer.step()
    give(params, NOT_A_NUMBER)
    torch.cuda.synchronize()
    request.getfixturevalue("no_waiting")
    optimizer.step()
    for group in optimizer.param_groups:
        if not isinstance(group["lr"], Tensor):
            group["lr"] *= 0.9
    optimizer.step()


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_captured_step_is_the_step(device: str, dtype: torch.dtype) -> None:
    """Replayed with other gradients, learning rates and weights that others have changed."""
    options = {"lr": torch.tensor(1e-2), "weight_decay": 0.1}
    params, optimizer = built(device, dtype, options)
    twins, eager = built(device, dtype, options)
    for which in (params, twins):
        give(which, 0)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    eager.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for step in range(1, STEPS):
        give(twins, step if step != 3 else 2)
        for param, twin in zip(params, twins, strict=True):
            param.grad.copy_(twin.grad)  # type: ignore[union-attr]
        for one in (optimizer, eager):
            for number, group in enumerate(one.param_groups):
                group["lr"].fill_(1e-2 * 0.7**number * min(step, 10) / 10)
        if step == 12:
            with torch.no_grad():
                for param in (*params, *twins):
                    param.mul_(0.5)
        graph.replay()
        eager.step()
        for param, twin in zip(params, twins, strict=True):
            assert torch.equal(param, twin), step
            for name, value in eager.state[twin].items():
                assert torch.equal(optimizer.state[param][name], value), (step, name)
    # A step without the graph goes on from there.
    for which, one in ((params, optimizer), (twins, eager)):
        give(which, STEPS)
        one.step()
    assert all(torch.equal(param, twin) for param, twin in zip(params, twins, strict=True))
