"""Options of other optimizers: each door says what they are and what stands for them, and the signature stays."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
from torch import nn

from arturo_core import Arturo, habits
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

VALUES: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8, "momentum": 0.9, "amsgrad": True}


def weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2))]


def test_the_table_has_the_options_of_torch() -> None:
    assert {"betas", "eps", "momentum", "amsgrad", "foreach", "nesterov", "dampening", "rho"} <= set(OF_TORCH)
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


#: As Keras, optax, Megatron, apex and timm's command line have them, and in capitals.
OTHERWISE_NAMED = {
    "beta_1": "running means",
    "beta1": "running means",
    "b1": "running means",
    "B2": "running means",
    "Betas": "running means",
    "adam_betas": "running means",
    "mu": "running means",
    "Rho": "running means",
    "EPS": "denominator",
    "adam_eps": "denominator",
    "eps_root": "denominator",
    "opt-eps": "denominator",
    "Momentum": "averages gradients",
    "decay": "schedule",
    "clipnorm": "bound on gradients",
    "global_clipnorm": "bound on gradients",
    "AMSGrad": "bound on another optimizer's steps",
    "Learning_Rate": "Give lr instead",
    "learningRate": "Give lr instead",
    "WD": "Give weight_decay instead",
}
#: Our own options, spelled in another way.
OTHERWISE_SPELLED = {"LR": "lr", "weightDecay": "weight_decay", "Maximize": "maximize"}


@pytest.mark.parametrize("name", [*OTHERWISE_NAMED, *OTHERWISE_SPELLED])
def test_other_names_and_letters_get_the_same_answer_at_every_door(name: str) -> None:
    expected = OTHERWISE_NAMED.get(name) or f"another spelling of {OTHERWISE_SPELLED[name]}."
    said = re.compile(rf"{name}=0\.5 is .*{re.escape(expected)}")
    with pytest.raises(TypeError, match=said):
        Arturo(weights(), **{name: 0.5})
    with pytest.raises(TypeError, match=said):
        Arturo.paper(weights(), **{name: 0.5})
    with pytest.raises(ValueError, match=said):
        Arturo([{"params": weights(), name: 0.5}])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, False) for name in ("amsgrad", "AMSGRAD", "foreach", "nesterov", "use_ema")),
        *((name, None) for name in ("fused", "betas", "clipnorm")),
        *((name, 0) for name in ("momentum", "dampening", "decay", "max_grad_norm")),
        ("minimize", True),
    ],
)
def test_off_is_off_at_every_door(name: str, value: Any) -> None:
    for optimizer in (
        Arturo(weights(), lr=0.01, **{name: value}),
        Arturo.paper(weights(), 0.01, **{name: value}),
        Arturo([{"params": weights(), name: value}], lr=0.01),
    ):
        (group,) = optimizer.param_groups
        assert (group["lr"], group["weight_decay"], group["maximize"], group["momentum"]) == (0.01, 0.0, False, 0.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("eps", 0.0), ("weight_decouple", False), ("learning_rate", 0.0), ("wd", 0), ("minimize", False), ("beta1", 0.0)],
)
def test_what_is_not_off_is_refused_at_every_door(name: str, value: Any) -> None:
    said = re.escape(f"{name}={value!r} is ")
    with pytest.raises(TypeError, match=said):
        Arturo(weights(), **{name: value})
    with pytest.raises(ValueError, match=said):
        Arturo([{"params": weights(), name: value}])


def test_no_name_of_the_table_is_a_key_that_others_put_into_groups() -> None:
    theirs = ("params", "param_names", "name", "lr_scale", "lr_mult", "initial_lr", "max_lr", "min_lr", "swap", "step")
    theirs += ("max_momentum", "base_momentum", "peak_lr", "weight_decay_mult", "is_expert", "moe", "layer_decay")
    assert [name for name in theirs if habits.meaning(name, ("lr", "weight_decay", "maximize")) is not None] == []


@pytest.mark.parametrize("build", [Arturo, Arturo.paper], ids=["Arturo", "paper"])
def test_options_without_their_names(build: Any) -> None:
    with pytest.raises(TypeError) as caught:
        build(weights(), 1e-3, (0.9, 0.999), 1e-8)
    text = str(caught.value)
    assert text.startswith("Arturo: (0.9, 0.999), 1e-08 is positional, and only params and ")
    assert "If (0.9, 0.999) are betas, they are the decay rate" in text
    with pytest.raises(TypeError, match=r"0\.9 is positional.*If 0\.9 is momentum, it is how SGD averages"):
        build(weights(), 1e-3, 0.9)
    with pytest.raises(TypeError, match="'adaptive' is positional"):
        build(weights(), 1e-3, "adaptive")


def test_groups_that_sam_shares() -> None:
    """As its usual implementation does: its own options stand in the groups that it builds its base optimizer of."""
    optimizer = Arturo([{"params": weights(), "rho": 0.05, "adaptive": True, "alpha": 9.0, "sam_eps": 1e-12}])
    assert optimizer.param_groups[0]["rho"] == 0.05
    assert optimizer.param_groups[0]["alpha"] == 9.0
    for alone in ({"alpha": 0.9}, {"rho": 0.9}, {"alpha": 0.9, "adaptive": True}):
        with pytest.raises(ValueError, match="decay rate of another optimizer"):
            Arturo([{"params": weights(), **alone}])


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


@pytest.mark.parametrize("scheduler", ["one cycle", "cyclic"])
def test_a_momentum_that_a_scheduler_wrote_may_be_copied(scheduler: str) -> None:
    first = Arturo(weights(), lr=1e-3)
    if scheduler == "one cycle":
        cycle: Any = torch.optim.lr_scheduler.OneCycleLR(first, 1e-2, total_steps=5)
    else:
        cycle = torch.optim.lr_scheduler.CyclicLR(first, 1e-3, 1e-2, step_size_up=3)
    first.param_groups[0]["params"][0].grad = torch.ones(2)
    first.step()
    cycle.step()
    group = first.param_groups[0]
    written = group["momentum"]
    assert 0.8 < written < 0.95
    by_defaults = {key: group[key] for key in first.defaults}
    saved = {**first.state_dict()["param_groups"][0], "params": weights()}
    for copied in ({**group, "params": weights()}, {**by_defaults, "params": weights()}, saved):
        assert Arturo([copied]).param_groups[0]["momentum"] == written
    first.add_param_group({"params": weights(), "momentum": written})
    assert [one["momentum"] for one in first.param_groups] == [written, written]


def test_a_momentum_by_habit_is_told_who_writes_it() -> None:
    optimizer = Arturo(weights())
    with pytest.raises(ValueError, match=r"momentum=0\.9 is how SGD averages .* writes it by itself"):
        optimizer.add_param_group({"params": weights(), "lr": 1e-3, "momentum": 0.9})
    assert len(optimizer.param_groups) == 1


def test_the_signature_is_the_constructors_own() -> None:
    found = inspect.signature(Arturo)
    assert list(found.parameters)[:3] == ["params", "lr", "weight_decay"]
    kinds = {parameter.kind for parameter in found.parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
