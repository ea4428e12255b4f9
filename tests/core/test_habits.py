"""Options of other optimizers: each door says what they are and what stands for them, and the signature stays."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
from torch import nn

from arturo_core import Arturo
from arturo_core.habits import HABITS, SYNONYMS

#: What torch's optimizers call their options, and Arturo does not.
OF_TORCH = sorted(
    {
        name
        for one in vars(torch.optim).values()
        if inspect.isclass(one) and issubclass(one, torch.optim.Optimizer)
        for name in inspect.signature(one).parameters
    }
    - set(inspect.signature(Arturo).parameters)
    - {"defaults"}
)

VALUES: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8, "momentum": 0.9, "amsgrad": True, "fused": True}


def weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2))]


def test_the_table_has_the_options_of_torch() -> None:
    assert {"betas", "eps", "momentum", "amsgrad", "fused", "foreach", "nesterov", "dampening", "rho"} <= set(OF_TORCH)
    assert [name for name in OF_TORCH if name not in HABITS] == []
    assert not HABITS.keys() & inspect.signature(Arturo).parameters.keys(), "no option of ours is refused"


@pytest.mark.parametrize("build", [Arturo, Arturo.paper], ids=["Arturo", "paper"])
@pytest.mark.parametrize("name", OF_TORCH)
def test_given_to_the_constructor(name: str, build: Any) -> None:
    value = VALUES.get(name, 0.5)
    with pytest.raises(TypeError) as caught:
        build(weights(), **{name: value})
    text = str(caught.value)
    assert text.startswith(f"Arturo: {name}={value!r} is ")
    assert re.search("arTuRO|Give (lr|weight_decay) instead", text)
    assert "precision_momentum" not in text
    assert "unexpected keyword" not in text


@pytest.mark.parametrize("name", OF_TORCH)
def test_given_to_a_group(name: str) -> None:
    value = VALUES.get(name, 0.5)
    optimizer = Arturo(weights())
    for add in (lambda group: Arturo([group]), optimizer.add_param_group):
        with pytest.raises(ValueError, match=re.escape(f"{name}={value!r} is ")):
            add({"params": weights(), name: value})
    assert len(optimizer.param_groups) == 1, "nothing was added"


def test_what_is_off_asks_for_nothing() -> None:
    optimizer = Arturo([{"params": weights(), "fused": None, "foreach": False, "momentum": 0}])
    assert len(optimizer.param_groups) == 1


def test_minimize_is_the_reverse_of_maximize() -> None:
    with pytest.raises(TypeError, match="For minimize=False give maximize=True; otherwise leave it out"):
        Arturo(weights(), minimize=False)
    with pytest.raises(ValueError, match="For minimize=False give maximize=True"):
        Arturo([{"params": weights(), "minimize": False}])
    (group,) = Arturo([{"params": weights(), "minimize": True}]).param_groups
    assert group["maximize"] is False


def test_other_names_of_our_options_name_them() -> None:
    own = inspect.signature(Arturo).parameters
    for name, ours in SYNONYMS.items():
        assert ours in own
        assert f"Give {ours} instead" in HABITS[name]


def test_all_that_was_given_is_named_and_long_values_are_cut() -> None:
    with pytest.raises(TypeError) as caught:
        Arturo(weights(), betas=(0.9, 0.999), eps="x" * 10**6)
    assert "betas=(0.9, 0.999)" in str(caught.value)
    assert "eps='xxx" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_unknown_names_are_pythons_to_refuse() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'beetas'"):
        Arturo(weights(), beetas=(0.9, 0.999))


@pytest.mark.parametrize("momentum", ["0.9", None, True, [0.9]])
def test_the_schedulers_key_is_a_number(momentum: Any) -> None:
    with pytest.raises(TypeError, match=r"momentum=.* must be a number"):
        Arturo([{"params": weights(), "momentum": momentum}])


def test_groups_of_another_arturo_bring_what_its_scheduler_has_written() -> None:
    first = Arturo(weights())
    torch.optim.lr_scheduler.OneCycleLR(first, 1e-2, total_steps=5)
    second = Arturo([{**first.param_groups[0], "params": weights()}])
    assert second.param_groups[0]["momentum"] == 0.95


def test_the_signature_is_the_constructors_own() -> None:
    found = inspect.signature(Arturo)
    assert list(found.parameters)[:3] == ["params", "lr", "weight_decay"]
    kinds = {parameter.kind for parameter in found.parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
