"""The optimizer's diagnostics in the Trainer's logs."""

from __future__ import annotations

import ast
import json
import math
import warnings
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch
from tiny_trainer import arturo_of, tiny_arguments, tiny_dataset, tiny_model, tiny_trainer
from transformers import Trainer, TrainerCallback

from arturo_core import Arturo
from arturo_core.reporting.advice import ArturoAdvice
from arturo_integrations.metrics import loggable
from arturo_integrations.transformers import ArturoDiagnosticsCallback, log_layers


def arturo_keys(record):
    return {key for key in record if key.startswith("arturo/")}


def loss_records(trainer):
    return [record for record in trainer.state.log_history if "loss" in record]


class LogKeeper(TrainerCallback):
    """A user's callback: what it sees is what a reporter sees."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(dict(logs))


def test_every_number_of_the_diagnostics_is_in_the_log_history(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=3)
    trainer.train()
    records = loss_records(trainer)
    assert len(records) == 3
    assert {"arturo/eta", "arturo/kl", "arturo/kl_bound", "arturo/bound_active"} <= arturo_keys(records[-1])
    expected = loggable(arturo_of(trainer).diagnostics())
    assert {key: records[-1][key] for key in arturo_keys(records[-1])} == expected
    for record in records:
        assert record["arturo/kl_bound"] > 0
        assert all(type(record[key]) in (int, float) for key in arturo_keys(record))
        assert all(math.isfinite(record[key]) for key in arturo_keys(record))


def test_other_records_are_left_alone(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=2, eval_strategy="no")
    trainer.train()
    trainer.evaluate(tiny_dataset())
    others = [record for record in trainer.state.log_history if "loss" not in record]
    assert {"train_loss", "eval_loss"} <= set().union(*others)
    assert not any(arturo_keys(record) for record in others)


def test_the_log_history_in_a_checkpoint_holds_them(tmp_path):
    tiny_trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert all("arturo/eta" in record for record in state["log_history"] if "loss" in record)


def test_tensorboard_receives_them(tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.chdir(tmp_path)  # some versions write below the working directory, others below output_dir
    trainer = tiny_trainer(tmp_path / "run", max_steps=2, report_to=["tensorboard"])
    trainer.train()
    (event_file,) = tmp_path.rglob("events.out.tfevents.*")
    events = accumulator.EventAccumulator(str(event_file))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    records = loss_records(trainer)
    assert {f"train/{key}" for key in arturo_keys(records[-1])} <= tags
    for key in ("arturo/eta", "arturo/bound_active", "arturo/skipped_steps"):
        written = [(event.step, event.value) for event in events.Scalars(f"train/{key}")]
        assert written == [(record["step"], pytest.approx(record[key], rel=1e-6)) for record in records]


CONSOLE = {"arturo/eta", "arturo/kl_ratio", "arturo/bound_active", "arturo/step_rms", "arturo/skipped_steps"}


@pytest.mark.parametrize("quiet", [True, False], ids=["printer", "progress bar"])
def test_later_callbacks_receive_them_and_the_console_a_few(tmp_path, capsys, quiet):
    keeper = LogKeeper()
    added_later = LogKeeper()
    trainer = tiny_trainer(tmp_path, max_steps=2, callbacks=[keeper], disable_tqdm=quiet)
    trainer.add_callback(added_later)
    trainer.train()
    records = loss_records(trainer)
    for one in (keeper, added_later):
        assert [arturo_keys(seen) for seen in one.seen if "loss" in seen] == [arturo_keys(r) for r in records]
    assert len(arturo_keys(records[-1])) > 12
    printed = [line for line in capsys.readouterr().out.splitlines() if "'loss'" in line]
    assert len(printed) == 2
    for line in printed:
        shown = ast.literal_eval(line.strip())
        assert arturo_keys(shown) == CONSOLE
        assert {"loss", "learning_rate", "epoch"} <= shown.keys()


def test_the_console_shows_records_without_our_numbers_as_they_are(tmp_path, capsys):
    tiny_trainer(tmp_path, max_steps=2, optim="adamw_torch", eval_strategy="no").train()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    for line in lines[:2]:
        assert ast.literal_eval(line).keys() - {"grad_norm"} == {"loss", "learning_rate", "epoch"}
    assert "total_flos" not in lines[-1]
    assert "train_runtime" in lines[-1]


@pytest.mark.parametrize("value", ["0", "false", "No", "OFF", " 0 "])
def test_one_switch_turns_numbers_and_advice_off(tmp_path, monkeypatch, value):
    monkeypatch.setenv("ARTURO_MONITOR", value)
    keeper = LogKeeper()
    own = ArturoDiagnosticsCallback(per_layer=True)
    trainer = tiny_trainer(tmp_path, max_steps=2, learning_rate=0.5, callbacks=[keeper, own])
    log_layers(trainer)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ArturoAdvice)
        trainer.train()
    assert len(loss_records(trainer)) == 2
    assert not any(arturo_keys(record) for record in [*trainer.state.log_history, *keeper.seen])
    assert not arturo_of(trainer)._optimizer_step_pre_hooks, "no layer is watched"
    assert arturo_of(trainer).diagnostics()["steps"] == 2


@pytest.mark.parametrize("value", ["1", "true", "", "yes"])
def test_other_values_of_the_switch_leave_it_on(tmp_path, monkeypatch, value):
    monkeypatch.setenv("ARTURO_MONITOR", value)
    trainer = tiny_trainer(tmp_path, max_steps=1)
    trainer.train()
    assert "arturo/eta" in loss_records(trainer)[0]


def test_a_run_with_another_optimizer_is_untouched(tmp_path, monkeypatch):
    def refuse(self):
        raise AssertionError("diagnostics were asked for")

    monkeypatch.setattr(Arturo, "diagnostics", refuse)
    keeper = LogKeeper()
    trainer = tiny_trainer(tmp_path, max_steps=2, optim="adamw_torch", callbacks=[keeper])
    trainer.train()
    assert len(loss_records(trainer)) == 2
    assert not any(arturo_keys(record) for record in [*trainer.state.log_history, *keeper.seen])


def test_adding_the_callback_once_more_does_not_log_twice(tmp_path, monkeypatch):
    calls = []
    diagnostics = Arturo.diagnostics
    monkeypatch.setattr(Arturo, "diagnostics", lambda self: (calls.append(self), diagnostics(self))[1])
    trainer = tiny_trainer(tmp_path, max_steps=3, callbacks=[ArturoDiagnosticsCallback()])
    trainer.train()
    assert len(calls) == len(loss_records(trainer)) == 3


def test_diagnostics_are_read_only_when_something_is_logged(tmp_path, monkeypatch):
    calls = []
    diagnostics = Arturo.diagnostics
    monkeypatch.setattr(Arturo, "diagnostics", lambda self: (calls.append(self), diagnostics(self))[1])
    tiny_trainer(tmp_path, max_steps=4, logging_steps=2).train()
    assert len(calls) == 2


def test_an_optimizer_passed_in_ready_made_is_logged_too(tmp_path):
    model = tiny_model()
    optimizer = Arturo(model.parameters(), lr=1e-3)
    args = tiny_arguments(tmp_path, max_steps=1, optim="adamw_torch")
    trainer = Trainer(model, args, train_dataset=tiny_dataset(), optimizers=(optimizer, None))
    trainer.train()
    assert "arturo/eta" in loss_records(trainer)[-1]


@pytest.mark.parametrize(
    ("stored", "is_extended"),
    [
        ([{"loss": math.nan, "step": 7}], True),
        ([{"loss": 1.0, "step": 6}], False),
        ([{"eval_loss": 1.0, "step": 7}], False),
        ([], None),
    ],
    ids=["loss is nan", "earlier step", "evaluation", "nothing stored"],
)
def test_only_the_record_of_the_same_step_is_extended(stored, is_extended):
    optimizer = Arturo([torch.nn.Parameter(torch.ones(2))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    optimizer.step()
    state = SimpleNamespace(log_history=stored, global_step=7)
    logs = {"loss": math.nan}
    ArturoDiagnosticsCallback().on_log(None, state, None, logs=logs, optimizer=optimizer)
    assert "arturo/kl_bound" in logs
    assert [bool(arturo_keys(record)) for record in stored] == [is_extended] * len(stored)


def test_only_finite_numbers_are_logged_as_plain_python_numbers():
    numbers = loggable(
        {
            "eta": 1.5,
            "tensor": torch.tensor([0.25]),
            "count": 3,
            "yes": True,
            "no": torch.tensor(False),
            "none": None,
            "nan": math.nan,
            "inf": torch.tensor(math.inf),
            "text": "1.0",
            "vector": torch.ones(2),
            "list": [1.0],
        }
    )
    expected = {"arturo/eta": 1.5, "arturo/tensor": 0.25, "arturo/count": 3, "arturo/yes": 1, "arturo/no": 0}
    assert numbers == expected
    assert [type(value) for value in numbers.values()] == [float, float, int, int, int]


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_layers_are_logged_when_asked_for(tmp_path, strategy):
    trainer = tiny_trainer(tmp_path, max_steps=8, logging_strategy=strategy, logging_steps=2)
    keeper = LogKeeper()
    trainer.add_callback(keeper)
    log_layers(trainer)
    trainer.train()
    records = loss_records(trainer)
    assert len(records) >= 2
    names = {name for name, _ in trainer.model.named_parameters()}
    for record in records:
        spent = {key: value for key, value in record.items() if key.endswith("/kl")}
        spent.pop("arturo/kl", None)
        assert {key.removeprefix("arturo/layer/").removesuffix("/kl") for key in spent} == names
        assert sum(spent.values()) == pytest.approx(record["arturo/kl"], rel=1e-4)
        assert sum(value for key, value in record.items() if key.endswith("/kl_share")) == pytest.approx(1.0)
    assert not any(key.startswith("arturo/layer") for seen in keeper.seen for key in seen), "too many for the console"
    assert len({record["arturo/layer/" + min(names) + "/kl"] for record in records}) == len(records), "not stale"


def test_layers_are_logged_only_for_their_own_step(tmp_path):
    class LogsNow(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_log |= state.global_step == 3

    trainer = tiny_trainer(tmp_path, max_steps=5, logging_steps=2)
    trainer.add_callback(LogsNow())
    log_layers(trainer)
    trainer.train()
    layered = [any(key.startswith("arturo/layer") for key in record) for record in loss_records(trainer)]
    assert layered == [True, False, True]


def test_advice_ends_no_training_where_warnings_are_errors(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=2, learning_rate=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ArturoAdvice)
        trainer.train()
    assert trainer.state.global_step == 2


def test_layers_are_not_logged_otherwise(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=1)
    trainer.train()
    assert not any(key.startswith("arturo/layer") for record in loss_records(trainer) for key in record)


def test_asking_for_layers_without_the_callback_is_an_error(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=1)
    trainer.remove_callback(ArturoDiagnosticsCallback)
    with pytest.raises(ValueError, match=r"Import arturo_integrations\.transformers before"):
        log_layers(trainer)


def test_advice_follows_the_trainers_own_clipping(tmp_path):
    def advice(**arguments):
        trainer = tiny_trainer(tmp_path, max_steps=110, logging_steps=10, **arguments)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            trainer.train()
        return [str(one.message) for one in told if one.category is ArturoAdvice]

    (found,) = advice(max_grad_norm=1e-3)
    assert "clipping has rescaled the gradients" in found
    assert advice(max_grad_norm=0) == []
