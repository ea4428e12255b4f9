"""TrainingArguments.optim_args as typed options of the constructor."""

from __future__ import annotations

import inspect
import typing

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch
from tiny_trainer import tiny_arguments
from transformers import Trainer

from arturo_core import Arturo
from arturo_integrations.transformers import arturo_kwargs
from arturo_integrations.transformers.options import text_options


def options(optim_args):
    kwargs = arturo_kwargs(optim_args, learning_rate=5e-5)
    assert kwargs.pop("lr") == 5e-5
    return kwargs


def identical(left, right):
    return left == right and type(left) is type(right)


@pytest.mark.parametrize(
    ("optim_args", "key", "value"),
    [
        ("kl_rtol=1e-2", "kl_rtol", 0.01),
        ("kl_rtol=1", "kl_rtol", 1.0),
        ("noise=fixed", "noise", "fixed"),
        ("trust_region=kl", "trust_region", "kl"),
        ("maximize=true", "maximize", True),
        ("maximize=False", "maximize", False),
        ("maximize=0", "maximize", False),
        ("maximize=YES", "maximize", True),
        ("maximize=no", "maximize", False),
        ("temperature=none", "temperature", None),
        ("temperature=None", "temperature", None),
        ("temperature=0.25", "temperature", 0.25),
        ("state_dtype=bfloat16", "state_dtype", torch.bfloat16),
        ("state_dtype=torch.bfloat16", "state_dtype", torch.bfloat16),
        ("state_dtype=8bit", "state_dtype", "8bit"),
        ("state_dtype= 8BIT ", "state_dtype", "8bit"),
    ],
)
def test_values_get_the_type_of_the_constructors_annotation(optim_args, key, value):
    parsed = options(optim_args)
    assert list(parsed) == [key]
    assert identical(parsed[key], value)


def test_spaces_and_trailing_commas_are_tolerated():
    expected = {"kl_rtol": 0.01, "noise": "fixed"}
    assert options(" kl_rtol = 1e-2 , noise=fixed ,") == expected
    assert options({"kl_rtol": 1e-2, "noise": "fixed"}) == expected
    assert options(None) == options("") == options(" , ") == {}


def test_every_option_of_the_constructor_can_be_written_except_those_the_trainer_sets():
    parameters = set(inspect.signature(Arturo).parameters)
    assert parameters - set(text_options()) == {"params", "lr", "weight_decay", "process_group"}


def test_every_default_of_the_constructor_survives_being_written_as_text():
    for name, parameter in inspect.signature(Arturo).parameters.items():
        if name in text_options():
            assert identical(options(f"{name}={parameter.default}")[name], parameter.default), name


def test_every_choice_is_accepted():
    for name, annotation in text_options().items():
        for choice in typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ():
            assert options(f"{name}={choice}")[name] == choice


def test_a_bound_in_nats_takes_the_place_of_the_learning_rate():
    assert arturo_kwargs("kl_bound=0.003", 5e-5) == {"lr": 0.003, "trust_region": "kl"}
    for optim_args in ("kl_bound=0.003,trust_region=kl", "trust_region=kl,kl_bound=0.003"):
        assert arturo_kwargs(optim_args, 5e-5) == {"lr": 0.003, "trust_region": "kl"}
    assert arturo_kwargs("trust_region=kl", 5e-5) == {"lr": 5e-5, "trust_region": "kl"}


@pytest.mark.parametrize(
    ("optim_args", "mentions"),
    [
        (
            "kl_rtoll=1",
            ["unknown key 'kl_rtoll'", "Did you mean 'kl_rtol'?", "kl_bound", "noise", "state_dtype"],
        ),
        ("xyzzy=1", ["unknown key 'xyzzy'", "xyzzy=1", "Valid keys", "kl_rtol"]),
        ("kl_rtol=small", ["kl_rtol=small", "a number"]),
        ("kl_rtol=nan", ["kl_rtol=nan", "a number"]),
        ("temperature=warm", ["temperature=warm", "a number or none"]),
        ("noise=loud", ["noise=loud", "adaptive or fixed"]),
        ("noise=none", ["noise=none", "adaptive or fixed"]),
        ("maximize=maybe", ["maximize=maybe", "true or false"]),
        ("state_dtype=float33", ["state_dtype=float33", "bfloat16"]),
        ("state_dtype=4bit", ["state_dtype=4bit", "8bit"]),
        ("state_dtype=nn", ["state_dtype=nn", "bfloat16"]),
        ("kl_rtol", ["'kl_rtol'", "key=value"]),
        ("kl_rtol=", ["'kl_rtol='", "key=value"]),
        ("=1", ["'=1'", "key=value"]),
        ("kl_rtol=1=2", ["kl_rtol=1=2", "a number"]),
        ("noise=fixed,noise=adaptive", ["'noise' is given twice", "fixed", "adaptive"]),
        ("lr=1e-3", ["lr=1e-3", "learning_rate", "kl_bound"]),
        ("learning_rate=1e-3", ["another name of 'lr'", "set TrainingArguments(learning_rate=...)"]),
        ("lrate=1e-3", ["another name of 'lr'", "set TrainingArguments(learning_rate=...)"]),
        ("wd=0.1", ["another name of 'weight_decay'", "set TrainingArguments(weight_decay=...)"]),
        ("l2=0.1", ["another name of 'weight_decay'", "set TrainingArguments(weight_decay=...)"]),
        ("minimize=false", ["For minimize=False give maximize=True"]),
        ("weight_decay=0.1", ["weight_decay=0.1", "TrainingArguments(weight_decay"]),
        ("params=all", ["params=all", "the Trainer passes"]),
        ("process_group=world", ["process_group=world", "optimizer_cls_and_kwargs"]),
        ("kl_bound=0", ["kl_bound=0", "positive"]),
        ("kl_bound=-1", ["kl_bound=-1", "positive"]),
        ("kl_bound=inf", ["kl_bound=inf", "finite"]),
        ("kl_bound=big", ["kl_bound=big", "a number"]),
        ("kl_bound=0.1,trust_region=rms", ["kl_bound=0.1", "trust_region=rms"]),
        ("trust_region=rms,kl_bound=0.1", ["kl_bound=0.1", "trust_region=rms"]),
    ],
)
def test_mistakes_are_named_with_what_would_have_been_right(optim_args, mentions):
    with pytest.raises(ValueError, match="optim_args") as error:
        arturo_kwargs(optim_args, 5e-5)
    for mention in mentions:
        assert mention in str(error.value)


@pytest.mark.parametrize("name", ["betas", "eps", "momentum", "amsgrad", "foreach", "nesterov", "adam_beta1", "rho"])
def test_options_of_other_optimizers_are_explained(name):
    for given in (f"{name}=0.9", f"kl_rtol=1e-3,{name}=(0.9, 0.999)", {name: 0.9}):
        with pytest.raises(ValueError, match=rf"^optim_args: {name}=.* is .*arTuRO") as error:
            arturo_kwargs(given, 5e-5)
        assert "Did you mean" not in str(error.value)
        assert "precision_momentum" not in str(error.value)


@pytest.mark.parametrize("name", ["beta_1", "b1", "adam_eps", "mu", "Betas", "EPS", "clipnorm", "decay"])
def test_by_other_names_and_in_capitals_too(name):
    with pytest.raises(ValueError, match=rf"^optim_args: {name}=0\.9 is .*arTuRO"):
        arturo_kwargs(f"{name}=0.9", 5e-5)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("learning_rate", "learning_rate=..."),
        ("LR", "learning_rate=..."),
        ("wd", "TrainingArguments(weight_decay=...)"),
        ("weightDecay", "TrainingArguments(weight_decay=...)"),
    ],
)
def test_other_names_of_what_the_trainer_sets(name, advice):
    with pytest.raises(ValueError, match=f"'{name}' is another name of .*, which cannot be set here") as error:
        arturo_kwargs(f"{name}=0.1", 5e-5)
    assert advice in str(error.value)


def test_another_spelling_of_an_option():
    with pytest.raises(ValueError, match=r"KL_rtol=1e-3 is another spelling of kl_rtol\. Give kl_rtol instead"):
        arturo_kwargs("KL_rtol=1e-3", 5e-5)


@pytest.mark.parametrize("off", ["amsgrad=False", "AMSGrad=no", "foreach=none", "momentum=0.0", "betas=None"])
def test_what_is_off_asks_for_nothing(off):
    expected = {"lr": 5e-5, "kl_rtol": 0.01}
    assert arturo_kwargs(f"{off},kl_rtol=1e-2", 5e-5) == expected
    assert arturo_kwargs(dict([off.split("="), ("kl_rtol", 0.01)]), 5e-5) == expected


@pytest.mark.parametrize("asked", ["amsgrad=true", "eps=0", "minimize=false", "weight_decouple=false", "momentum=off"])
def test_what_is_not_off_is_explained(asked):
    with pytest.raises(ValueError, match=f"^optim_args: {asked} is "):
        arturo_kwargs(asked, 5e-5)


MUCH = "x" * 1_000_000


@pytest.mark.parametrize(
    "optim_args",
    [
        MUCH,
        f"{MUCH}=1",
        f"kl_rtol={MUCH}",
        f"noise={MUCH}",
        f"state_dtype={MUCH}",
        f"lr={MUCH}",
        f"params={MUCH}",
        f"betas={MUCH}",
        f"kl_bound={MUCH}",
        f"kl_bound=-1{'0' * 300}{MUCH}",
        f"noise={MUCH},noise={MUCH}",
        f"{MUCH}=1,{MUCH}=2",
        f"={MUCH}",
        "x" * 1000 + ",kl_rtol=1" * 1000,
        f"kl_bound=0.1{'0' * 1_000_000},trust_region=rms",
        {MUCH: 1},
        {"kl_rtol": MUCH},
        {"noise": MUCH},
    ],
    ids=range(18),
)
def test_long_texts_are_not_repeated_whole(optim_args):
    with pytest.raises(ValueError, match="optim_args") as error:
        arturo_kwargs(optim_args, 5e-5)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("optim_args", ["kl_rtol=1e-2,", "kl_rtol = 1e-2"])
def test_the_trainers_own_splitting_of_the_text_does_not_get_in_the_way(tmp_path, optim_args):
    args = tiny_arguments(tmp_path, optim_args=optim_args)
    assert Trainer.get_optimizer_cls_and_kwargs(args)[1]["kl_rtol"] == 0.01


def test_a_malformed_text_is_explained_through_the_trainer_too(tmp_path):
    args = tiny_arguments(tmp_path, optim_args="kl_rtol")
    with pytest.raises(ValueError, match="not of the form key=value"):
        Trainer.get_optimizer_cls_and_kwargs(args)
