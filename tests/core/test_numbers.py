"""Whatever is a real number will do for lr and weight decay, and is kept as a plain float."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy
import pytest
import torch
from problems import build, every_mode, train
from torch.nn import Parameter

from arturo_core import Arturo

NUMBERS = {
    "int": (1, 1.0),
    "fraction": (Fraction(1, 8), 0.125),
    "decimal": (Decimal("0.125"), 0.125),
    "float32": (numpy.float32(0.125), 0.125),
    "float64": (numpy.float64(0.125), 0.125),
    "float16": (numpy.float16(0.125), 0.125),
    "int64": (numpy.int64(1), 1.0),
    "0-d array": (numpy.array(0.125), 0.125),
    "array of one": (numpy.array([0.125]), 0.125),
}
TENSORS = {
    "tensor": (torch.tensor(0.125), 0.125),
    "bfloat16 tensor": (torch.tensor([0.125], dtype=torch.bfloat16), 0.125),
    "int tensor": (torch.tensor(1), 1.0),
    "parameter": (Parameter(torch.tensor(0.125)), 0.125),
}
every_number = pytest.mark.parametrize(("given", "kept"), NUMBERS.values(), ids=NUMBERS.keys())
every_decay = pytest.mark.parametrize(
    ("given", "kept"), [*NUMBERS.values(), *TENSORS.values()], ids=[*NUMBERS.keys(), *TENSORS.keys()]
)


@every_number
def test_learning_rates(given, kept):
    params, _ = build({})
    for optimizer in (
        Arturo(params, lr=given),
        Arturo([{"params": params, "lr": given}]),
        _set(Arturo(params), lr=given),
    ):
        train(optimizer, params, [0])
        assert type(optimizer.param_groups[0]["lr"]) is float
        assert optimizer.param_groups[0]["lr"] == kept
        assert float(optimizer.param_groups[0]["peak_lr"]) == kept


@every_decay
def test_weight_decay(given, kept):
    params, _ = build({})
    for optimizer in (
        Arturo(params, weight_decay=given),
        Arturo([{"params": params, "weight_decay": given}]),
        _set(Arturo(params), weight_decay=given),
    ):
        train(optimizer, params, [0])
        assert type(optimizer.param_groups[0]["weight_decay"]) is float
        assert optimizer.param_groups[0]["weight_decay"] == kept


@every_number
def test_options(given, kept):
    optimizer = Arturo([Parameter(torch.ones(2))], temperature=given)
    assert type(optimizer.options.temperature) is float
    assert optimizer.options.temperature == kept


def _set(optimizer: Arturo, **values: object) -> Arturo:
    optimizer.param_groups[0].update(values)
    return optimizer


class Broken:
    """A type of somebody else whose conversion fails."""

    def __float__(self) -> float:
        raise RuntimeError("no value yet")

    def __repr__(self) -> str:
        return "Broken"


NO_NUMBERS = [
    *("0.1", b"0.1", True, numpy.bool_(True), torch.tensor(True), 1j, numpy.complex64(1), None, [0.1], {}),
    *(numpy.ma.masked, numpy.ma.masked_array([0.1], mask=[True]), Broken()),
    *(torch.tensor([0.1]).to_sparse(), torch.tensor(0.1, device="meta"), torch.tensor(0.1j)),
]


@pytest.mark.parametrize("given", [*NO_NUMBERS, numpy.array([0.1, 0.2]), numpy.array("0.1")], ids=repr)
@pytest.mark.parametrize("key", ["lr", "weight_decay"])
def test_what_is_no_number_is_refused(key, given):
    params, optimizer = build({})
    with pytest.raises((TypeError, ValueError), match=key):
        Arturo(params, **{key: given})
    with pytest.raises((TypeError, ValueError), match=key):
        optimizer.add_param_group({"params": [Parameter(torch.ones(1))], key: given})
    assert len(optimizer.param_groups) == 1
    _set(optimizer, **{key: given})
    before = [param.detach().clone() for param in params]
    with pytest.raises((TypeError, ValueError), match=key):
        train(optimizer, params, [0])
    assert all(torch.equal(param, old) for param, old in zip(params, before, strict=True))


HUGE = {"400": 10**400, "5000": 10**5000, "-400": -(10**400), "fraction": Fraction(10**400), "inf": numpy.inf}


@pytest.mark.parametrize("huge", HUGE.values(), ids=HUGE.keys())
@pytest.mark.parametrize("key", ["lr", "weight_decay", "temperature"])
def test_numbers_beyond_floats_get_the_error_of_every_bad_number(key, huge):
    with pytest.raises(ValueError, match=f"Arturo: {key}=.* must be finite") as caught:
        Arturo([Parameter(torch.ones(2))], **{key: huge})
    assert len(str(caught.value)) < 300


@every_mode
def test_a_tensor_learning_rate_stays_one(options):
    lr = torch.tensor(options["lr"])
    params, optimizer = build({**options, "lr": lr})
    train(optimizer, params, [0])
    assert optimizer.param_groups[0]["lr"] is lr
