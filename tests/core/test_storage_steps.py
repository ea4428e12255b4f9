"""Steps over a narrow state that break off, that nobody may read, or that go through the compiler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from arturo_core import Arturo
from arturo_core.distributed import flat
from arturo_core.kernels import eager
from arturo_core.reporting.advice import ArturoAdvice
from arturo_core.storage import keeping

SHAPES = [(8, 64), (70,), (300, 320)]  # the last is a chunk of its own
every_storage = pytest.mark.parametrize("storage", ["bfloat16", "8bit"])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def built(dtype: torch.dtype = torch.float32, **options: Any) -> tuple[list[Parameter], Arturo]:
    source = torch.Generator().manual_seed(0)
    params = [Parameter(torch.randn(shape, generator=source).to(dtype)) for shape in SHAPES]
    return params, Arturo(params, lr=1e-2, weight_decay=0.1, **options)


def step(params: list[Parameter], ours: Arturo, number: int) -> None:
    source = torch.Generator().manual_seed(100 + number)
    for param in params:
        param.grad = torch.randn(param.shape, generator=source).to(param.dtype)
    ours.step()


def everything(params: list[Parameter], ours: Arturo) -> list[Tensor]:
    return [one.detach().clone() for param in params for one in (param, *ours.state[param].values())]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


@every_dtype
@every_storage
@pytest.mark.parametrize("name", ["pack", "pack_moved", "unpacked"])
def test_a_step_that_breaks_off_leaves_no_bit(
    storage: str, dtype: torch.dtype, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one call and after several, and the step that is repeated is the one that never broke off."""
    through = getattr(keeping, name)
    for last in (1, 2):
        params, ours = built(dtype, state_dtype=storage, fused=False)
        twins, expected = built(dtype, state_dtype=storage, fused=False)
        for number in range(2):
            step(params, ours, number)
            step(twins, expected, number)
        before = everything(params, ours)
        calls = []

        def breaks(*arguments: Any, calls: list[int] = calls, last: int = last) -> Any:
            calls.append(1)
            if len(calls) >= last:
                raise KeyboardInterrupt
            return through(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(keeping, name, breaks)
            if name == "pack_moved" and dtype == torch.float32:  # which waits for the next step
                step(params, ours, 2)
                assert not calls
                continue
            with pytest.raises(KeyboardInterrupt):
                step(params, ours, 2)
        assert same(everything(params, ours), before)
        step(params, ours, 2)
        step(twins, expected, 2)
        assert same(everything(params, ours), everything(twins, expected))


@every_dtype
@every_storage
def test_a_skipped_step_of_which_nothing_can_be_read(
    storage: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator: whether a step is skipped is known on the device alone."""
    twins, expected = built(dtype, state_dtype=storage, fused=False)
    params, ours = built(dtype, state_dtype=storage, fused=False)
    for module in (keeping, eager):
        monkeypatch.setattr(module, "is_readable", lambda tensor: False)
    for number in range(3):
        step(params, ours, number)
    before = everything(params, ours)
    for param in params:
        param.grad = torch.full_like(param, torch.inf)
    ours.step()
    assert same(everything(params, ours), before)
    monkeypatch.undo()
    for number in range(3):
        step(twins, expected, number)
    assert same(everything(twins, expected), before)


@every_storage
def test_compiled_passes(storage: str) -> None:
    params, ours = built(state_dtype=storage, compile=True)
    twins, expected = built(state_dtype=storage, fused=False)
    for number in range(3):
        step(params, ours, number)
        step(twins, expected, number)
    for param, twin in zip(params, twins, strict=True):
        # The last digit of float32 decides a rounding at times.
        assert float(((param - twin).abs() > 1e-6).float().mean()) < 1e-3


@pytest.mark.parametrize("padding", [torch.nan, 7.0])
@every_storage
def test_padding_of_a_flat_vector(storage: str, padding: float) -> None:
    """Rounding depends on where an element is in the vector of all ranks; padding matters for nothing."""
    source = torch.Generator().manual_seed(0)
    weights, grads = torch.randn(60, generator=source), torch.randn(3, 60, generator=source)
    whole = Parameter(weights.clone())
    expected = Arturo([whole], state_dtype="bfloat16")
    vector = Parameter(torch.full((30,), padding))
    vector.data[3:27] = weights[20:44]
    flat.declare(vector, [flat.Piece(3, 27, torch.Size([6, 4]))], first=17)
    ours = Arturo([vector], state_dtype=storage)
    whole.grad, vector.grad = grads[0].clone(), torch.full((30,), padding)
    vector.grad[3:27] = grads[0, 20:44]
    expected.step()
    ours.step()
    for name in ("direction", "deviation", "curvature", "displacement"):
        assert torch.equal(ours.state[vector][name][3:27], expected.state[whole][name][20:44])
    saved = ours.state_dict()
    saved["state"][0]["deviation"][28:] = torch.nan  # frameworks fill padding as they like
    resumed = Arturo([vector], state_dtype=storage)
    resumed.load_state_dict(saved)
    assert torch.equal(resumed.state[vector]["deviation"][:27], ours.state[vector]["deviation"][:27])


def test_a_word_where_most_is_not_kept_in_codes() -> None:
    odd = [Parameter(torch.randn(9, 31)), Parameter(torch.randn(2, 32))]
    ours = Arturo(odd, state_dtype="8bit")
    for param in odd:
        param.grad = torch.ones_like(param)
    with pytest.warns(ArturoAdvice, match="keeps the statistics of 81% of the weights in bfloat16"):
        ours.step()


def test_no_word_where_most_is(recwarn: pytest.WarningsRecorder) -> None:
    params, ours = built(state_dtype="8bit")
    step(params, ours, 0)
    assert not [one for one in recwarn if "8bit" in str(one.message)]
