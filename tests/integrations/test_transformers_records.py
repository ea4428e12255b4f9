"""Training records are known by what they are: trainers that call the loss by another name lose nothing."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch
from tiny_trainer import arturo_of, tiny_arguments, tiny_dataset, tiny_model, tiny_trainer
from transformers import Trainer, TrainerCallback

from arturo_core import Arturo
from arturo_core.reporting.advice import ArturoAdvice
from arturo_integrations.metrics import loggable
from arturo_integrations.transformers import ArturoDiagnosticsCallback, log_layers, records


def ours(record: dict[str, Any]) -> set[str]:
    return {key for key in record if key.startswith("arturo/")}


class Renaming(Trainer):
    """Logs as setfit's trainer does, or renames more."""

    def rename(self, key: str) -> str:
        return "embedding_loss" if key == "loss" else key

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        super().log({self.rename(key): value for key, value in logs.items()}, *args, **kwargs)


class Prefixing(Renaming):
    """Every name gets a prefix, as in some trainers' own dashboards."""

    def rename(self, key: str) -> str:
        return key if key.startswith(("eval", "train_", "total_flos")) else f"train/{key}"


class Bare(Renaming):
    """Neither learning rate nor norm, and the loss is called something else."""

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        kept = {key: value for key, value in logs.items() if key not in ("learning_rate", "grad_norm")}
        super().log({"objective" if key == "loss" else key: value for key, value in kept.items()}, *args, **kwargs)


class Adding(Trainer):
    """Adds metrics of its own, as TRL's trainers do, to evaluations too, and logs some from inside a step."""

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        mode = "" if self.model.training else "eval_"
        super().log({**logs, f"{mode}rewards/margin": 0.5, f"{mode}entropy": 1.0}, *args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        if self.model.training:
            Trainer.log(self, {"inside": 1.0})
        return super().compute_loss(*args, **kwargs)


class LogKeeper(TrainerCallback):
    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.seen.append(dict(logs))


def made(kind: type[Trainer], tmp_path: Any, **settings: Any) -> Trainer:
    data = tiny_dataset()
    return kind(tiny_model(), tiny_arguments(tmp_path, **settings), train_dataset=data, eval_dataset=data[:4])


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
@pytest.mark.parametrize("kind", [Trainer, Renaming, Prefixing, Bare, Adding])
def test_every_training_record_has_the_numbers_and_no_other_has(tmp_path, kind, strategy):
    trainer = made(kind, tmp_path, max_steps=8, logging_strategy=strategy, logging_steps=2, eval_strategy="epoch")
    keeper = LogKeeper()
    trainer.add_callback(keeper)
    trainer.train()
    history = trainer.state.log_history
    expected = [2, 4, 6, 8] if strategy == "steps" else [4, 8]
    assert [record["step"] for record in history if ours(record)] == expected
    assert len([record for record in keeper.seen if ours(record)]) == len(expected)
    others = set().union(*(record for record in history if not ours(record)))
    assert {"eval_loss", "eval_runtime", "train_loss", "train_runtime"} <= others
    last = [record for record in history if ours(record)][-1]
    assert {key: last[key] for key in ours(last)} == loggable(arturo_of(trainer).diagnostics())
    assert not any(ours(record) for record in history if "inside" in record)


def test_advice_comes_with_another_name_of_the_loss(tmp_path):
    trainer = made(Renaming, tmp_path, max_steps=2, learning_rate=0.5)
    with pytest.warns(ArturoAdvice, match=r"lr=0\.5 looks like"):
        trainer.train()


def test_tokens_are_counted_beside_them(tmp_path):
    """Trainer then says the speed, and so a runtime, in training records too."""
    trainer = made(Renaming, tmp_path, max_steps=2, include_num_input_tokens_seen="all")
    trainer.train()
    assert [record["step"] for record in trainer.state.log_history if ours(record)] == [1, 2]


TRAINING = [
    {"loss": 1.0, "learning_rate": 1e-5},
    {"learning_rate": 1e-5, "epoch": 0.5},
    {"loss": 1.0, "eval_of_probe": 0.5, "learning_rate": 1e-5},
    {"embedding_loss": 1.0, "learning_rate": 1e-5, "epoch": 0.5},
    {"polarity_loss": 1.0, "grad_norm": 2.0},
    {"train/loss": 1.0, "train/learning_rate": 1e-5},
    {"loss/policy_avg": 0.1, "val/ratio": 1.0, "lr": 1e-5},
    {"loss": 1.0, "learning_rate": 1e-5, "train_runtime": 3.0, "train_tokens_per_second": 7.0},
]
OTHERS = [
    {"eval_loss": 1.0, "eval_runtime": 2.0, "epoch": 1.0},
    {"eval_embedding_loss": 1.0, "eval_embedding_runtime": 2.0},
    {"eval_grad_norm": 1.0, "eval_learning_rate": 2.0},
    {"validation_score": 1.0, "validation_runtime": 2.0},
    {"test_accuracy": 1.0, "test_runtime": 2.0},
    {"loss": 1.0, "runtime": 2.0, "epoch": 1.0},
    {"loss": 1.0, "eval_runtime": 2.0},
    {"loss": 1.0, "val_accuracy": 0.5},
    {"eval_loss": 1.0, "eval_runtime": 2.0, "learning_rate": 1e-5},
    {"eval_loss": 1.0, "learning_rate": 1e-5, "epoch": 1.0},
    {"validation/loss": 1.0, "lr": 1e-5, "step": 3},
    {"train_loss": 0.5, "train_runtime": 9.0, "total_flos": 1.0, "learning_rate": 1e-5},
    {"train_runtime": 9.0, "train_samples_per_second": 3.0, "total_flos": 1.0, "train_loss": 0.5},
]


@pytest.mark.parametrize("due", [True, False])
def test_records_by_what_they_hold(due: bool) -> None:
    assert [record for record in TRAINING if not records.is_training(record, due)] == []
    assert [record for record in OTHERS if records.is_training(record, due)] == []
    assert records.is_training({"objective": 1.0, "epoch": 0.1}, due) == due
    assert records.is_training({"loss": 1.0}, due) == due, "evaluations log one too"
    assert records.is_training({"loss": 1.0}, None), "a loop that announces no steps"
    assert not records.is_training({"loss": 1.0, "runtime": 2.0}, None)


class OwnEvaluation(Trainer):
    """Logs what its evaluation finds without a prefix, and without how long it took."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.log({"loss": 0.25, "accuracy": 0.5})
        return {"eval_loss": 0.25}


class TimedEvaluation(Trainer):
    """Logs an evaluation's loss and its time, both without a prefix."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.log({"loss": 0.25, "runtime": 1.0})
        return {"eval_loss": 0.25}


class RateEverywhere(Trainer):
    """Writes the learning rate into all that it logs."""

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        super().log({**logs, "learning_rate": 1e-3}, *args, **kwargs)


@pytest.mark.parametrize("first_step", [False, True])
@pytest.mark.parametrize("eval_steps", [1, 2, 3])
@pytest.mark.parametrize("kind", [OwnEvaluation, TimedEvaluation, RateEverywhere])
def test_evaluations_with_the_names_of_training_are_none(tmp_path, kind, eval_steps, first_step):
    """At logged steps, at others, and where the last step of an epoch has been logged."""
    steps = {"logging_strategy": "steps", "logging_steps": 2, "logging_first_step": first_step}
    trainer = made(kind, tmp_path, max_steps=6, eval_strategy="steps", eval_steps=eval_steps, **steps)
    trainer.train()
    history = trainer.state.log_history
    assert [record["step"] for record in history if ours(record)] == ([1] if first_step else []) + [2, 4, 6]
    assert not any(record.get("loss") == 0.25 or "eval_loss" in record for record in history if ours(record))
    assert len([record for record in history if not ours(record)]) > 6 // eval_steps, "evaluations, and a summary"


def test_an_evaluation_at_the_end_of_an_epoch_whose_step_is_recorded_already(tmp_path):
    """Epochs of one step: the first is logged as the first step, and not again as the end of its epoch."""
    settings = {
        "logging_strategy": "epoch",
        "logging_first_step": True,
        "eval_strategy": "epoch",
        "num_train_epochs": 3,
    }
    data = tiny_dataset()[:4]
    args = tiny_arguments(tmp_path, max_steps=-1, per_device_train_batch_size=4, **settings)
    trainer = OwnEvaluation(tiny_model(), args, train_dataset=data, eval_dataset=data)
    trainer.train()
    history = trainer.state.log_history
    assert [record["step"] for record in history if ours(record)] == [1, 2, 3]
    assert not any(record.get("loss") == 0.25 for record in history if ours(record))


def test_arguments_and_model_are_the_trainers_own_where_setfit_puts_its_own_in_their_place(tmp_path):
    """Its callback handler passes its arguments, its model, and Trainer's as st_args and st_model."""
    trainer = made(Renaming, tmp_path, max_steps=110, logging_steps=10, max_grad_norm=1e-3)
    call, own, setfit = trainer.callback_handler.call_event, trainer.model, SimpleNamespace(embedding_num_epochs=1)

    def call_event(event: str, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        handler = trainer.callback_handler
        for callback in handler.callbacks:
            mine = isinstance(callback, ArturoDiagnosticsCallback)
            given = {"model": setfit, "st_model": own, "st_args": args} if mine else {"model": own}
            given |= {"optimizer": handler.optimizer, "train_dataloader": handler.train_dataloader}
            answer = getattr(callback, event)(setfit if mine else args, state, control, **given, **kwargs)
            control = control if answer is None else answer
        return control

    assert call is not None
    trainer.callback_handler.call_event = call_event
    log_layers(trainer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    texts = [str(one.message) for one in caught if one.category is ArturoAdvice]
    assert [text for text in texts if "clipping has rescaled" in text]
    found = [record for record in trainer.state.log_history if ours(record)]
    assert [record["step"] for record in found] == list(range(10, 111, 10))
    names = {name for name, _ in own.named_parameters()}
    assert {f"arturo/layer/{name}/kl_share" for name in names} <= ours(found[-1])


def test_habitual_training_arguments_that_nobody_reads(tmp_path):
    def texts(**settings: Any) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tiny_trainer(tmp_path, max_steps=1, **settings).train()
        return [str(one.message) for one in caught if one.category is ArturoAdvice]

    assert texts() == []
    (text,) = texts(adam_beta1=0.5)
    assert "TrainingArguments(adam_beta1=0.5) has no effect: adam_beta1 is" in text
    assert "Kalman filter" in text
    assert len(texts(adam_beta2=0.9, adam_epsilon=1e-6)) == 2
    assert texts(optim="adamw_torch", adam_beta1=0.5) == []


def test_a_ready_made_optimizer_with_a_schedule_that_cycles_momentum(tmp_path):
    model = tiny_model()
    optimizer = Arturo(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=9)
    args = tiny_arguments(tmp_path, max_steps=8, optim="adamw_torch")
    trainer = Trainer(model, args, train_dataset=tiny_dataset(), optimizers=(optimizer, schedule))
    trainer.train()
    logged = [record["learning_rate"] for record in trainer.state.log_history if "learning_rate" in record]
    weight = torch.nn.Parameter(torch.ones(1))
    other = Arturo([weight])
    by_hand = torch.optim.lr_scheduler.OneCycleLR(other, 5e-3, total_steps=9)
    expected = []
    for _ in range(8):
        expected.append(by_hand.get_last_lr()[0])
        weight.grad = torch.ones(1)
        other.step()
        by_hand.step()
    assert logged == pytest.approx(expected)
