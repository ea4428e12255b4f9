"""What torch asks of its own optimizers, after pytorch's ``test_optim.py``.

How they are made.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from problems import (
    GROUP_KEYS,
)
from torch.nn import Parameter
from torch.testing._internal.common_optimizers import (
    OptimizerErrorEnum,
)
from torch_inputs import ERRORS, every_input

from arturo_core import Arturo


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS.keys())
def test_errors_of_torch(error):
    given = error.optimizer_error_input
    params = [Parameter(torch.randn(1, 1))] if given.params is None else given.params
    kwargs = given.kwargs
    assert error.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
    if issubclass(error.error_type, Warning):
        # torch warns of duplicates in a group and announces an error; one multiplier over all weights needs it now.
        with pytest.warns(error.error_type, match=error.error_regex), pytest.raises(ValueError, match="twice"):
            Arturo(params, **kwargs)
    else:
        with pytest.raises(error.error_type, match=error.error_regex):
            Arturo(params, **kwargs)


@every_input
def test_can_be_printed(kwargs):
    text = repr(Arturo([Parameter(torch.randn(2))], **kwargs))
    assert text.startswith("Arturo (\nParameter Group 0\n")
    assert "lr: " in text
    assert "weight_decay: " in text


@every_input
def test_implementation_flags_are_absent(kwargs):
    """``foreach=True`` and the like in a group change what torch does around a step; none is honoured here."""
    weight = Parameter(torch.randn(3))
    optimizer = Arturo([weight], **kwargs)
    weight.grad = torch.ones(3)
    optimizer.step()
    fresh = Arturo([Parameter(weight.detach().clone())], **kwargs)
    fresh.load_state_dict(optimizer.state_dict())
    for which in (optimizer, fresh, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        for group in which.param_groups:
            assert set(group) == GROUP_KEYS


@every_input
def test_flags_of_other_implementations_are_refused(kwargs):
    for flag in ("foreach", "differentiable", "capturable"):
        with pytest.raises(TypeError, match=flag):
            Arturo([Parameter(torch.randn(2))], **kwargs, **{flag: True})
        Arturo([Parameter(torch.randn(2))], **kwargs, **{flag: False})  # what is off asks for nothing


def test_defaults_reach_every_group():
    first, second = Parameter(torch.randn(2)), Parameter(torch.randn(2))
    optimizer = Arturo([{"params": [first]}, {"params": [second], "lr": 0.5, "weight_decay": 0.2}], lr=0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.2]


def test_named_parameters():
    model = torch.nn.Linear(3, 2)
    optimizer = Arturo(model.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    assert all(isinstance(param, Parameter) for param in optimizer.param_groups[0]["params"])
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]
