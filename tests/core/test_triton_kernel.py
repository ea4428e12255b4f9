"""The numbers of the Triton kernels against the reference: under Triton's interpreter, and on a CUDA device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from limits import HANGS
from torch import Tensor
from triton_problem import (
    INTERPRETED,
    LENGTH,
    NEEDS_TRITON,
    ORDINARY,
    Expected,
    apply,
    bits,
    check,
    check_sums,
    close,
    copied,
    drawn,
    observe,
    on_device,
    placed,
    same_bits,
    seeds,
    sources,
)
from triton_problem import small_programs as small_programs

from arturo_core.kernels import triton as triton_kernel
from arturo_core.kernels.triton import tables
from arturo_core.step.chunks import Source

NARROW = [torch.bfloat16, torch.float16]


@NEEDS_TRITON
@pytest.mark.skipif(INTERPRETED, reason="this is the process that it starts")
def test_the_kernels_equal_the_reference_under_the_interpreter() -> None:
    """Those of this file, on batches and on steps, in a process that chooses the interpreter before Triton comes."""
    here = Path(__file__).parent
    files = [__file__, str(here / "test_triton_batches.py"), str(here / "test_triton_step.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not gpu", "-p", "no:cacheprovider", *files]
    run = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=here.parents[1],
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout


@on_device
@pytest.mark.parametrize(("decay", "maximize"), [(None, False), (0.02, True)])
def test_steps_equal_the_reference(device: str, decay: float | None, maximize: bool) -> None:
    """Many tensors, of sizes that fill no block; what is pending is from the step before."""
    given = sources(device)
    for step, factor in enumerate((0.3, 0.0, 0.05)):
        for source in given:
            source.grad.copy_(drawn(source.grad.shape, torch.Generator().manual_seed(step)))
        rows = [(0.3 / (number + 1), 0.02, 0.8, 0.2, 0.03, 0.3, 1.5e-3) for number in range(len(given))]
        expected = Expected(given)
        sums = observe(given, rows, decay=decay, maximize=maximize)
        check_sums(sums, expected.observe(rows, 1.0, decay, LENGTH, maximize))
        check(given, expected)
        expected = Expected(given)
        squares = apply(given, factor)
        torch.testing.assert_close(squares.cpu(), expected.apply(factor, LENGTH), rtol=1e-6, atol=0.0)
        for source, theta, kept in zip(given, expected.theta, expected.kept, strict=True):
            close(source.theta, theta, theta.abs() + factor * LENGTH * kept.direction.abs(), 4.0, "weights")


@on_device
@pytest.mark.parametrize("gradients", [torch.float32, *NARROW], ids=str)
@pytest.mark.parametrize("weights", NARROW, ids=str)
def test_narrow_weights_and_gradients(device: str, weights: torch.dtype, gradients: torch.dtype) -> None:
    """What decay and step move narrow weights by is what rounding leaves, to the bit."""
    given = sources(device, weights, gradients)
    rows = [(*ORDINARY[:5], 0.0, 0.0)] * len(given)
    expected = Expected(given)
    sums = observe(given, rows, decay=0.02)
    check_sums(sums, expected.observe(rows, 1.0, 0.02, LENGTH, False))
    check(given, expected)
    before = copied(given)
    assert all(torch.equal(source.theta.cpu(), theta) for source, theta in zip(given, expected.theta, strict=True))

    factor = 0.4
    squares = apply(given, factor)
    moved = torch.tensor(factor) * torch.tensor(LENGTH)
    for number, (source, old) in enumerate(zip(given, before, strict=True)):
        theta = old.theta.cpu().float()
        stored = (theta - moved * old.state[0].cpu()).to(weights)
        assert torch.equal(source.theta.cpu(), stored)
        displacement = stored.float() - theta
        recentred = old.state[0].cpu() + displacement / torch.tensor(LENGTH)
        close(source.state[0], recentred, recentred.abs() + old.state[0].cpu().abs(), 8.0, "direction")
        assert torch.equal(source.state[3].cpu(), old.state[3].cpu() + displacement)
        assert all(torch.equal(source.state[row], old.state[row]) for row in (1, 2))
        assert float(squares[number]) == pytest.approx(float(stored.double().square().sum()), rel=1e-6)


@on_device
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
def test_a_skipped_step_changes_no_bit(device: str, weights: torch.dtype, state: torch.dtype) -> None:
    given = sources(device, weights, torch.float32, state)
    for source, worst in zip(given, (torch.nan, torch.inf, -torch.inf, 1e30, 0.0, torch.nan), strict=True):
        source.grad.fill_(worst)
        source.theta.neg_().mul_(0.0)  # zeros of both signs
    before = copied(given)
    seeds = torch.zeros(len(given), 2, dtype=torch.int64, device=device)
    sums = observe(given, [ORDINARY] * len(given), ok=0.0, decay=0.02, seeds=seeds).cpu()
    squares = apply(given, 0.0, seeds=seeds)
    assert same_bits(given, before)
    assert not squares.any()
    for number, source in enumerate(given):
        u, sigma, s, _ = (held.cpu().double() for held in source.state)
        wanted = [(u * u * s * sigma).sum() * LENGTH, (s * sigma).sum(), sigma.sum(), 0.0, (u * u).sum() * LENGTH**2]
        torch.testing.assert_close(sums[number], torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=0.0)


@on_device
def test_extreme_magnitudes_stay_finite(device: str) -> None:
    """Gradients from 1e-38 to 1e18, u to 1e30, and weights that moved by 1e20 in units of 1e-15."""
    generator = torch.Generator().manual_seed(3)
    shape = (700,)
    grad = drawn(shape, generator, 38.0).clamp(-9.9e17, 9.9e17)
    sigma = 10.0 ** (36.0 * torch.rand(shape, generator=generator, dtype=torch.float64) - 18.0)
    s = 10.0 ** (2.0 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1.0)
    largest = (1e18 / (s * sigma)).clamp(max=1e30)  # ĝ is no larger than gradients are
    u = torch.clamp(drawn(shape, generator, 38.0), -largest, largest)
    moved = drawn(shape, generator, 30.0).clamp(-1e20, 1e20)
    u[:20], grad[:20], moved[:20] = 0.0, 1e-30, 1e-30  # on the edge to nothing
    grad[:10], moved[:10] = 1e-28, 1e-28
    # No gradient is expected better, and s is about to fall.
    u[20], s[20], sigma[20], moved[20] = 1e30, 1.0, 1e-18, 1e20
    grad[20] = u[20].float() * sigma[20].float()
    tensors = [
        placed(value.float(), device) for value in (drawn(shape, generator), grad, u, sigma.clamp(1e-18), s, moved)
    ]
    for length in (1e-15, 1e-3, 1e6):
        late = (0.1, 0.003, 0.8, 0.03, -0.2, 0.5, 0.5 * length)
        early = (0.5, 0.5, 0.8, 1.0, 0.2, 0.0, 0.0)
        for row, decay in ((early, 1e-3), (late, None), ((*late[:2], 0.0, *late[3:]), 1e-3)):
            theta, grad32, *held = (tensor.clone() for tensor in tensors)
            given = [Source(theta, grad32, tuple(held), {}, 0)]
            expected = Expected(given)
            sums = observe(given, [row], decay=decay, length=length)
            wanted = expected.observe([row], 1.0, decay, length, False)
            check(given, expected)
            assert float(held[0].abs().amax()) <= 1.000001e30
            for index in (0, 3):
                assert torch.equal(held[index].cpu() == 0.0, expected.kept[0][index] == 0.0)
            if decay is None:
                assert not held[0][10:20].any()
                assert not held[3][10:20].any()
            # The reference squares in float32, too: what is infinite there may be so here.
            finite = torch.isfinite(wanted)
            assert finite[0, 1:4].all()
            torch.testing.assert_close(sums.cpu()[finite], wanted[finite], rtol=1e-5, atol=1e-30)


@on_device
def test_what_has_seen_no_gradient_counts_as_many_elements_as_it_has(device: str) -> None:
    values = [torch.full((5,), value, device=device) for value in (1.0, 0.0, 0.0, 1e-18, 2.0, 0.0)]
    theta, grad, *held = values
    sums = observe([Source(theta, grad, tuple(held), {}, 0)], [ORDINARY]).cpu()
    kept = float(held[2].mean())
    wanted = torch.tensor([[0.0, 5e-18 * kept, 5e-18, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(sums, wanted, rtol=1e-6, atol=0.0)


@on_device
@pytest.mark.parametrize("grads", [torch.float32, *NARROW], ids=str)
def test_survey_finds_what_is_unusable(device: str, grads: torch.dtype) -> None:
    given = sources(device, gradients=grads)
    largest = 9.99999984306749e17  # of float32, below 1e18
    found, squares = triton_kernel.survey(given)
    assert found.dtype == squares.dtype == torch.float64
    assert float(found) == 0.0
    wanted = torch.stack([source.theta.cpu().double().square().sum() for source in given])
    torch.testing.assert_close(squares.cpu(), wanted, rtol=1e-6, atol=0.0)
    without, _ = triton_kernel.survey(given, squares=False)
    assert float(without) == 0.0
    cases = [(torch.nan, 1.0), (torch.inf, 1.0), (-torch.inf, 1.0)]
    if grads != torch.float16:
        cases += [(1.01e18, 1.0), (-1e30, 1.0)]
    if grads == torch.float32:
        cases += [(largest, 0.0), (-largest, 0.0), (1e18 * (1 + 2**-23), 1.0)]
    for number, (value, unusable) in enumerate(cases):
        grad = given[number % len(given)].grad
        before = grad.clone()
        grad[(-1,) * grad.dim()] = value
        assert float(triton_kernel.survey(given)[0]) == unusable, value
        grad.copy_(before)


def hashed(key: Tensor, index: Tensor) -> Tensor:
    """32 random bits: lowbias32 of an element's global index and a key, in int64."""

    def times(x: Tensor, factor: int) -> Tensor:
        return (x * factor) & 0xFFFFFFFF

    x = times(index & 0xFFFFFFFF, 0x9E3779B1) ^ (index >> 32) ^ key
    x = times(x ^ (x >> 16), 0x7FEB352D)
    x = times(x ^ (x >> 15), 0x846CA68B)
    return x ^ (x >> 16)


def rounded(values: Tensor, noise: Tensor) -> Tensor:
    """bfloat16 by the upper 16 bits of float32 plus noise."""
    kept = (values.cpu().contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF) + (noise & 0xFFFF)
    return (kept >> 16).to(torch.int32).to(torch.int16).view(torch.bfloat16)


def in_memory_order(tensor: Tensor) -> Tensor:
    return (tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor).reshape(-1).cpu()


@on_device
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
def test_a_bfloat16_state_is_rounded_by_the_hash(device: str, weights: torch.dtype) -> None:
    """To the bit: what the kernel makes of the same numbers in a float32 state, rounded outside of it."""
    narrow = sources(device, weights, state=torch.bfloat16)
    wide = [
        Source(source.theta.clone(), source.grad.clone(), tuple(held.float() for held in source.state), {}, 0)
        for source in copied(narrow)
    ]
    keys = seeds(narrow, device)
    pending = [ORDINARY if weights == torch.float32 else (*ORDINARY[:5], 0.0, 0.0)] * len(narrow)
    sums = observe(narrow, pending, decay=0.02, seeds=keys)
    observe(wide, pending, decay=0.02)
    for number, (found, exact) in enumerate(zip(narrow, wide, strict=True)):
        key, first = keys[number].cpu()
        noise = hashed(key, first + torch.arange(found.theta.numel()))
        u, sigma, s, moved = map(in_memory_order, exact.state)
        wanted = (rounded(u, noise), rounded(sigma, noise >> 16), s.bfloat16(), moved.bfloat16())
        for held, value in zip(found.state, wanted, strict=True):
            assert torch.equal(bits(in_memory_order(held)), bits(value))
        u, sigma, s, _ = (held.cpu().double() for held in found.state)
        stiff = s * sigma
        kept = [(u * u * stiff).sum() * LENGTH, stiff.sum(), sigma.sum(), (u * u).sum() * LENGTH**2]
        check_sums(sums[number, [0, 1, 2, 4]], torch.stack(kept))

    exact = [
        Source(source.theta.clone(), source.grad, tuple(held.float() for held in source.state), {}, 0)
        for source in copied(narrow)
    ]
    before = copied(narrow)
    apply(narrow, 0.4, seeds=keys)
    apply(exact, 0.4)
    for number, (found, wanted, old) in enumerate(zip(narrow, exact, before, strict=True)):
        assert torch.equal(found.theta, wanted.theta)
        assert not torch.equal(found.theta, old.theta)
        if weights == torch.float32:
            assert all(torch.equal(held, earlier) for held, earlier in zip(found.state, old.state, strict=True))
            continue
        key, first = keys[number].cpu()
        noise = hashed(key ^ 0x55555555, first + torch.arange(found.theta.numel()))
        u, _, _, moved = map(in_memory_order, wanted.state)
        assert torch.equal(bits(in_memory_order(found.state[0])), bits(rounded(u, noise)))
        assert torch.equal(bits(in_memory_order(found.state[3])), bits(moved.bfloat16()))


@on_device
def test_rounding_is_unbiased(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """u and σ between two numbers of bfloat16 become either, so often that their mean is right."""
    monkeypatch.setattr(tables, "BLOCK", 512)
    monkeypatch.setattr(tables, "SPAN", 8192)
    shape, step = (6000,), 2.0**-8
    held = [torch.full(shape, value) for value in (1.0, 1.0, 1.0, 0.0)]
    grad = torch.full(shape, 3.0)
    tensors = [value.to(device, torch.bfloat16) for value in held]
    given = [Source(torch.zeros(shape, device=device), grad.to(device), tuple(tensors), {}, 0)]
    exact = [
        Source(torch.zeros(shape, device=device), grad.to(device), tuple(value.float() for value in tensors), {}, 0)
    ]
    row = [(step / 3.0, step / 3.0, 0.0, 0.0, 0.0, 0.0, 0.0)]
    observe(given, row, seeds=torch.tensor([[12345, 0]], device=device))
    observe(exact, row)
    for number in (0, 1):
        found, wanted = given[0].state[number].float().cpu(), float(exact[0].state[number].mean())
        assert found.unique().numel() == 2
        spread = float(found.std()) / shape[0] ** 0.5
        assert abs(float(found.mean()) - wanted) < 4.0 * spread
        assert abs(float(found.mode().values) - wanted) > 8.0 * spread, "rounding to the nearest would fail"
