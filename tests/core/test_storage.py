"""The state in bfloat16 and in 8 bits: what is kept, converted, saved and resumed."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from arturo_core import Arturo
from arturo_core.kernels import cpu
from arturo_core.state import bytes_per_parameter
from arturo_core.storage import codes, keeping
from arturo_core.storage.kinds import Kind, kind_of
from arturo_core.storage.random_bits import random_bits, rounded

NARROW = pytest.mark.parametrize("storage", ["bfloat16", "8bit"])
EVERY = pytest.mark.parametrize("storage", ["float32", "bfloat16", "8bit"])
SHAPES = [(64, 64), (64,), (96, 160), (5, 4, 8), (7, 3)]


def parameters(dtype: torch.dtype = torch.float32) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def train(ours: Arturo, params: list[Parameter], first: int, steps: int) -> None:
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        for param in params:
            noise = torch.randn(param.shape, generator=generator)
            param.grad = (param.detach().float() + noise).to(param.dtype)
        ours.step()


def state_of(ours: Arturo, params: list[Parameter]) -> list[Tensor]:
    return [value for param in params for value in ours.state[param].values()]


def saved(ours: Arturo) -> dict:  # type: ignore[type-arg]
    memory = io.BytesIO()
    torch.save(ours.state_dict(), memory)
    memory.seek(0)
    found: dict = torch.load(memory, weights_only=True)  # type: ignore[type-arg]
    return found


def test_bytes() -> None:
    """Measured from the tensors, scalars left out: 16, 8, and 5.125 and little more with its vectors."""
    for storage, most in (("float32", 16.0), ("bfloat16", 8.0), ("8bit", 5.2)):
        params = [Parameter(torch.zeros(768, 768)), Parameter(torch.zeros(3072, 768)), Parameter(torch.zeros(768))]
        ours = Arturo(params, state_dtype=storage)
        train(ours, params, 0, 1)
        held = sum(value.numel() * value.element_size() for value in state_of(ours, params) if value.dim())
        per_parameter = held / sum(param.numel() for param in params)
        assert bytes_per_parameter(ours._options) <= per_parameter <= most
        assert per_parameter >= 0.98 * most


def test_what_is_kept_in_codes() -> None:
    params = [*parameters(), Parameter(torch.randn(8, 4, 4, 4).contiguous(memory_format=torch.channels_last))]
    ours = Arturo(params, state_dtype="8bit")
    train(ours, params, 0, 2)
    kinds = [kind_of(ours.state[param]) for param in params]
    assert kinds == [Kind.CODED, Kind.NARROW, Kind.CODED, Kind.CODED, Kind.NARROW, Kind.NARROW]
    held = ours.state[params[2]]
    assert held["direction_8bit"].shape == (96, 160)
    assert held["direction_scale"].shape == (96, 5)
    assert {value.dtype for value in held.values() if value.dim()} == {torch.int8, torch.bfloat16}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"state_dtype": "4bit"}, 'use torch.float32 \\(the default\\), torch.bfloat16 or "8bit"'),
        ({"state_dtype": torch.float16}, "is not supported"),
        ({"state_dtype": torch.int8}, "is not supported"),
        ({"state_dtype": "8bit", "noise": "fixed"}, 'has no meaning with noise="fixed"'),
        ({"state_dtype": torch.bfloat16, "noise": "fixed"}, "bfloat16 has no meaning with"),
    ],
)
def test_storage_that_does_not_exist(arguments: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=message):
        Arturo(parameters(), **arguments)


def test_codes_of_float64() -> None:
    with pytest.raises(ValueError, match="has no float64 arithmetic"):
        Arturo(parameters(torch.float64), state_dtype="8bit")
    params = parameters(torch.float64)
    ours = Arturo(params, state_dtype="bfloat16")  # what is counted in float64 is kept in it
    train(ours, params, 0, 2)
    assert {value.dtype for value in state_of(ours, params) if value.dim()} == {torch.float64}


@NARROW
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fused", [None, False])
def test_a_run_that_is_resumed_is_the_same_to_the_bit(storage: str, dtype: torch.dtype, fused: bool | None) -> None:
    params, others = parameters(dtype), parameters(dtype)
    ours = Arturo(params, lr=1e-2, weight_decay=0.1, state_dtype=storage, fused=fused)
    train(ours, params, 0, 6)
    memory = saved(ours)
    for param, other in zip(params, others, strict=True):
        other.data.copy_(param)
    resumed = Arturo(others, lr=1e-2, weight_decay=0.1, state_dtype=storage, fused=fused)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.load_state_dict(memory)
    train(ours, params, 6, 6)
    train(resumed, others, 6, 6)
    for one, other in zip([*params, *state_of(ours, params)], [*others, *state_of(resumed, others)], strict=True):
        assert torch.equal(one, other)


@NARROW
def test_nothing_of_a_generator_is_used(storage: str) -> None:
    params = parameters()
    ours = Arturo(params, state_dtype=storage)
    for param in params:
        param.grad = torch.ones_like(param)
    before = torch.get_rng_state()
    ours.step()
    assert torch.equal(torch.get_rng_state(), before)


@NARROW
@pytest.mark.parametrize("fused", [None, False])
def test_a_skipped_step_changes_no_bit(storage: str, fused: bool | None) -> None:
    params = parameters()
    ours = Arturo(params, lr=1e-2, weight_decay=0.1, state_dtype=storage, fused=fused)
    train(ours, params, 0, 3)
    before = [tensor.clone() for tensor in [*params, *state_of(ours, params)]]
    for param in params:
        param.grad = torch.full_like(param, torch.nan)
    ours.step()
    assert ours.diagnostics()["skipped_steps"] == 1
    assert all(torch.equal(one, old) for one, old in zip([*params, *state_of(ours, params)], before, strict=True))


@pytest.mark.parametrize("to", ["float32", "bfloat16", "8bit"])
@EVERY
def test_loading_converts_with_a_word(storage: str, to: str) -> None:
    params, others = parameters(), parameters()
    ours = Arturo(params, lr=1e-2, state_dtype=storage)
    train(ours, params, 0, 6)
    other = Arturo(others, lr=1e-2, state_dtype=to)
    if to == storage:
        other.load_state_dict(saved(ours))
    else:
        with pytest.warns(UserWarning, match=f"is converted: this optimizer has state_dtype={to}"):
            other.load_state_dict(saved(ours))
    for param, twin in zip(params, others, strict=True):
        one, two = keeping.values(ours.state[param]), keeping.values(other.state[twin])
        for name, value in one.items():
            # A code is at most a 64th of its block's largest away from its neighbour, and log s .018.
            within = 1.0 / 64.0 * float(value.abs().max()) if name in ("direction", "displacement") else 0.0
            torch.testing.assert_close(two[name], value, rtol=0.02, atol=within, check_dtype=False)
    train(other, others, 6, 2)
    assert all(torch.isfinite(param).all() for param in others)


def test_a_version_without_codes_refuses_them_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    params = parameters()
    ours = Arturo(params, state_dtype="8bit")
    train(ours, params, 0, 2)
    memory = saved(ours)
    # As a version does that knows rows alone.
    monkeypatch.setattr("arturo_core.state.kind_of", lambda held: Kind.WIDE)
    with pytest.raises(ValueError, match=r"lacks curvature, direction, displacement.*direction_8bit"):
        Arturo(parameters()).load_state_dict(memory)


@pytest.mark.parametrize("name", ["direction_8bit", "direction_scale", "deviation"])
def test_damaged_codes_are_refused(name: str) -> None:
    params = parameters()
    ours = Arturo(params, state_dtype="8bit")
    train(ours, params, 0, 2)
    for damage, message in (("missing", "lacks"), ("cut", "come in another order or shape")):
        memory = saved(ours)
        held = memory["state"][0]
        held[name] = held[name][:-1]
        if damage == "missing":
            del held[name]
        with pytest.raises(ValueError, match=message):
            Arturo(parameters(), state_dtype="8bit").load_state_dict(memory)
    memory = saved(ours)
    memory["state"][0]["direction_scale"][0, 0] = torch.nan
    with pytest.raises(ValueError, match="'direction_scale'"):
        Arturo(parameters(), state_dtype="8bit").load_state_dict(memory)


@EVERY
def test_readers_see_numbers(storage: str) -> None:
    params = parameters()
    ours = Arturo(params, lr=1e-2, state_dtype=storage)
    train(ours, params, 0, 20)
    wide = Arturo(others := parameters(), lr=1e-2)
    train(wide, others, 0, 20)
    for param, other in zip(params, others, strict=True):
        found, expected = ours.precision(param), wide.precision(other)
        assert found.dtype == torch.float32
        assert found.shape == param.shape
        assert float((found / expected).log().abs().mean()) < 0.05
    numbers = ours.diagnostics()
    assert numbers["kl_ratio"] == pytest.approx(1.0, abs=1e-3)
    assert 0.1 <= numbers["curvature_q05"] <= numbers["curvature_q95"] <= 10.0


@NARROW
def test_the_kernel_and_the_eager_passes_keep_the_same(storage: str) -> None:
    if not cpu.available():
        pytest.skip("no compiled CPU kernel")
    runs = []
    for fused in (True, False):
        params = parameters()
        ours = Arturo(
            params, lr=1e-2, weight_decay=0.1, state_dtype=storage, fused=fused if storage != "8bit" else None
        )
        train(ours, params, 0, 1)
        runs.append((params, [keeping.values(ours.state[param]) for param in params]))
    (params, found), (others, expected) = runs
    for param, other, one, two in zip(params, others, found, expected, strict=True):
        torch.testing.assert_close(param, other, rtol=1e-5, atol=1e-7)
        for name in ("direction", "deviation", "curvature"):
            apart = (one[name] != two[name]).float().mean()
            assert float(apart) < 0.01  # only where a rounding of float32 decides


def test_rounding_is_unbiased() -> None:
    """The mean of many roundings is what was rounded; that of nearest is not (the same bound fails)."""
    rounds, generator = 4096, torch.Generator().manual_seed(0)
    values = torch.randn(64, generator=generator) * torch.logspace(-2, 0, 64)
    keys = torch.arange(rounds).repeat_interleave(64)
    bits = random_bits(random_bits(7, keys), torch.arange(64).repeat(rounds))
    noise = codes.noises(bits)
    many = values.repeat(rounds)
    scale = codes.scales(many)
    spread = codes.scales(values).float().repeat_interleave(codes.BLOCK)
    half = torch.full_like(many, 0.5)

    def off(kept: Tensor, unit: Tensor) -> float:
        mean = kept.double().view(rounds, 64).mean(dim=0)
        return float(((mean - values.double()).abs() / unit).max())

    # Units: the distance between neighbours. Of 4,096 roundings the mean is within 4/√4096 of half of it.
    step = spread / 64.0 * (values.abs() / spread * 64).clamp(min=0.5)
    found = codes.signed_values(codes.signed_codes(many, scale, noise.direction), scale)
    assert off(found, step) < 0.06
    assert off(codes.signed_values(codes.signed_codes(many, scale, half), scale), step) > 0.06
    ulp = values.abs() * 2.0**-8
    assert off(rounded(many, bits & 0xFFFF).float(), ulp) < 0.06
    assert off(many.bfloat16().float(), ulp) > 0.06
    positive = (many.abs() + 0.1).clamp(max=10.0)
    logs = codes.log_codes(positive, noise.curvature).double() * codes.LOG_STEP
    apart = (logs.view(rounds, 64).mean(dim=0) - positive[:64].double().log()).abs() / codes.LOG_STEP
    assert float(apart.max()) < 0.06
    nearest = codes.log_codes(positive[:64], half[:64]).double() * codes.LOG_STEP
    assert float(((nearest - positive[:64].double().log()).abs() / codes.LOG_STEP).max()) > 0.06
