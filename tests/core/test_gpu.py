"""Parity on a CUDA device: every pass against the pure functions, and a whole step against float64 on the CPU.

``make test-gpu`` runs what needs a device. The same tests run on the CPU in the ordinary suite, where they hold by
other tests already: there they check themselves.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from problems import PASSES as MODES
from problems import through

from arturo_core import Arturo
from arturo_core.kernels import compiled, eager, reference, select

#: Of weights and, relative to the largest element, of state tensors.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-3, torch.bfloat16: 3e-2}
SHAPES = [(60, 50), (7,), (), (0,), (4, 3, 5, 5), (11, 13)]
STEPS, NOT_A_NUMBER = 8, 5

needs_cuda = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
#: On the CPU one mode of each form will do.
CASES = [("cpu", "adaptive, prior and decay"), ("cpu", "fixed, kl")]
on_both = pytest.mark.parametrize(
    ("device", "mode"), [*CASES, *(pytest.param("cuda", mode, marks=needs_cuda) for mode in MODES)]
)


def trained(device: str, dtype: torch.dtype, options: dict[str, Any]) -> Arturo:
    """Steps along gradients that do not depend on the weights, so that rounding has nothing to grow in."""
    source = torch.Generator().manual_seed(1)

    def drawn() -> list[torch.Tensor]:
        return [torch.randn(shape, generator=source, dtype=torch.float64) for shape in SHAPES]

    params = [torch.nn.Parameter(start.to(device, dtype)) for start in drawn()]
    # A bound in nats is one for all groups.
    other = options["lr"] if options.get("trust_region") == "kl" else 0.7 * options["lr"]
    ours = Arturo([{"params": params[:3]}, {"params": params[3:], "lr": other}], **options)
    means = drawn()
    for step in range(STEPS):
        for param, mean, noise in zip(params, means, drawn(), strict=True):
            param.grad = (0.3 * mean + 0.3 * noise).to(device, dtype)
        if step == NOT_A_NUMBER:
            params[0].grad[3, 3] = torch.nan  # type: ignore[index]
        ours.step()
    return ours


def assert_same(found: Arturo, expected: Arturo, tolerance: float) -> None:
    for group, other in zip(found.param_groups, expected.param_groups, strict=True):
        for param, wanted in zip(group["params"], other["params"], strict=True):
            close(param.detach(), wanted.detach(), tolerance, "weights")
            for name, value in expected.state[wanted].items():
                close(found.state[param][name], value, tolerance, name)
    ours, theirs = found.diagnostics(), expected.diagnostics()
    assert ours.keys() == theirs.keys()
    assert (ours["steps"], ours["skipped_steps"]) == (theirs["steps"], theirs["skipped_steps"]) == (STEPS - 1, 1)
    assert ours["bound_active"] == theirs["bound_active"]
    for key in ("kl_bound", "kl_ratio", "innovation_ratio", "step_rms"):
        assert ours[key] == pytest.approx(theirs[key], rel=10 * tolerance, abs=1e-9), key


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float, what: str) -> None:
    """Wherever the tensors are, and in float64."""
    left, right = found.double().cpu(), wanted.double().cpu()
    scale = float(right.abs().max()) if right.numel() else 0.0
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance * scale, msg=lambda text: f"{what}: {text}")


def with_passes(passes: Any, monkeypatch: pytest.MonkeyPatch, *given: Any, chunk: int = 1 << 30) -> Arturo:
    with monkeypatch.context() as patched:
        through(passes, patched)
        patched.setitem(select.CHUNK, "eager", chunk)
        return trained(*given)


@on_both
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_eager_passes_equal_the_reference(
    device: str, mode: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = with_passes(reference, monkeypatch, device, dtype, MODES[mode])
    for chunk in (1 << 16, 64):
        found = with_passes(eager, monkeypatch, device, dtype, MODES[mode], chunk=chunk)
        assert_same(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize(("device", "mode"), [pytest.param("cuda", mode, marks=needs_cuda) for mode in MODES])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_compiled_passes_equal_the_reference(
    device: str, mode: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = with_passes(reference, monkeypatch, device, dtype, MODES[mode])
    found = with_passes(compiled.passes(), monkeypatch, device, dtype, MODES[mode])
    assert_same(found, expected, TOLERANCE[dtype])


@on_both
def test_training_is_that_of_float64_on_the_cpu(device: str, mode: str) -> None:
    expected = trained("cpu", torch.float64, MODES[mode])
    assert_same(trained(device, torch.float32, MODES[mode]), expected, TOLERANCE[torch.float32])
    assert_same(trained(device, torch.float64, MODES[mode]), expected, TOLERANCE[torch.float64])


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=needs_cuda)])
def test_the_public_switch_compiles_on_the_device(device: str) -> None:
    expected = trained("cpu", torch.float64, MODES["adaptive, prior and decay"])
    options = {**MODES["adaptive, prior and decay"], "compile": True}
    assert_same(trained(device, torch.float32, options), expected, TOLERANCE[torch.float32])


@on_both
def test_a_checkpoint_moves_between_devices(device: str, mode: str) -> None:
    """Its tensors follow the weights; the next step is that of the run it was saved by."""
    saved = trained(device, torch.float64, MODES[mode])
    moved = trained("cpu", torch.float64, MODES[mode])
    moved.load_state_dict(copy.deepcopy(saved.state_dict()))
    for group, other in zip(moved.param_groups, saved.param_groups, strict=True):
        for param, source in zip(group["params"], other["params"], strict=True):
            assert {value.device.type for value in moved.state[param].values() if value.dim()} <= {"cpu"}
            param.data.copy_(source.detach())
            gradient = torch.full(param.shape, 0.1, dtype=torch.float64)
            param.grad, source.grad = gradient, gradient.to(device)
    saved.step()
    moved.step()
    for group, other in zip(moved.param_groups, saved.param_groups, strict=True):
        for param, source in zip(group["params"], other["params"], strict=True):
            close(param.detach(), source.detach(), 1e-9, "weights")
