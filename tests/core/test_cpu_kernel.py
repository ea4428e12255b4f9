"""The compiled CPU kernel against the pure functions, on every instruction set that this machine has."""

from __future__ import annotations

import pytest
import torch
from cpu_problem import (
    BFLOAT16,
    FIRST,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    LENGTH,
    LEVELLED,
    LEVELS,
    ORDINARY,
    agrees,
    apply_by_reference,
    by_reference,
    copy,
    needs_the_library,
    observe,
    source,
)
from torch import Tensor

import arturo_core.kernels.cpu as cpu
from arturo_core.kernels.cpu import library
from arturo_core.step.chunks import Source

pytestmark = needs_the_library


@pytest.fixture(params=LEVELS, autouse=True)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(cpu, "level", lambda: library.LEVELS.index(request.param))
    return request.param


@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
@pytest.mark.parametrize("decay", [0.0, 1e-3], ids=["plain", "decay"])
@pytest.mark.parametrize("row", [ORDINARY, FIRST, LEVELLED], ids=["pending", "first", "levelled"])
def test_update_equals_the_pure_functions(row: tuple[float, ...], decay: float, maximize: bool) -> None:
    given = source(10_007, seed=1)
    if row is FIRST:
        for tensor, value in zip(given.state, (0.0, 1e-18, 1.0, 0.0), strict=True):
            tensor.fill_(value)
    found, expected = copy(given), copy(given)
    sums = observe([found], [row], decay=decay, maximize=maximize)[0]
    wanted = by_reference(expected, row, decay, maximize=maximize)
    # At the first step all u² are one number, and so are the roundings of a float32 sum of them.
    torch.testing.assert_close(sums, wanted, rtol=2e-6 if row is FIRST else 5e-7, atol=0.0)
    torch.testing.assert_close(found.theta, expected.theta, rtol=0.0, atol=0.0)
    agrees(found, given, row, decay, maximize=maximize)


@pytest.mark.parametrize("length", [1e-15, 1e-3, 10.0])
@pytest.mark.parametrize("decay", [0.0, 1e-3], ids=["plain", "decay"])
def test_extreme_magnitudes_stay_in_range(decay: float, length: float) -> None:
    given = source(20_000, seed=2, extreme=True)
    found, expected = copy(given), copy(given)
    observe([found], [ORDINARY], decay=decay, length=length)
    by_reference(expected, ORDINARY, decay, length)
    direction, deviation, curvature, _ = (one.double().abs() for one in given.state)
    # Two numbers cancel in u and in D, so that their roundings are those of what went in.
    cancels = (
        (direction * curvature * deviation + given.grad.double().abs())
        / (expected.state[1] * expected.state[2].double()),
        0.0,
        0.0,
        ORDINARY[6] * direction + decay * given.theta.double().abs(),
    )
    for mine, theirs, unit in zip(found.state, expected.state, cancels, strict=True):
        assert torch.isfinite(mine).all()
        # Where D/ℓ leaves float32 the pure functions have no answer.
        near = (mine.double() - theirs).abs() <= 1e-5 * (theirs.double().abs() + unit) + 1e-30
        assert near[torch.isfinite(theirs)].all()
        assert float(torch.isfinite(theirs).float().mean()) > (0.9 if length < 1e-10 else 0.9999)


def test_directions_are_bounded_where_gradients_do_not_vary() -> None:
    """R falls without end there, and u would leave float32."""
    one = source(100)
    one.grad.fill_(9e17)
    for tensor, value in zip(one.state, (1e30, 1e-18, 1.0, 0.0), strict=True):
        tensor.fill_(value)
    expected = copy(one)
    row = (0.1, 0.0, 0.8, 0.1, 0.0, 0.0, 0.0)
    observe([one], [row])
    by_reference(expected, row)
    assert torch.equal(one.state[0], torch.full((100,), 1e30))
    for mine, theirs in zip(one.state, expected.state, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("decay", [0.0, 1e-3], ids=["plain", "decay"])
def test_every_size_is_as_good_as_in_a_long_run(decay: float) -> None:
    """An element's numbers do not depend on what surrounds it."""
    sizes = [*range(1, 101), 511, 512, 513, 8191, 8192, 8193, 16_385]
    whole = source(sum(sizes), seed=3)
    parts = [
        Source(theta.clone(), grad.clone(), tuple(one.clone() for one in state), {}, 0)
        for theta, grad, *state in zip(
            *(tensor.split(sizes) for tensor in (whole.theta, whole.grad, *whole.state)), strict=True
        )
    ]
    sums = observe(parts, [ORDINARY] * len(parts), decay=decay)
    squares = cpu.apply(parts, torch.tensor(0.3), torch.tensor(LENGTH))
    together = observe([whole], [ORDINARY], decay=decay)
    at_once = cpu.apply([whole], torch.tensor(0.3), torch.tensor(LENGTH))
    for index in range(4):
        assert torch.equal(torch.cat([part.state[index] for part in parts]), whole.state[index])
    assert torch.equal(torch.cat([part.theta for part in parts]), whole.theta)
    torch.testing.assert_close(sums.sum(dim=0), together[0], rtol=1e-6, atol=0.0)
    torch.testing.assert_close(squares.sum(), at_once[0], rtol=1e-6, atol=0.0)
    exact = torch.stack([part.theta.double().square().sum() for part in parts])
    torch.testing.assert_close(squares, exact, rtol=1e-6, atol=0.0)
    for part, row in zip(parts, sums, strict=True):
        direction, deviation, curvature, _ = (one.double() for one in part.state)
        stiffness = deviation * curvature
        expected = [(direction**2 * stiffness).sum() * LENGTH, stiffness.sum(), deviation.sum()]
        torch.testing.assert_close(row[:3], torch.stack(expected), rtol=1e-6, atol=0.0)
        torch.testing.assert_close(row[4], (direction * LENGTH).square().sum(), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("theta", [FLOAT32, BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("state", [FLOAT32, BFLOAT16], ids=str)
def test_a_skipped_step_writes_nothing(state: torch.dtype, theta: torch.dtype) -> None:
    one = source((50, 31), theta=theta, grad=theta, state=state)
    one.grad[3, 4] = torch.nan
    one.theta[0] = -0.0
    before = copy(one)
    sums = observe([one], [ORDINARY], ok=0.0, decay=1e-3, seeds=torch.tensor([[7, 0]]))
    squares = cpu.apply([one], torch.tensor(0.0), torch.tensor(LENGTH), seeds=torch.tensor([[7, 0]]))
    for now, then in zip((one.theta, *one.state), (before.theta, *before.state), strict=True):
        kind = torch.int16 if now.element_size() == 2 else torch.int32
        assert torch.equal(now.view(kind), then.view(kind))
    direction, deviation, curvature, _ = (tensor.double() for tensor in one.state)
    expected = [
        (direction**2 * deviation * curvature).sum() * LENGTH,
        (deviation * curvature).sum(),
        deviation.sum(),
        torch.zeros((), dtype=FLOAT64),
        (direction * LENGTH).square().sum(),
    ]
    torch.testing.assert_close(sums[0], torch.stack(expected), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(squares[0], one.theta.double().square().sum(), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("grad", [FLOAT32, BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("theta", [BFLOAT16, FLOAT16], ids=str)
def test_narrow_weights_move_by_what_rounding_leaves(theta: torch.dtype, grad: torch.dtype) -> None:
    given = source(5_003, seed=4, theta=theta, grad=grad)
    given.theta[:100] = 100.0  # far too large to move
    given.theta[100:200] *= 1e-5  # subnormal in float16
    given.state[0][:50] = 0.0
    found, expected = copy(given), copy(given)
    row = (*ORDINARY[:5], 0.0, 0.0)
    observe([found], [row], decay=1e-3)
    by_reference(expected, row, decay=1e-3)
    assert torch.equal(found.theta, expected.theta)
    after = copy(found)
    squares = cpu.apply([found], torch.tensor(0.3), torch.tensor(LENGTH))
    apply_by_reference(expected, 0.3)
    # A rounding of the step may flip one of the weight, and rarely does.
    assert float((found.theta != expected.theta).float().mean()) < 2e-3
    delta = found.theta.float() - after.theta.float()
    assert not delta[:100].any()
    assert delta[200:].any()
    torch.testing.assert_close(found.state[0], after.state[0] + delta / LENGTH, rtol=1e-6, atol=1e-6)
    assert torch.equal(found.state[3], after.state[3] + delta)
    assert torch.equal(found.state[1], after.state[1])
    assert torch.equal(found.state[2], after.state[2])
    torch.testing.assert_close(squares[0], found.theta.double().square().sum(), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("theta", [BFLOAT16, FLOAT16], ids=str)
def test_weights_of_every_bit_pattern_survive_a_step_of_zero(theta: torch.dtype) -> None:
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(theta)
    patterns = patterns[torch.isfinite(patterns)]
    one = source(patterns.numel(), theta=theta)
    one.theta.copy_(patterns)
    one.state[0].zero_()
    cpu.apply([one], torch.tensor(0.5), torch.tensor(LENGTH))
    assert torch.equal(one.theta, patterns)
    assert not one.state[0].any()


def test_wide_weights_wait_for_the_next_step() -> None:
    given = source(3_001, seed=5)
    found, expected = copy(given), copy(given)
    squares = cpu.apply([found], torch.tensor(0.3), torch.tensor(LENGTH))
    expected.theta.sub_(0.3 * LENGTH * expected.state[0])
    torch.testing.assert_close(found.theta, expected.theta, rtol=1e-6, atol=1e-7)
    for now, then in zip(found.state, given.state, strict=True):
        assert torch.equal(now, then)
    torch.testing.assert_close(squares[0], found.theta.double().square().sum(), rtol=1e-6, atol=0.0)


def test_channels_last_is_one_run_of_memory() -> None:
    flat = source(6 * 5 * 4 * 3, seed=6)
    shape = (6, 4, 3, 5)

    def filters(tensor: Tensor) -> Tensor:
        return tensor.clone().view(shape).permute(0, 3, 1, 2)

    last = Source(filters(flat.theta), filters(flat.grad), tuple(filters(one) for one in flat.state), {}, 0)
    assert last.theta.is_contiguous(memory_format=torch.channels_last)
    assert cpu.eligible(last)
    mixed = Source(last.theta, last.grad.contiguous(), last.state, {}, 0)
    assert not cpu.eligible(mixed)
    assert torch.equal(observe([last], [ORDINARY]), observe([flat], [ORDINARY]))
    for one, other in zip(last.state, flat.state, strict=True):
        assert torch.equal(one.permute(0, 2, 3, 1).reshape(-1), other)


def test_what_is_eligible() -> None:
    one = source((6, 4))
    assert cpu.eligible(one)
    assert cpu.eligible(source((6, 4), theta=BFLOAT16, grad=FLOAT16, state=BFLOAT16))
    parameter = torch.nn.Parameter(one.theta)
    assert cpu.eligible(Source(parameter, one.grad, one.state, {}, 0))
    column = source((5, 1))
    assert cpu.eligible(Source(column.theta, column.grad.as_strided((5, 1), (1, 9)), column.state, {}, 0))

    def refuses(theta: Tensor = one.theta, grad: Tensor = one.grad, state: tuple[Tensor, ...] = one.state) -> bool:
        return not cpu.eligible(Source(theta, grad, state, {}, 0))

    assert refuses(theta=one.theta.double())
    assert refuses(grad=one.grad.double())
    assert refuses(state=tuple(tensor.half() for tensor in one.state))
    assert refuses(state=(one.state[0].bfloat16(), *one.state[1:]))
    assert refuses(grad=one.grad[:1].expand(6, 4))
    assert refuses(grad=one.grad.view(4, 6).t())
    assert refuses(grad=torch.randn(12, 4)[::2])
    assert refuses(grad=torch._neg_view(one.grad))
    assert refuses(grad=one.grad.to_sparse())
    assert refuses(theta=one.theta.to("meta"))
    assert not cpu.eligible(source(0))


@pytest.mark.parametrize("grad", [FLOAT32, BFLOAT16, FLOAT16], ids=str)
def test_one_bad_gradient_is_found_wherever_it_is(grad: torch.dtype) -> None:
    sizes = (1, 17, 8192, 9000)
    sources = [source(size, seed=size, grad=grad) for size in sizes]
    unusable, squares = cpu.survey(sources)
    assert float(unusable) == 0.0
    exact = torch.stack([one.theta.double().square().sum() for one in sources])
    torch.testing.assert_close(squares, exact, rtol=1e-6, atol=0.0)
    bad = [torch.nan, torch.inf, -torch.inf]
    if grad != FLOAT16:
        # The next numbers of bfloat16 are 1.4e16 apart.
        bad += [1e18 if grad == FLOAT32 else 1.01e18, -1.01e18, 3e38]
    fine = 9.9e17 if grad != FLOAT16 else 65_504.0
    for one in sources:
        count = one.grad.numel()
        for place in {0, count // 2, count - 1, min(count - 1, 8191), min(count - 1, 16)}:
            kept = one.grad[place].clone()
            one.grad[place] = -fine
            assert float(cpu.survey(sources, squares=False)[0]) == 0.0
            for value in bad:
                one.grad[place] = value
                assert float(cpu.survey(sources, squares=False)[0]) == 1.0, (count, place, value)
            one.grad[place] = kept
    assert float(cpu.survey(sources)[0]) == 0.0


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_squares_of_all_magnitudes(scale: float) -> None:
    one = source(9_001)
    one.theta.mul_(scale)
    torch.testing.assert_close(cpu.survey([one])[1][0], one.theta.double().square().sum(), rtol=1e-6, atol=0.0)
    one.theta[77] = torch.inf
    assert cpu.survey([one])[1][0] == torch.inf
    one.theta[78] = torch.nan
    assert cpu.survey([one])[1][0].isnan()


def many(state: torch.dtype, theta: torch.dtype) -> list[Source]:
    sizes = [1, 5, 1000, 30_000, 8192, 77, 100_003] + [600] * 40
    return [source(size, seed=index, state=state, theta=theta) for index, size in enumerate(sizes)]


@pytest.mark.parametrize("theta", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("state", [FLOAT32, BFLOAT16], ids=str)
def test_threads_do_not_change_a_bit(state: torch.dtype, theta: torch.dtype) -> None:
    def run(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        sources = many(state, theta)
        seeds = torch.stack([torch.arange(len(sources)) * 977, torch.zeros(len(sources), dtype=torch.int64)], dim=1)
        table = cpu.table(sources)
        found = list(cpu.survey(table))
        for _ in range(3):
            found.append(observe(table, [ORDINARY] * len(sources), decay=1e-4, seeds=seeds))
            found.append(cpu.apply(table, torch.tensor(0.1), torch.tensor(LENGTH), seeds=seeds))
        return found + [tensor for one in sources for tensor in (one.theta, *one.state)]

    for one, two in zip(run(1), run(2), strict=True):
        assert torch.equal(one, two)


def test_paths_give_nearly_the_same_numbers(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = source(4_099, seed=8)
    found = copy(given)
    sums = observe([found], [ORDINARY], decay=1e-3)
    monkeypatch.setattr(cpu, "level", lambda: 0)
    plain = copy(given)
    torch.testing.assert_close(sums, observe([plain], [ORDINARY], decay=1e-3), rtol=3e-7, atol=0.0)
    for one, other in zip((found.theta, *found.state), (plain.theta, *plain.state), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=2e-6)


def test_gains_are_those_of_each_source() -> None:
    rows = [ORDINARY, FIRST, LEVELLED]
    together, alone = ([source(900 + index, seed=index) for index in range(3)] for _ in range(2))
    sums = observe(together, rows)
    for one, other, row, found in zip(together, alone, rows, sums, strict=True):
        assert torch.equal(observe([other], [row])[0], found)
        for mine, theirs in zip(one.state, other.state, strict=True):
            assert torch.equal(mine, theirs)


def test_autograd_notices_changed_weights() -> None:
    parameter = torch.nn.Parameter(torch.randn(10))
    one = source(10)
    one = Source(parameter.detach(), one.grad, one.state, {}, 0)
    loss = (parameter**2).sum()
    before = parameter._version
    observe([one], [ORDINARY])
    assert parameter._version == before
    observe([one], [ORDINARY], decay=0.1)
    assert parameter._version == before + 1
    cpu.apply([one], torch.tensor(0.1), torch.tensor(LENGTH))
    assert parameter._version == before + 2
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_bad_arguments_are_refused() -> None:
    one = source(10)
    with pytest.raises(ValueError, match="shape"):
        observe([one], [ORDINARY, ORDINARY])
    with pytest.raises(ValueError, match="seeds"):
        observe([source(10, state=BFLOAT16)], [ORDINARY])
    empty = source(10)
    empty.grad.untyped_storage().resize_(0)
    before = copy(one)
    with pytest.raises(RuntimeError, match="no memory"):
        observe([one, empty], [ORDINARY, ORDINARY])
    assert torch.equal(one.state[0], before.state[0])


def test_a_path_that_the_machine_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for asked, fits in (("plain", True), ("sse9", False)):
        monkeypatch.setenv(library.VARIABLE, asked)
        library._found.cache_clear()
        assert cpu.available() is fits
        assert ("sse9" in cpu.why_not()) is not fits
    monkeypatch.undo()
    library._found.cache_clear()
    assert cpu.available()
