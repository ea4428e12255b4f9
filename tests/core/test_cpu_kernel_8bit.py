"""The compiled CPU kernel with a state in 8 bits: decoded, updated in float32, and rounded at random to codes."""

from __future__ import annotations

import math

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
    copy,
    cut,
    needs_the_library,
    observe,
    source,
)
from torch import Tensor

import arturo_core.kernels.cpu as cpu
from arturo_core.kernels.cpu import library
from arturo_core.step.chunks import Source
from arturo_core.storage.codes import (
    BLOCK,
    MOST,
    log_codes,
    log_values,
    noises,
    scales,
    signed_codes,
    signed_values,
)
from arturo_core.storage.random_bits import SECOND, random_bits, rounded

pytestmark = needs_the_library

KEY, START = 0xDEADBEEF, 5 * (1 << 32) - 4096
EIGHT = torch.int8


@pytest.fixture(params=LEVELS, autouse=True)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(cpu, "level", lambda: library.LEVELS.index(request.param))
    return request.param


def seeds(key: int = KEY, first: int = START) -> Tensor:
    return torch.tensor([[key, first]])


def wide(coded: Source) -> Source:
    """The same numbers in float32."""
    direction, deviation, curvature, displacement, *scale = coded.state
    state = (
        signed_values(direction, scale[0]),
        deviation.float(),
        log_values(curvature),
        signed_values(displacement, scale[1]),
    )
    return Source(coded.theta.clone(), coded.grad.clone(), state, {}, 0)


def by_codec(state: tuple[Tensor, ...], bits: Tensor) -> tuple[Tensor, ...]:
    """A state in 8 bits of one in float32."""
    direction, deviation, curvature, displacement = state
    noise = noises(bits)
    spread = scales(direction), scales(displacement)
    return (
        signed_codes(direction, spread[0], noise.direction),
        rounded(deviation, noise.deviation),
        log_codes(curvature, noise.curvature),
        signed_codes(displacement, spread[1], noise.displacement),
        *spread,
    )


def eight(
    count: int, seed: int = 0, theta: torch.dtype = FLOAT32, grad: torch.dtype = FLOAT32, **options: bool
) -> Source:
    """A parameter in the middle of a run, its state in 8 bits."""
    given = source(count, seed, theta, grad, **options)
    state = by_codec(given.state, random_bits(seed, torch.arange(count)))
    return Source(given.theta, given.grad, state, {}, 0)


def same(one: Source, other: Source, flips: float = 1e-3) -> None:
    """Scales are equal, and nearly all codes; rounding of the argument turns some into their neighbours."""
    for index, (mine, theirs) in enumerate(zip(one.state, other.state, strict=True)):
        apart = mine != theirs
        assert float(apart.float().mean()) <= (flips if index < 4 else flips / 2), index
        if mine.dtype is EIGHT:
            assert int((mine.int() - theirs.int()).abs().max()) <= 1
        else:
            torch.testing.assert_close(mine.float(), theirs.float(), rtol=2**-7, atol=0.0)


def update(one: Source, row: tuple[float, ...], **options: object) -> tuple[Source, Source, Tensor]:
    """What the kernel makes of it, what the codec makes of the kernel's float32 update, and the sums."""
    found, expected = copy(one), wide(one)
    sums = observe([found], [row], seeds=seeds(), **options)
    observe([expected], [row], **options)
    bits = random_bits(KEY, torch.arange(one.theta.numel()) + START)
    state = by_codec(expected.state, bits)
    return found, Source(expected.theta, expected.grad, state, {}, 0), sums


@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
@pytest.mark.parametrize("decay", [0.0, 1e-3], ids=["plain", "decay"])
@pytest.mark.parametrize("row", [ORDINARY, FIRST, LEVELLED], ids=["pending", "first", "levelled"])
def test_update_is_that_of_float32_between_decoding_and_encoding(
    row: tuple[float, ...], decay: float, maximize: bool
) -> None:
    given = eight(20_000, seed=1)
    if row is FIRST:
        for tensor, value in zip(given.state, (0, 1e-18, 0, 0, 0.0, 0.0), strict=True):
            tensor.fill_(value)
    found, expected, _ = update(given, row, decay=decay, maximize=maximize)
    same(found, expected)
    assert torch.equal(found.theta, expected.theta)
    # At the first step u is one number, up to its sign.
    assert row is FIRST or found.state[0].unique().numel() > 200


@pytest.mark.parametrize("theta", [FLOAT32, BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("grad", [FLOAT32, BFLOAT16, FLOAT16], ids=str)
def test_element_types_of_weights_and_gradients(theta: torch.dtype, grad: torch.dtype) -> None:
    found, expected, _ = update(eight(4_096, seed=2, theta=theta, grad=grad), ORDINARY, decay=1e-3)
    same(found, expected, 2e-3)
    assert torch.equal(found.theta, expected.theta)


def test_sums_are_of_what_is_kept() -> None:
    given = eight(20_000, seed=3)
    found, _, sums = update(given, ORDINARY)
    direction, deviation, curvature, _ = (one.double() for one in wide(found).state)
    stiffness = deviation * curvature
    expected = [(direction**2 * stiffness).sum() * LENGTH, stiffness.sum(), deviation.sum()]
    torch.testing.assert_close(sums[0, :3], torch.stack(expected), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(sums[0, 4], (direction * LENGTH).square().sum(), rtol=1e-6, atol=0.0)
    surprise = observe([wide(given)], [ORDINARY])[0, 3]
    torch.testing.assert_close(sums[0, 3], surprise, rtol=1e-6, atol=0.0)


def test_extreme_magnitudes_stay_in_range() -> None:
    # A block has one magnitude: numbers far below its scale are noise.
    given = eight(20_000, seed=4)
    magnitudes = 10.0 ** torch.linspace(-25, 17, 625).repeat_interleave(BLOCK)
    given.grad.mul_(magnitudes)
    given.state[1].copy_(given.state[1].float() * magnitudes)
    given.state[5].copy_(10.0 ** torch.linspace(-28, 18, 625))
    given.state[4][::7] = (1e16 / magnitudes[:: 7 * BLOCK]).clamp(max=1e30)
    found, expected, sums = update(given, ORDINARY, decay=1e-3)
    assert torch.isfinite(sums).all()
    for tensor in (found.state[1], *found.state[4:]):
        assert torch.isfinite(tensor).all()
    same(found, expected, 5e-3)


def test_directions_are_bounded_where_gradients_do_not_vary() -> None:
    one = eight(64)
    one.grad.fill_(9e17)
    for tensor, value in zip(one.state, (MOST, 1e-18, 0, 0, 1e30, 0.0), strict=True):
        tensor.fill_(value)
    observe([one], [(0.1, 0.0, 0.8, 0.1, 0.0, 0.0, 0.0)], seeds=seeds())
    bound = float(scales(torch.full((BLOCK,), 1e30)))
    assert torch.equal(one.state[4], torch.full((2,), bound, dtype=BFLOAT16))
    assert (one.state[0] >= MOST - 1).all()


def test_blocks_that_vanish_are_zeros() -> None:
    one = eight(96)
    one.grad.zero_()
    one.state[4][1], one.state[5][1] = 1e-35, 1e-35
    observe([one], [ORDINARY], seeds=seeds())
    for codes, scale in ((one.state[0], one.state[4]), (one.state[3], one.state[5])):
        assert not codes[32:64].any()
        assert float(scale[1]) == 0.0
        assert (scale[::2] > 0).all()
        assert codes[:32].any()
        assert codes[64:].any()


@pytest.mark.parametrize("theta", [FLOAT32, BFLOAT16], ids=str)
def test_a_skipped_step_writes_nothing(theta: torch.dtype) -> None:
    one = eight(1_600, theta=theta)
    one.grad[3] = torch.nan
    before = copy(one)
    sums = observe([one], [ORDINARY], ok=0.0, decay=1e-3, seeds=seeds())
    cpu.apply([one], torch.tensor(0.0), torch.tensor(LENGTH), seeds=seeds())
    for now, then in zip((one.theta, *one.state), (before.theta, *before.state), strict=True):
        assert torch.equal(now, then)
    direction, deviation, curvature, _ = (tensor.double() for tensor in wide(one).state)
    stiffness = deviation * curvature
    expected = [
        (direction**2 * stiffness).sum() * LENGTH,
        stiffness.sum(),
        deviation.sum(),
        torch.zeros((), dtype=FLOAT64),
        (direction * LENGTH).square().sum(),
    ]
    torch.testing.assert_close(sums[0], torch.stack(expected), rtol=1e-6, atol=0.0)


def test_wide_weights_wait_for_the_next_step() -> None:
    given = eight(3_008, seed=5)
    found, expected = copy(given), wide(given)
    squares = cpu.apply([found], torch.tensor(0.3), torch.tensor(LENGTH), seeds=seeds())
    expected.theta.sub_(0.3 * LENGTH * expected.state[0])
    torch.testing.assert_close(found.theta, expected.theta, rtol=1e-6, atol=1e-7)
    for now, then in zip(found.state, given.state, strict=True):
        assert torch.equal(now, then)
    torch.testing.assert_close(squares[0], found.theta.double().square().sum(), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("theta", [BFLOAT16, FLOAT16], ids=str)
def test_narrow_weights_move_by_what_rounding_leaves(theta: torch.dtype) -> None:
    given = eight(8_192, seed=6, theta=theta)
    given.theta[:128] = 100.0  # far too large to move
    found, expected = copy(given), wide(given)
    cpu.apply([found], torch.tensor(0.3), torch.tensor(LENGTH), seeds=seeds())
    wanted = (given.theta.float() - 0.3 * LENGTH * expected.state[0]).to(theta)
    assert float((found.theta != wanted).float().mean()) < 2e-3
    delta = found.theta.float() - given.theta.float()
    assert not delta[:128].any()
    assert delta[128:].any()
    expected.state[0].add_(delta / LENGTH)
    expected.state[3].add_(delta)
    bits = random_bits(KEY ^ SECOND, torch.arange(8_192) + START)
    direction, _, _, displacement, *spread = by_codec(expected.state, bits)
    kept = (direction, given.state[1], given.state[2], displacement, *spread)
    same(found, Source(found.theta, found.grad, kept, {}, 0))
    assert torch.equal(found.state[1], given.state[1])
    assert torch.equal(found.state[2], given.state[2])


@pytest.mark.parametrize("theta", [FLOAT32, BFLOAT16], ids=str)
def test_bits_do_not_depend_on_how_a_tensor_is_cut(theta: torch.dtype) -> None:
    whole = eight(20_000, seed=7, theta=theta)
    cuts = [32, 96, 992, 8_160, 8_192, 2_528]
    starts = torch.tensor([0, *cuts]).cumsum(0)[:-1]
    parts = cut(whole, cuts, [length // BLOCK for length in cuts])
    each = torch.stack([torch.full((len(cuts),), KEY), starts + START], dim=1)
    observe(parts, [ORDINARY] * len(cuts), decay=1e-3, seeds=each)
    cpu.apply(parts, torch.tensor(0.3), torch.tensor(LENGTH), seeds=each)
    observe([whole], [ORDINARY], decay=1e-3, seeds=seeds())
    cpu.apply([whole], torch.tensor(0.3), torch.tensor(LENGTH), seeds=seeds())
    assert torch.equal(torch.cat([part.theta for part in parts]), whole.theta)
    for index in range(6):
        assert torch.equal(torch.cat([part.state[index] for part in parts]), whole.state[index])


@pytest.mark.parametrize("theta", [FLOAT32, BFLOAT16], ids=str)
def test_threads_do_not_change_a_bit(theta: torch.dtype) -> None:
    def run(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        sources = [eight(count, count, theta) for count in (32, 960, 30_016, 8_192, 100_032)]
        each = torch.tensor([[977 * index, 64 * index] for index in range(len(sources))])
        table = cpu.table(sources)
        found = list(cpu.survey(table))
        for _ in range(3):
            found.append(observe(table, [ORDINARY] * len(sources), decay=1e-4, seeds=each))
            found.append(cpu.apply(table, torch.tensor(0.1), torch.tensor(LENGTH), seeds=each))
        return found + [tensor for one in sources for tensor in (one.theta, *one.state)]

    for one, two in zip(run(1), run(2), strict=True):
        assert torch.equal(one, two)


def test_rounding_is_unbiased() -> None:
    """Means over many keys are those of float32; to nearest they would be off by a third of a code's spacing."""
    given = eight(4_096, seed=8)
    given.grad.mul_(0.01)
    exact = wide(given)
    observe([exact], [ORDINARY])
    rounds = 256
    total = [torch.zeros(4_096, dtype=FLOAT64) for _ in range(4)]
    for turn in range(rounds):
        one = copy(given)
        observe([one], [ORDINARY], seeds=seeds(int(random_bits(5, torch.tensor(turn)))))
        for number, (mean, kept) in enumerate(zip(total, wide(one).state, strict=True)):
            mean += (kept.log() if number == 2 else kept).double() / rounds
    spread = [
        one.state[index].float().repeat_interleave(BLOCK) * (2 / MOST) if index in (4, 5) else None
        for index in (4, 1, 2, 5)
    ]
    units = (spread[0], exact.state[1] / 128, torch.full((4_096,), math.log(10) / MOST), spread[3])
    for number, (mean, truth, unit) in enumerate(zip(total, exact.state, units, strict=True)):
        assert unit is not None
        wanted = (truth.log() if number == 2 else truth).double()
        inside = (wanted.abs() < math.log(10) * 0.98) if number == 2 else torch.ones(4_096, dtype=torch.bool)
        off = ((mean - wanted) / unit)[inside]
        # Half a spacing is the largest standard deviation of one rounding; and 8 bits of noise have 256 levels.
        assert float(off.abs().max()) < 5.5 * 0.5 / math.sqrt(rounds) + 1 / 256, number
        assert abs(float(off.mean())) < 5 * 0.5 / math.sqrt(rounds * 4_096) + 1 / 4_096, number


def test_small_changes_of_the_curvature_add_up() -> None:
    """Common levels that lower log s by a hundredth of a code a step."""
    one = eight(4_096)
    step, steps = math.log(10) / MOST / 100, 300
    for tensor, value in zip(one.state, (0, 1.0, 10, MOST, 0.0, LENGTH), strict=True):
        tensor.fill_(value)
    one.grad.zero_()
    for turn in range(steps):
        one.state[3].fill_(MOST)
        one.state[5].fill_(LENGTH)
        observe([one], [(0.0, 0.0, 0.8, 0.0, step, 0.0, 0.0)], seeds=seeds(int(random_bits(6, torch.tensor(turn)))))
    # Of a step the chance is p = .01 to fall by a code: the mean of 300 × 4096 draws.
    assert abs(float(one.state[2].double().mean()) - 7.0) < 5 * math.sqrt(300 * 0.01 / 4_096)


def test_what_is_eligible() -> None:
    one = eight(6 * 64)
    shaped = [tensor.view(6, -1) for tensor in (one.theta, one.grad, *one.state)]
    assert cpu.eligible(one)
    assert cpu.eligible(Source(shaped[0], shaped[1], tuple(shaped[2:]), {}, 0))
    codes, deviation, curvature, displacement, *spread = one.state

    def refuses(*state: Tensor, theta: Tensor = one.theta, grad: Tensor = one.grad) -> bool:
        return not cpu.eligible(Source(theta, grad, state or one.state, {}, 0))

    assert refuses(codes, deviation, curvature, displacement)
    assert refuses(codes, deviation.float(), curvature, displacement, *spread)
    assert refuses(codes, deviation, curvature.bfloat16(), displacement, *spread)
    assert refuses(codes, deviation, curvature, displacement, spread[0], spread[1].float())
    assert refuses(codes, deviation, curvature, displacement, spread[0], spread[1][:-1])
    assert refuses(deviation, deviation, deviation, deviation, *spread)
    assert refuses(theta=one.theta.double())
    odd = eight(64)
    cut = tuple(tensor[:-16] for tensor in odd.state[:4])
    assert refuses(*cut, *odd.state[4:], theta=odd.theta[:-16], grad=odd.grad[:-16])
    # Scales go along rows, so another order in memory is not theirs.
    turned = tuple(tensor.view(6, 64).t() for tensor in one.state[:4])
    assert refuses(*turned, *spread, theta=one.theta.view(6, 64).t(), grad=one.grad.view(6, 64).t())


def test_bad_arguments_are_refused_and_nothing_is_written() -> None:
    one = eight(64)
    before = copy(one)
    with pytest.raises(ValueError, match="seeds"):
        observe([one], [ORDINARY])
    with pytest.raises(RuntimeError, match="32 that share a scale"):
        observe([one], [ORDINARY], seeds=seeds(first=16))
    with pytest.raises(RuntimeError, match="32 that share a scale"):
        cpu.apply([one], torch.tensor(0.1), torch.tensor(LENGTH), seeds=seeds(first=16))
    one.state[5].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="no memory"):
        observe([one], [ORDINARY], seeds=seeds())
    assert torch.equal(one.theta, before.theta)
    for now, then in zip(one.state[:5], before.state, strict=False):
        assert torch.equal(now, then)


def test_storages_go_side_by_side() -> None:
    """One table with states of all storages."""
    kinds = [source(1_000, 1), eight(1_024, 2), source(777, 3, state=BFLOAT16), eight(64, 4)]
    alone = [copy(one) for one in kinds]
    each = torch.tensor([[index, 32 * index] for index in range(4)])
    unusable, _ = cpu.survey(kinds)
    assert float(unusable) == 0.0
    sums = observe(kinds, [ORDINARY] * 4, seeds=each)
    for index, (one, other) in enumerate(zip(kinds, alone, strict=True)):
        assert torch.equal(sums[index], observe([other], [ORDINARY], seeds=each[index : index + 1])[0])
        for mine, theirs in zip(one.state, other.state, strict=True):
            assert torch.equal(mine, theirs)
    kinds[1].grad[63] = torch.inf
    assert float(cpu.survey(kinds)[0]) == 1.0


def test_a_table_is_renewed() -> None:
    sources = [eight(64, 1), source(10, 2), eight(320, 3)]
    outline = cpu.outline(cpu.table(sources))
    others = [Source(one.theta, torch.randn_like(one.grad), one.state, {}, 0) for one in sources]
    renewed, anew = cpu.renewed(outline, others), cpu.table(others)
    assert renewed.addresses == anew.addresses
    assert renewed.arguments[1:] == anew.arguments[1:]


def test_paths_agree(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = eight(8_192, seed=9)
    found = copy(given)
    sums = observe([found], [ORDINARY], decay=1e-3, seeds=seeds())
    monkeypatch.setattr(cpu, "level", lambda: 0)
    plain = copy(given)
    torch.testing.assert_close(sums, observe([plain], [ORDINARY], decay=1e-3, seeds=seeds()), rtol=1e-4, atol=0.0)
    same(found, plain)
