"""The compiled CPU kernel with a bfloat16 state: rounded at random, by bits that depend on the element alone."""

from __future__ import annotations

import math

import pytest
import torch
from cpu_problem import (
    BFLOAT16,
    FLOAT32,
    LENGTH,
    LEVELS,
    ORDINARY,
    copy,
    cut,
    needs_the_library,
    observe,
    source,
)

import arturo_core.kernels.cpu as cpu
from arturo_core.kernels.cpu import library
from arturo_core.step.chunks import Source
from arturo_core.storage.random_bits import SECOND, random_bits, rounded

pytestmark = needs_the_library


@pytest.fixture(params=LEVELS, autouse=True)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(cpu, "level", lambda: library.LEVELS.index(request.param))
    return request.param


def narrow_update(one: Source, key: int, first: int, row: tuple[float, ...] = ORDINARY) -> tuple[Source, Source]:
    """Of the same numbers: the state in bfloat16, and in float32 before it is rounded."""
    wide, narrow = copy(one, FLOAT32), copy(one)
    observe([wide], [row])
    observe([narrow], [row], seeds=torch.tensor([[key, first]]))
    return narrow, wide


@pytest.mark.parametrize("first", [0, 12_345, (1 << 32) - 700, 5 * (1 << 32) + 3])
def test_bits_are_those_of_the_hash(first: int) -> None:
    given = source(10_001, seed=9, state=BFLOAT16)
    key = 0xDEADBEEF
    narrow, wide = narrow_update(given, key, first)
    bits = random_bits(key, torch.arange(10_001) + first)
    assert torch.equal(narrow.state[0], rounded(wide.state[0], bits & 0xFFFF))
    assert torch.equal(narrow.state[1], rounded(wide.state[1], bits >> 16))
    assert torch.equal(narrow.state[2], wide.state[2].bfloat16())
    assert torch.equal(narrow.state[3], wide.state[3].bfloat16())


def test_sums_are_of_what_is_kept() -> None:
    one = source(10_001, seed=10, state=BFLOAT16)
    sums = observe([one], [ORDINARY], seeds=torch.tensor([[3, 0]]))[0]
    direction, deviation, curvature, _ = (tensor.double() for tensor in one.state)
    stiffness = deviation * curvature
    expected = [(direction**2 * stiffness).sum() * LENGTH, stiffness.sum(), deviation.sum()]
    torch.testing.assert_close(sums[:3], torch.stack(expected), rtol=1e-6, atol=0.0)


def test_the_second_rounding_of_directions_has_bits_of_its_own() -> None:
    given = source(10_001, seed=11, theta=BFLOAT16, state=BFLOAT16)
    found = copy(given)
    seeds = torch.tensor([[0x1234567, 99]])
    cpu.apply([found], torch.tensor(0.3), torch.tensor(LENGTH), seeds=seeds)
    delta = found.theta.float() - given.theta.float()
    assert delta.any()
    # Of u + δ/ℓ the last bit of float32 may differ, which rounds another way once in thousands.
    wide = given.state[0].double() + delta.double() / LENGTH
    bits = random_bits(0x1234567 ^ SECOND, torch.arange(10_001) + 99)
    expected = rounded(wide.float(), bits & 0xFFFF)
    assert float((found.state[0] != expected).float().mean()) < 1e-3
    assert torch.equal(found.state[3], (given.state[3].float() + delta).bfloat16())
    assert torch.equal(found.state[1], given.state[1])


def test_bits_do_not_depend_on_how_a_tensor_is_cut() -> None:
    whole = source(20_003, seed=12, theta=BFLOAT16, state=BFLOAT16)
    first, key = (1 << 32) - 9_000, 0xABCDEF01
    cuts = [1, 6, 1000, 8185, 8192, 2619]
    starts = torch.tensor([0, *cuts]).cumsum(0)[:-1]
    parts = cut(whole, cuts)
    seeds = torch.stack([torch.full((len(cuts),), key), starts + first], dim=1)
    observe(parts, [ORDINARY] * len(cuts), decay=1e-3, seeds=seeds)
    cpu.apply(parts, torch.tensor(0.3), torch.tensor(LENGTH), seeds=seeds)
    observe([whole], [ORDINARY], decay=1e-3, seeds=torch.tensor([[key, first]]))
    cpu.apply([whole], torch.tensor(0.3), torch.tensor(LENGTH), seeds=torch.tensor([[key, first]]))
    assert torch.equal(torch.cat([part.theta for part in parts]), whole.theta)
    for index in range(4):
        assert torch.equal(torch.cat([part.state[index] for part in parts]), whole.state[index])


def test_rounding_is_unbiased() -> None:
    """A noise estimate that grows by a thousandth of a bfloat16's spacing a step does grow; to nearest it would not."""
    count, steps, gain = 20_000, 200, 1e-4
    one = source(count, state=BFLOAT16)
    one.state[0].zero_()
    one.state[1].fill_(1.0)
    one.state[2].fill_(1.0)
    one.state[3].zero_()
    one.grad.fill_(1.5)
    variance = 1.0
    for step in range(steps):
        key = int(random_bits(77, torch.tensor(step)))
        observe([one], [(0.0, gain, 0.0, 0.0, 0.0, 0.0, 0.0)], seeds=torch.tensor([[key, 0]]))
        variance += gain * (1.5**2 - variance)
    # By chance: each element is off by up to a spacing (1/128), the mean of all by √count less.
    expected = math.sqrt(variance)
    assert 1.0 / 256 < expected - 1.0 < 1.0 / 64
    assert abs(float(one.state[1].double().mean()) - expected) < 4 * (1 / 128) * math.sqrt(steps) / math.sqrt(count) / 2


def test_random_bits_look_random() -> None:
    index = torch.arange(1 << 16)
    bits = random_bits(12345, index)
    assert int(bits.min()) >= 0
    assert int(bits.max()) < 1 << 32
    for place in range(32):
        assert abs(float(((bits >> place) & 1).double().mean()) - 0.5) < 5 * 0.5 / 256
    assert bits.unique().numel() == 1 << 16
    assert (random_bits(12345, index + (1 << 32)) != bits).float().mean() > 0.99
    # By hand, in Python's whole numbers.
    x = ((5 * 0x9E3779B1) & 0xFFFFFFFF) ^ 3 ^ 12345
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    assert int(random_bits(12345, torch.tensor((3 << 32) + 5))) == x ^ (x >> 16)
