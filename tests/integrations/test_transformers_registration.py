"""The name "arturo" in transformers' enum, arguments and parsers."""

from __future__ import annotations

import copy
import dataclasses
import enum
import json
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
from limits import HANGS

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch
import transformers.trainer as hf_trainer
from tiny_trainer import tiny_arguments
from transformers import HfArgumentParser, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from arturo_core import Arturo
from arturo_integrations.transformers import ArturoDiagnosticsCallback, register
from arturo_integrations.transformers.names import extend_enum


class Colour(str, enum.Enum):
    RED = "red"


def test_an_extended_enum_behaves_as_if_the_member_had_been_written_in_it():
    class Fruit(str, enum.Enum):
        APPLE = "apple"

    pear = extend_enum(Fruit, "PEAR", "pear")
    assert pear is Fruit("pear") is Fruit["PEAR"] is Fruit.PEAR
    assert isinstance(pear, Fruit)
    assert list(Fruit) == [Fruit.APPLE, pear]
    assert len(Fruit) == 2
    assert (pear.name, pear.value) == ("PEAR", "pear")
    assert pear == "pear"
    assert {"pear": 1}[pear] == 1
    assert pear in Fruit
    assert copy.deepcopy(pear) is pear
    assert repr(pear) == repr(Fruit.APPLE).replace("APPLE", "PEAR").replace("apple", "pear")
    with pytest.raises(ValueError, match="plum"):
        Fruit("plum")


def test_an_extended_enum_pickles_and_is_extended_once():
    blue = extend_enum(Colour, "BLUE", "blue")
    assert extend_enum(Colour, "BLUE", "blue") is blue
    assert len(Colour) == 2
    assert pickle.loads(pickle.dumps(blue)) is blue


def test_registration_can_be_repeated():
    lookup = Trainer.get_optimizer_cls_and_kwargs
    members = len(OptimizerNames)
    register()
    assert Trainer.get_optimizer_cls_and_kwargs is lookup
    assert len(OptimizerNames) == members
    assert hf_trainer.DEFAULT_CALLBACKS.count(ArturoDiagnosticsCallback) == 1


def test_training_arguments_hold_the_name_and_write_it_as_text(tmp_path):
    args = tiny_arguments(tmp_path, optim_args="kl_rtol=1e-3,noise=fixed")
    assert args.optim is OptimizerNames("arturo")
    assert args.to_dict()["optim"] == "arturo"
    assert json.loads(args.to_json_string())["optim"] == "arturo"
    assert type(TrainingArguments(output_dir=str(tmp_path)).optim)("arturo") is args.optim  # hyper-parameter search
    assert args.set_optimizer("arturo").optim is args.optim


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        copy.copy,
        dataclasses.replace,
        *(lambda args, p=p: pickle.loads(pickle.dumps(args, p)) for p in range(2, pickle.HIGHEST_PROTOCOL + 1)),
    ],
)
def test_training_arguments_survive_being_copied(tmp_path, duplicate):
    args = duplicate(tiny_arguments(tmp_path, optim_args="noise=fixed"))
    assert args.optim is OptimizerNames("arturo")
    assert args.optim_args == "noise=fixed"
    cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
    assert cls is Arturo
    assert kwargs["noise"] == "fixed"


def test_the_argument_parser_accepts_the_name(tmp_path):
    parser = HfArgumentParser(TrainingArguments)
    command_line = [
        "--output_dir",
        str(tmp_path),
        "--optim",
        "arturo",
        "--optim_args",
        "kl_rtol=0.01",
        "--use_cpu",
    ]
    (args,) = parser.parse_args_into_dataclasses(command_line)
    assert args.optim is OptimizerNames("arturo")
    assert Trainer.get_optimizer_cls_and_kwargs(args)[1]["kl_rtol"] == 0.01
    (args,) = parser.parse_dict({"output_dir": str(tmp_path), "optim": "arturo"})
    assert args.optim is OptimizerNames("arturo")


def test_the_lookup_does_not_need_a_model_and_leaves_other_optimizers_alone(tmp_path):
    cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(tiny_arguments(tmp_path, learning_rate=3e-4), None)
    assert cls is Arturo
    assert kwargs == {"lr": 3e-4}
    cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(tiny_arguments(tmp_path, optim="sgd"))
    assert cls is torch.optim.SGD
    assert kwargs["lr"] == 1e-3


def test_the_lookup_can_be_overridden_and_extended_by_a_subclass(tmp_path):
    class Doubled(Trainer):
        @staticmethod
        def get_optimizer_cls_and_kwargs(args, model=None):
            cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
            return cls, {**kwargs, "lr": 2 * kwargs["lr"]}

    assert Doubled.get_optimizer_cls_and_kwargs(tiny_arguments(tmp_path)) == (Arturo, {"lr": 2e-3})


def test_the_handler_table_of_transformers_5_answers_too(tmp_path):
    module = pytest.importorskip("transformers.trainer_optimizer", reason="there is a handler table in 5.x only")
    args = tiny_arguments(tmp_path, optim_args="kl_rtol=0.5")
    context = module.OptimizerContext(args, None, {"lr": args.learning_rate}, {}, {"kl_rtol": "0.5"})
    for key in ("arturo", OptimizerNames("arturo")):
        assert module._OPTIMIZER_HANDLERS[key](context) == (Arturo, {"lr": 1e-3, "kl_rtol": 0.5})


def test_optimizer_offload_that_replaces_the_optimizer_is_refused(tmp_path):
    args = tiny_arguments(tmp_path)
    offload = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    args.deepspeed_plugin = SimpleNamespace(deepspeed_config=offload)
    with pytest.raises(ValueError, match='"zero_force_ds_cpu_optimizer": false'):
        Trainer.get_optimizer_cls_and_kwargs(args)
    for kept in ({**offload, "zero_force_ds_cpu_optimizer": False}, {"zero_optimization": {"stage": 2}}, {}):
        args.deepspeed_plugin = SimpleNamespace(deepspeed_config=kept)
        assert Trainer.get_optimizer_cls_and_kwargs(args)[0] is Arturo


UNREGISTERED = """
import sys, torch
from transformers import HfArgumentParser, TrainingArguments

command_line = ["--output_dir", "unused", "--use_cpu", "--optim", "arturo"]
try:
    HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(command_line)
except SystemExit as error:
    print("parser before the import:", error.code)
assert "arturo_integrations" not in sys.modules
args = torch.load(sys.argv[1], weights_only=False)
print("read:", type(args.optim).__name__, args.optim.value, args.optim_args)
(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(command_line)
print("parser after the import:", args.optim.value)
"""


def test_a_process_that_never_imported_the_integration_reads_saved_training_arguments(tmp_path):
    path = tmp_path / "training_args.bin"  # as Trainer.save_model writes it
    torch.save(tiny_arguments(tmp_path, optim_args="noise=fixed"), path)
    run = subprocess.run([sys.executable, "-c", UNREGISTERED, path], capture_output=True, text=True, timeout=HANGS)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "parser before the import: 2",
        "read: OptimizerNames arturo noise=fixed",
        "parser after the import: arturo",
    ]
