"""Frozen parameters never matter, whatever they are: ``Arturo(model.parameters())`` is what README shows."""

from __future__ import annotations

import pytest
import torch
from problems import assert_identical, every_mode, gradients, snapshot
from torch.nn import Parameter

from arturo_core import Arturo
from arturo_core.reporting.layers import LayerWatch


def _frozen(tensor: torch.Tensor) -> Parameter:
    return Parameter(tensor, requires_grad=False)


FROZEN = {
    "uint8": lambda: _frozen(torch.randint(0, 255, (64, 1), dtype=torch.uint8)),
    "int8": lambda: _frozen(torch.ones(3, 4, dtype=torch.int8)),
    "int64": lambda: _frozen(torch.ones(3, dtype=torch.int64)),
    "bool": lambda: _frozen(torch.ones(3, dtype=torch.bool)),
    "float8": lambda: _frozen(torch.ones(4, 4).to(torch.float8_e4m3fn)),
    "meta": lambda: _frozen(torch.empty(300, 20, device="meta")),
    "meta uint8": lambda: _frozen(torch.empty(300, 20, device="meta", dtype=torch.uint8)),
    "sparse": lambda: _frozen(torch.eye(3).to_sparse()),
    "sparse csr": lambda: _frozen(torch.eye(3).to_sparse_csr()),
    "not finite": lambda: _frozen(torch.full((40, 30), torch.nan)),
    "empty": lambda: _frozen(torch.empty(0)),
    "plain tensor": lambda: torch.ones(5, 5),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(4, 4), 0.1, 0, torch.qint8),
    "large": lambda: _frozen(1e6 * torch.ones(300, 300)),
}


def make(options, frozen=None):
    torch.manual_seed(0)
    matrix, vector = Parameter(torch.randn(5, 4)), Parameter(torch.randn(7))
    # The frozen one first: nothing may be taken from it.
    return [matrix, vector], Arturo([*([] if frozen is None else [frozen]), matrix, vector], **options)


def contents(tensor):
    """Every byte of a tensor that has them in one place."""
    one_place = tensor.layout == torch.strided and tensor.device.type != "meta"
    return bytes(tensor.detach().untyped_storage()) if one_place else None


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.filterwarnings("ignore:.*quant.*")
@pytest.mark.parametrize("kind", FROZEN)
@every_mode
def test_a_frozen_parameter_changes_nothing(options, kind):
    options = {**options, "weight_decay": 0.1}
    frozen = FROZEN[kind]()
    before = contents(frozen)
    params, optimizer = make(options, frozen)
    expected_params, expected = make(options)
    watch = LayerWatch(optimizer)
    for step in range(4):
        for member, twin, grad in zip(params, expected_params, gradients(params, step), strict=True):
            member.grad, twin.grad = grad, grad.clone()
        watch.arm()
        optimizer.step()
        expected.step()
    for member, twin in zip(params, expected_params, strict=True):
        assert torch.equal(member, twin)
        assert_identical(dict(optimizer.state[member]), dict(expected.state[twin]))
    assert frozen not in optimizer.state
    assert optimizer.diagnostics() == expected.diagnostics()
    assert sum(numbers["kl_share"] for numbers in watch.numbers().values()) == pytest.approx(1.0)
    assert contents(frozen) == before
    resumed_params, resumed = make(options, FROZEN[kind]())
    resumed.load_state_dict(optimizer.state_dict())
    assert_identical(dict(resumed.state[resumed_params[0]]), dict(optimizer.state[params[0]]))


def test_frozen_alone_and_frozen_later():
    weight = _frozen(torch.ones(3, 3))
    optimizer = Arturo([weight], lr=1e-2)
    optimizer.step()
    assert not optimizer.state
    assert optimizer.diagnostics()["steps"] == 0
    weight.requires_grad_()
    weight.grad = torch.ones(3, 3)
    optimizer.step()
    assert not torch.equal(weight, torch.ones(3, 3))
    held = snapshot(optimizer)
    weight.requires_grad_(False)
    weight.grad = None
    optimizer.step()
    assert_identical(snapshot(optimizer)["weights"], held["weights"])
    assert_identical(snapshot(optimizer)["state"], held["state"])


def test_a_layout_that_cannot_be_trained_is_refused_once_it_is_trained():
    sparse = _frozen(torch.eye(3).to_sparse())
    weight = Parameter(torch.ones(2))
    optimizer = Arturo([("table", sparse), ("weight", weight)], lr=1e-2)
    weight.grad = torch.ones(2)
    optimizer.step()
    sparse.requires_grad_()
    before = snapshot(optimizer)
    with pytest.raises(TypeError, match=r"'table' has layout torch\.sparse"):
        optimizer.step()
    assert torch.equal(weight, before["weights"][1])
