"""Batches for the Triton kernels: which tensors may join, how tables are kept, and that nothing depends on the cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton_problem import (
    INTERPRETED,
    LENGTH,
    NEEDS_TRITON,
    ORDINARY,
    SHAPES,
    apply,
    copied,
    gains,
    observe,
    on_device,
    placed,
    same_bits,
    scalar,
    seeds,
    sources,
)
from triton_problem import small_programs as small_programs

from arturo_core.kernels import triton as triton_kernel
from arturo_core.kernels.triton import availability, tables
from arturo_core.step.chunks import Source


@on_device
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_depends_on_how_tensors_are_cut(
    device: str, state: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by programs nor by shards: every element is the same to the bit."""
    whole = sources(device, state=state, shapes=[(900,)])
    parts = copied(whole)
    cut = [
        Source(
            parts[0].theta[part].clone(),
            parts[0].grad[part].clone(),
            tuple(held[part].clone() for held in parts[0].state),
            {},
            0,
        )
        for part in (slice(0, 333), slice(333, 900))
    ]
    first = 2**32 - 400
    keys = torch.tensor([[77, first]], device=device)
    one = observe(whole, [ORDINARY], seeds=keys)
    monkeypatch.setattr(tables, "BLOCK", 64)
    monkeypatch.setattr(tables, "SPAN", 192)
    two = observe(cut, [ORDINARY] * 2, seeds=torch.tensor([[77, first], [77, first + 333]], device=device))
    apply(whole, 0.2)
    apply(cut, 0.2)
    torch.testing.assert_close(two.sum(dim=0), one[0], rtol=1e-6, atol=0.0)
    for index in range(4):
        assert torch.equal(torch.cat([source.state[index] for source in cut]), whole[0].state[index])
    assert torch.equal(torch.cat([source.theta for source in cut]), whole[0].theta)


@on_device
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16], ids=str)
def test_a_tensor_may_have_more_than_two_to_the_31_elements(
    device: str, state: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last program of a tensor of 2³³ elements, of which nothing exists but what that program is given."""
    far = 2**33
    given = sources(device, torch.bfloat16, state=state, shapes=[(700,)])
    wanted = copied(given)
    scalars = gains([ORDINARY], device), scalar(1.0, device), scalar(0.1, device), scalar(LENGTH, device)
    sums = triton_kernel.observe(wanted, *scalars, False, torch.tensor([[77, far + 3]], device=device))
    squares = triton_kernel.apply(wanted, scalars[2], scalars[3], torch.tensor([[77, far + 3]], device=device))

    monkeypatch.setattr(tables, "SPAN", 2**24)
    monkeypatch.setattr(
        triton_kernel,
        "_columns",
        lambda batch, columns: torch.zeros(columns, batch.programs, dtype=torch.float64, device=device),
    )
    near = triton_kernel.table(given)
    tensors = (given[0].theta, given[0].grad, *given[0].state)
    places = [tensor.data_ptr() - far * tensor.element_size() for tensor in tensors]
    table = torch.tensor([*places, far + 700, 0, 0], dtype=torch.int64, device=device)
    last = near.launches[0]._replace(first=far // 2**24, programs=1)
    batch = triton_kernel.Batch(given, near.device, table, [last])
    key = torch.tensor([[77, 3]], device=device)
    torch.testing.assert_close(triton_kernel.observe(batch, *scalars, False, key), sums, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(triton_kernel.apply(batch, scalars[2], scalars[3], key), squares, rtol=1e-6, atol=0.0)
    assert float(triton_kernel.survey(batch)[0]) == 0.0
    assert same_bits(given, wanted)


@on_device
def test_one_batch_holds_tensors_of_several_dtypes(device: str) -> None:
    """In the caller's order, and as if each had come alone."""
    kinds = [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float16, torch.bfloat16)]
    given = [
        sources(device, weights, grads, shapes=[(70 + 9 * at,)], seed=at)[0]
        for at, (weights, grads) in enumerate(kinds)
    ]
    given = [given[0], given[1], *sources(device, shapes=[(33,), (5, 5)], seed=9), given[2]]
    alone = copied(given)
    rows = [(0.1 * (number + 1), *ORDINARY[1:5], 0.0, 0.0) for number in range(len(given))]
    batch = triton_kernel.table(given)
    assert triton_kernel.table(batch) is batch
    squares, sums = triton_kernel.survey(batch)[1], observe(given, rows)
    after = apply(given, 0.1)
    for number, source in enumerate(alone):
        assert float(triton_kernel.survey([source])[1]) == float(squares[number])
        assert torch.equal(observe([source], rows[number : number + 1])[0], sums[number])
        assert float(apply([source], 0.1)) == float(after[number])
    assert same_bits(given, alone)


@on_device
def test_tables_are_kept_while_addresses_stay(device: str) -> None:
    given = sources(device)
    launches = triton_kernel.table(given).launches
    assert [(launch.aligned, launch.high - launch.low) for launch in launches] == [(True, len(given) - 1), (False, 1)]
    table = triton_kernel.table(given).table
    assert triton_kernel.table(given).table is table
    other = copied(given)
    assert triton_kernel.table(other).table is not table
    given[2].grad = given[2].grad.clone()
    again = triton_kernel.table(given).table
    assert again is not table
    assert sorted(again.view(-1, 9)[:, 8].tolist()) == list(range(len(given)))
    written = tables.written(again.tolist(), again.device)
    assert torch.equal(written[: again.numel()], again)
    assert not written[again.numel() :].any()


@on_device
def test_a_batch_is_renewed_when_gradients_have_moved(device: str) -> None:
    """It is the batch that would be made anew, also where their grain is another."""
    given = sources(device)
    batch = triton_kernel.table(given)
    outline = triton_kernel.outline(batch)
    assert not any(isinstance(part, Tensor) for part in outline)
    for off in (False, True, False):
        for source in given:
            source.grad = placed(source.grad, device, off and source.grad.dim() != 4)
        found, wanted = triton_kernel.renewed(outline, given), triton_kernel.table(given)
        assert found.sources is given
        assert (found.launches, found.numbers, found.device) == (wanted.launches, wanted.numbers, wanted.device)
        assert torch.equal(found.table, wanted.table)
        assert len(found.launches) == 2
        assert sum(launch.high - launch.low for launch in found.launches if launch.aligned) == (1 if off else 5)


@on_device
def test_what_is_written_to_has_a_new_version(device: str) -> None:
    given = sources(device, shapes=[(40,), (3, 5)])

    def versions() -> list[tuple[int, list[int]]]:
        return [(source.theta._version, [held._version for held in source.state]) for source in given]

    first = versions()
    observe(given, [ORDINARY] * len(given))
    second = versions()
    assert all(new[0] == old[0] and new[1] != old[1] for new, old in zip(second, first, strict=True))
    apply(given, 0.1)
    assert all(new[0] != old[0] and new[1] == old[1] for new, old in zip(versions(), second, strict=True))
    with torch.inference_mode():
        inside = sources(device, shapes=[(40,)])
        observe(inside, [ORDINARY] * len(inside), decay=0.1)
        apply(inside, 0.1)


class Allocated(TorchDispatchMode):
    """Bytes of all tensors that operations return anew."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and all(found is not arg for arg in args):
            self.total += found.numel() * found.element_size()
        return found


@on_device
def test_a_step_needs_next_to_no_memory(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below 1% of bfloat16 weights, with programs as large as a device's."""
    monkeypatch.setattr(tables, "SPAN", 8192)
    if INTERPRETED:
        monkeypatch.setattr(tables, "BLOCK", 8192)  # quicker
    given = sources(device, *[torch.bfloat16] * 3, shapes=[(200, 500), (500,)])
    keys = seeds(given, device)
    scalars = gains([ORDINARY] * len(given), device), scalar(1.0, device), scalar(0.1, device), scalar(LENGTH, device)
    with Allocated() as allocated:
        batch = triton_kernel.table(given)
        triton_kernel.survey(batch)
        triton_kernel.observe(batch, *scalars, False, keys)
        triton_kernel.apply(batch, scalars[2], scalars[3], keys)
    assert 0 < allocated.total < 0.01 * 2 * sum(source.theta.numel() for source in given)


def test_eligible_are_dense_tensors_that_lie_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    given = sources("cpu")
    monkeypatch.setattr(triton_kernel, "available", lambda device: False)
    assert not any(map(triton_kernel.eligible, given))
    monkeypatch.setattr(triton_kernel, "available", lambda device: device.type == "cpu")
    assert all(map(triton_kernel.eligible, given))

    def made(**changes: Any) -> Source:
        source = copied(sources("cpu", shapes=[(6, 4)]))[0]
        for name, value in changes.items():
            setattr(source, name, value(getattr(source, name)))
        return source

    def each(change: Any) -> Source:
        source = made()
        return Source(change(source.theta), change(source.grad), tuple(map(change, source.state)), {}, 0)

    assert triton_kernel.eligible(made(theta=Tensor.bfloat16, grad=Tensor.half))
    assert triton_kernel.eligible(made(state=lambda state: tuple(held.bfloat16() for held in state)))
    assert triton_kernel.eligible(each(lambda tensor: tensor.t().contiguous().t()))
    assert triton_kernel.eligible(each(lambda tensor: tensor.unsqueeze(1).transpose(0, 1)))
    refused = [
        made(theta=Tensor.double),
        made(grad=Tensor.double),
        made(state=lambda state: tuple(held.half() for held in state)),
        made(state=lambda state: (state[0].bfloat16(), *state[1:])),
        made(state=lambda state: state[:3]),
        made(grad=lambda grad: grad.t().contiguous().t()),
        made(grad=lambda grad: grad[:3]),
        each(lambda tensor: tensor[:, :3]),
        each(lambda tensor: tensor[:0]),
        each(lambda tensor: tensor[:1].expand(6, 4)),
        made(grad=lambda grad: grad.to_sparse()),
        made(grad=lambda grad: torch.imag(torch.complex(grad, grad).conj())),
        made(grad=lambda grad: grad.to("meta")),
    ]
    assert not any(map(triton_kernel.eligible, refused))


@on_device
def test_a_bfloat16_state_needs_seeds(device: str) -> None:
    with pytest.raises(ValueError, match="needs seeds"):
        observe(sources(device, state=torch.bfloat16), [ORDINARY] * len(SHAPES))


@on_device
def test_the_passes_are_available(device: str) -> None:
    assert triton_kernel.why_not(torch.device(device)) == ""
    assert triton_kernel.available(torch.device(device))
    assert all(map(triton_kernel.eligible, sources(device)))


def test_other_devices_are_refused_with_a_reason() -> None:
    assert "no Triton kernels for 'meta'" in triton_kernel.why_not(torch.device("meta"))
    if not INTERPRETED:
        assert not triton_kernel.available(torch.device("cpu"))
        assert not any(map(triton_kernel.eligible, sources("cpu")))


@NEEDS_TRITON
@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes tensors on the CPU")
def test_the_reason_names_the_interpreter_and_what_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "_reasons", {})
    assert "interpreter" in triton_kernel.why_not(torch.device("cpu"))
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "8.0" in triton_kernel.why_not(torch.device("cuda", 0))

    def broken(device: torch.device) -> None:
        raise RuntimeError("\n  Failed to find C compiler.\nMore.")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(availability, "_load", broken)
    assert "(Failed to find C compiler.)" in triton_kernel.why_not(torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert "before a graph" in triton_kernel.why_not(torch.device("cuda", 2))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(availability, "_load", lambda device: None)
    with FakeTensorMode():
        assert "no numbers" in triton_kernel.why_not(torch.device("cuda", 2))
    assert triton_kernel.available(torch.device("cuda", 2)), "what cannot be known then is asked again"
