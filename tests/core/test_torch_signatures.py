"""Methods that replace those of ``torch.optim.Optimizer`` are called by frameworks with its signatures."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from arturo_core import Arturo

Kind = inspect.Parameter

#: What Arturo and its bases below torch's Optimizer define, and which of it replaces torch's.
OURS = {
    name: member
    for kind in reversed(Arturo.__mro__)
    if issubclass(kind, Optimizer) and kind is not Optimizer
    for name, member in vars(kind).items()
}
OVERRIDDEN = sorted(
    name
    for name, member in OURS.items()
    if callable(inspect.unwrap(getattr(member, "__func__", member))) and callable(getattr(Optimizer, name, None))
)


def shape(function) -> list[tuple[str, object, bool]]:
    """Name and kind of every parameter, and whether it has a default."""
    parameters = inspect.signature(function).parameters.values()
    return [(parameter.name, parameter.kind, parameter.default is not Kind.empty) for parameter in parameters]


def test_discovery():
    assert {"__init__", "step", "add_param_group", "load_state_dict"} <= set(OVERRIDDEN)


@pytest.mark.parametrize("name", [name for name in OVERRIDDEN if name != "__init__"])
def test_overridden_methods_have_the_signature_of_torch(name):
    assert shape(getattr(Arturo, name)) == shape(getattr(Optimizer, name))


def test_init():
    """Command lines are generated from it, with ``params`` left out."""
    first, second, *options = list(inspect.signature(Arturo).parameters.values())
    assert (first.name, first.kind, first.default) == ("params", Kind.POSITIONAL_OR_KEYWORD, Kind.empty)
    assert (second.name, second.kind, second.default) == ("lr", Kind.POSITIONAL_OR_KEYWORD, 1e-3)
    for parameter in (first, second, *options):
        assert parameter.annotation is not Kind.empty, parameter.name
    for parameter in options:
        assert parameter.kind is Kind.KEYWORD_ONLY, parameter.name
        assert parameter.default is not Kind.empty, parameter.name


def test_every_option_is_documented():
    for name in list(inspect.signature(Arturo).parameters):
        assert f"        {name}: " in Arturo.__doc__, name


@pytest.mark.parametrize("name", [name for name in OURS if not name.startswith("_")])
def test_public_methods_are_annotated_and_documented(name):
    member = getattr(Arturo, name)
    member = getattr(member, "fget", member)
    assert member.__doc__
    signature = inspect.signature(member)
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.name in ("self", "cls") or parameter.annotation is not Kind.empty


def test_paper_has_the_published_defaults():
    given = {name: parameter.default for name, parameter in inspect.signature(Arturo.paper).parameters.items()}
    published = {
        "kl_bound": 0.00278750,
        "temperature": 0.296786,
        "measurement_noise": 1.21975,
        "process_noise": 0.00245526,
        "weight_decay": 0.0,
        "init_variance": 0.01,
        "prior_precision": 0.0015,
        "init_covariance": 5e-5,
        "precision_momentum": 1.3,
        "init_hessian": 0.1,
        "kl_rtol": 1e-3,
    }
    assert {name: given[name] for name in published} == published
    optimizer = Arturo.paper([Parameter(torch.ones(2))])
    assert optimizer.param_groups[0]["lr"] == 0.00278750
    assert isinstance(optimizer, Arturo)


def test_step_is_profiled_and_takes_its_closure_by_keyword():
    """torch wraps ``step`` for hooks and profiles; distributed checkpointing calls ``step(closure=None)``."""
    optimizer = Arturo([Parameter(torch.ones(2))])
    assert Arturo.step.hooked
    assert optimizer.step(closure=None) is None


def test_class_attributes_do_not_shadow_instances():
    """Wrappers that subclass the optimizer's class read class attributes before the wrapped instance's."""
    data = [name for name, member in OURS.items() if not callable(member) and not name.startswith("__")]
    assert [name for name in data if not isinstance(OURS[name], (classmethod, staticmethod, property))] in (
        [],
        ["_abc_impl"],
    )
