"""The kernel that takes many tensors at once: used where it can be, demanded, refused, and what is said without it."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from problems import MODES, assert_identical, build, gradients, snapshot, train, trained
from torch.nn import Parameter

from arturo_core import Arturo
from arturo_core.kernels import cpu, select, triton
from arturo_core.reporting import slow
from arturo_core.reporting.advice import ArturoAdvice

needs_kernel = pytest.mark.skipif(not cpu.available(), reason=f"needs the compiled kernel: {cpu.why_not()}")
CASES: dict[str, dict[str, Any]] = {
    "rms": {"lr": 1e-2},
    "kl": {"lr": 1e-1, "trust_region": "kl"},
    "decay": {"lr": 1e-2, "weight_decay": 0.1},
    "maximize": {"lr": 1e-2, "maximize": True},
    "tensor lr": {"lr": torch.tensor(1e-2)},
}
every_case = pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())


@needs_kernel
@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_training_is_that_of_the_eager_passes(options: dict[str, Any], dtype: torch.dtype) -> None:
    """Some steps, one of them skipped, and one resumed from a checkpoint."""
    expected_params, expected = build({**options, "fused": False}, dtype)
    params, optimizer = build({**options, "fused": True}, dtype)
    start = [param.detach().clone() for param in params]
    for step in range(12):
        given = gradients(start, step)  # of the first weights: nothing for rounding to grow in
        for which in (params, expected_params):
            for param, grad in zip(which, given, strict=True):
                param.grad = grad.clone()
            if step == 5:
                which[0].grad[0, 0] = torch.inf  # type: ignore[index]
        optimizer.step()
        expected.step()
        if step == 7:
            saved = copy.deepcopy(expected.state_dict())
            optimizer.load_state_dict(saved)
            with torch.no_grad():
                for param, other in zip(params, expected_params, strict=True):
                    param.copy_(other)
    ours, theirs = optimizer.diagnostics(), expected.diagnostics()
    assert ours["skipped_steps"] == theirs["skipped_steps"] == 1
    for key in ("eta", "kl", "kl_bound", "step_rms", "innovation_ratio"):
        assert ours[key] == pytest.approx(theirs[key], rel=1e-4), key
    for param, other, before in zip(params, expected_params, start, strict=True):
        moved = float((other.detach().float() - before.float()).abs().max())
        spacing = float(before.abs().max()) * torch.finfo(dtype).eps
        torch.testing.assert_close(
            param.detach().float(),
            other.detach().float(),
            rtol=0.0,
            atol=1e-4 * moved + (dtype != torch.float32) * spacing,
        )
        for name, value in expected.state[other].items():
            within = 1e-3 * float(value.double().abs().max())
            difference = float((optimizer.state[param][name].double() - value.double()).abs().max())
            assert difference <= within, name


@needs_kernel
def test_it_is_used_by_default_and_says_so_of_every_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    through = cpu.apply

    def counted(table: Any, *rest: Any) -> Any:
        calls.append(len(table.sources))
        return through(table, *rest)

    monkeypatch.setattr(cpu, "apply", counted)
    params, optimizer = build({"lr": 1e-2})
    train(optimizer, params, range(3))
    assert calls == [3, 3, 3]
    versions = [param._version for param in params]
    train(optimizer, params, [3])
    assert all(param._version > before for param, before in zip(params, versions, strict=True))
    for other in ({"fused": False}, {"noise": "fixed"}, {"prior_precision": 0.1}, {"state_dtype": torch.float64}):
        train(Arturo(params, lr=1e-2, **other), params, [4])
    assert len(calls) == 4


@needs_kernel
def test_weights_that_others_change_are_measured_anew() -> None:
    """The radius follows the weights' size, which the last step has found on its way."""
    weight = Parameter(torch.randn(40, 30))
    optimizer = Arturo([weight], lr=1.0, fused=True)

    def bound() -> float:
        weight.grad = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        return float(optimizer.last_report.multiplier.bound)  # type: ignore[union-attr]

    bound()
    twin = copy.deepcopy(optimizer)
    with torch.no_grad():
        weight.mul_(0.1)
        twin.param_groups[0]["params"][0].mul_(0.1)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    twin_weight = twin.param_groups[0]["params"][0]
    twin_weight.grad = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    twin.step()
    assert bound() == float(twin._report.multiplier.bound)  # type: ignore[union-attr]


REFUSED = {
    "fixed noise": ({"noise": "fixed"}, "noise="),
    "prior": ({"prior_precision": 0.1}, "prior_precision"),
    "compile": ({"compile": True}, "compile=True"),
    "wide state": ({"state_dtype": torch.float64}, "state_dtype"),
}


@pytest.mark.parametrize(("options", "mention"), REFUSED.values(), ids=REFUSED.keys())
def test_what_has_no_kernel_is_refused(options: dict[str, Any], mention: str) -> None:
    with pytest.raises(ValueError, match=f"Arturo: fused=True demands a kernel.*{mention}"):
        Arturo([Parameter(torch.ones(2))], fused=True, **options)


def test_weights_that_have_no_kernel_are_refused() -> None:
    expected = "float64" if cpu.available() else "compiled"
    with pytest.raises(ValueError, match=f"Arturo: fused=True demands a kernel.*{expected}"):
        Arturo([Parameter(torch.ones(2, dtype=torch.float64))], fused=True)
    with pytest.raises(TypeError, match="fused='yes' must be True, False, or None"):
        Arturo([Parameter(torch.ones(2))], fused="yes")  # type: ignore[arg-type]


def test_a_kernel_is_demanded_of_every_weight_that_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """At construction, with a later group, and where a frozen weight is trained after all."""
    monkeypatch.setattr(cpu, "available", lambda: True)
    frozen = Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)
    optimizer = Arturo([Parameter(torch.ones(2)), frozen], fused=True)
    with pytest.raises(ValueError, match=r"there is none for torch\.float64 on cpu: it takes torch\.float32, "):
        optimizer.add_param_group({"params": [Parameter(torch.ones(2, dtype=torch.float64))]})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match=r"demands a kernel, and there is none on meta: .*'meta'.* Leave fused out"):
        optimizer.add_param_group({"params": [Parameter(torch.ones(2, device="meta"))]})
    frozen.requires_grad_(True)
    with pytest.raises(ValueError, match=r"demands a kernel, and there is none for torch\.float64"):
        optimizer.step()
    assert not optimizer.state
    Arturo([Parameter(torch.ones(2, dtype=torch.complex64))], fused=True)


@pytest.mark.parametrize("fused", [None, True, False])
def test_the_device_chooses_the_kernel(fused: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one place, by where the scalars of a step live."""
    options = dataclasses.replace(Arturo([Parameter(torch.ones(2))])._options, fused=fused)
    devices = {name: torch.device(name) for name in ("cpu", "cuda:0", "mps", "meta")}

    def chosen(compiled: bool, triton_on: str) -> dict[str, Any]:
        monkeypatch.setattr(cpu, "available", lambda: compiled)
        monkeypatch.setattr(triton, "available", lambda device: device.type in triton_on)
        found = {name: select.kernel(options, device) for name, device in devices.items()}
        return {name: kernel for name, kernel in found.items() if kernel is not None}

    if fused is False:
        assert chosen(True, "cuda") == {}
        return
    assert chosen(True, "cuda") == {"cpu": cpu, "cuda:0": triton}
    assert chosen(True, "") == {"cpu": cpu}
    assert chosen(False, "cuda") == {"cuda:0": triton}
    # Triton's interpreter takes a CPU's tensors where that is demanded.
    assert chosen(True, "cpu") == {"cpu": cpu}
    assert chosen(False, "cpu") == ({"cpu": triton} if fused else {})
    for other in ({"noise": "fixed"}, {"prior_precision": 0.1}, {"state_dtype": torch.float64}):
        options = dataclasses.replace(Arturo([Parameter(torch.ones(2))], **other)._options, fused=fused)
        assert chosen(True, "cuda") == {}


def test_without_triton_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow, "_told", [])
    monkeypatch.setattr(triton, "available", lambda device: False)
    monkeypatch.setattr(triton, "why_not", lambda device: "Triton is not installed")

    def said(kind: str, fused: bool | None = None, count: int = slow.MANY) -> str | None:
        weight = SimpleNamespace(device=torch.device(kind), numel=lambda: count)
        options = dataclasses.replace(Arturo([Parameter(torch.ones(2))])._options, fused=fused)
        return slow.notice(SimpleNamespace(options=options, param_groups=[{"params": [weight]}]))  # type: ignore[arg-type]

    assert [said("mps"), said("cuda", False), said("cuda", count=slow.MANY - 1)] == [None] * 3
    assert said("cuda") == (
        "steps take several times as long as with the Triton kernels: Triton is not installed. fused=False "
        "keeps this quiet."
    )
    assert said("cuda") is None, "once in a process"


def test_an_accelerator_takes_bounded_chunks() -> None:
    """So that temporaries are small beside a model."""
    options = Arturo([Parameter(torch.ones(2))])._options
    assert select.chunk_size(options, torch.device("cuda")) == 1 << 24


def test_without_the_library_steps_go_the_other_way_and_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = snapshot(trained({**MODES["adaptive-rms"], "fused": False})[1])
    monkeypatch.setattr(cpu, "available", lambda: False)
    monkeypatch.setattr(cpu, "why_not", lambda: "it is not there.")
    monkeypatch.setattr(slow, "_told", [])
    monkeypatch.setattr(slow, "MANY", 10)
    with pytest.raises(ValueError, match="demands a kernel, and there is none: it is not there"):
        Arturo([Parameter(torch.ones(2))], fused=True)
    with pytest.warns(ArturoAdvice, match=r"compiled CPU kernel: it is not there\. fused=False") as told:
        found = snapshot(trained(MODES["adaptive-rms"])[1])
    assert len(told) == 1
    assert_identical(found, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(MODES["adaptive-rms"])
        monkeypatch.setattr(slow, "_told", [])
        trained({**MODES["adaptive-rms"], "fused": False})
        trained(MODES["fixed-kl"])


def test_an_old_pickle_of_the_options_takes_the_default() -> None:
    _, optimizer = trained(MODES["adaptive-rms"])
    state = optimizer.__getstate__()
    options = copy.copy(state["_options"])
    del options.__dict__["fused"]
    assert pickle.loads(pickle.dumps(options)).fused is None
    assert select.suits(options)
