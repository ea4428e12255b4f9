"""Whole training runs through the Trainer."""

from __future__ import annotations

import functools
import logging
import shutil

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch
from tiny_trainer import (
    Recorder,
    arturo_of,
    assert_identical,
    changed,
    tiny_model,
    tiny_trainer,
    weights,
)

from arturo_core import Arturo
from arturo_integrations.transformers import registry


def floating_state(optimizer):
    tensors = [value for state in optimizer.state.values() for value in state.values()]
    return [t for t in tensors if isinstance(t, torch.Tensor) and t.is_floating_point() and t.dim() > 0]


def all_finite(model):
    return all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_training_lowers_the_loss(tmp_path):
    model = tiny_model(dropout=0.0)
    trainer = tiny_trainer(
        tmp_path,
        model,
        max_steps=30,
        per_device_train_batch_size=16,
        lr_scheduler_type="constant",
        learning_rate=3e-3,
    )
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert len(losses) == 30
    assert losses[-1] < 0.8 * losses[0]


def test_options_reach_the_constructor_with_their_types(tmp_path, monkeypatch):
    seen = {}
    constructor = Arturo.__init__

    @functools.wraps(constructor)
    def spy(self, params, **kwargs):
        seen.update(kwargs)
        constructor(self, params, **kwargs)

    monkeypatch.setattr(Arturo, "__init__", spy)
    trainer = tiny_trainer(tmp_path, optim_args="kl_bound=0.003, noise=fixed, maximize=False")
    trainer.create_optimizer()
    assert seen == {"lr": 0.003, "trust_region": "kl", "noise": "fixed", "maximize": False}
    assert {group["lr"] for group in arturo_of(trainer).param_groups} == {0.003}


def test_a_bound_in_nats_is_scheduled_and_kept(tmp_path):
    optim_args = "kl_bound=0.003, noise=fixed, kl_rtol=1e-3"
    trainer = tiny_trainer(tmp_path, max_steps=3, lr_scheduler_type="linear", optim_args=optim_args)
    trainer.train()
    records = [record for record in trainer.state.log_history if "loss" in record]
    assert [record["arturo/kl_bound"] for record in records] == pytest.approx([0.003, 0.002, 0.001], rel=1e-5)
    for record in records:
        assert 0 < record["arturo/kl"] <= record["arturo/kl_bound"] * 1.001


def test_the_trainers_weight_decay_groups_are_honoured(tmp_path):
    trainer = tiny_trainer(tmp_path, weight_decay=0.1)
    trainer.create_optimizer()
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    decays = {
        names[parameter]: group["weight_decay"]
        for group in arturo_of(trainer).param_groups
        for parameter in group["params"]
    }
    assert decays.keys() == set(names.values())
    assert {name for name, decay in decays.items() if decay == 0} == {
        name for name in decays if "bias" in name or "LayerNorm" in name
    }
    assert set(decays.values()) == {0.0, 0.1}


def test_weight_decay_changes_the_run(tmp_path):
    runs = []
    for decay in (0.0, 0.5):
        trainer = tiny_trainer(tmp_path, weight_decay=decay)
        trainer.train()
        runs.append(weights(trainer.model))
    assert "classifier.weight" in changed(*runs)


@pytest.mark.parametrize("precision", ["float32", "bfloat16 weights", "bfloat16 autocast"])
def test_a_resumed_run_continues_bit_for_bit(tmp_path, precision):
    def run(folder, seed, **resume):
        model = tiny_model(seed)
        if precision == "bfloat16 weights":
            model.to(torch.bfloat16)
        trainer = tiny_trainer(
            tmp_path / folder,
            model,
            max_steps=6,
            save_strategy="steps",
            save_steps=3,
            warmup_steps=1,
            bf16=precision == "bfloat16 autocast",
        )
        trainer.train(**resume)
        return trainer

    whole = run("whole", seed=0)
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    resumed = run("resumed", seed=1, resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 6
    assert_identical(weights(whole.model), weights(resumed.model))
    assert_identical(arturo_of(whole).state_dict(), arturo_of(resumed).state_dict())
    assert arturo_of(resumed).state_dict()["state"], "nothing was compared"
    assert {tensor.dtype for tensor in floating_state(arturo_of(resumed))} == {torch.float32}
    assert all_finite(resumed.model)
    # The comparison must be able to fail: without the optimizer's file the run continues differently.
    forgetful = tmp_path / "forgetful"
    shutil.copytree(checkpoint, forgetful)
    (forgetful / "optimizer.pt").unlink()
    fresh = run("fresh", seed=1, resume_from_checkpoint=str(forgetful))
    assert changed(weights(whole.model), weights(fresh.model))


def test_diagnostics_of_a_resumed_run_equal_those_of_the_whole_run(tmp_path):
    whole = tiny_trainer(tmp_path / "whole", max_steps=4, save_strategy="steps", save_steps=2)
    whole.train()
    resumed = tiny_trainer(tmp_path / "resumed", tiny_model(1), max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))

    def records(trainer):
        return [
            {key: value for key, value in record.items() if key.startswith("arturo/") or key == "step"}
            for record in trainer.state.log_history
            if "loss" in record
        ]

    assert records(resumed) == records(whole)
    assert len(records(whole)) == 4


def test_warm_up_from_zero_leaves_the_weights_and_then_moves_them(tmp_path):
    model = tiny_model()
    before = weights(model)
    recorder = Recorder()
    trainer = tiny_trainer(tmp_path, model, max_steps=4, warmup_steps=3, callbacks=[recorder])
    trainer.train()
    assert recorder.learning_rates[0] == 0
    assert recorder.learning_rates[1] > 0
    assert not changed(before, recorder.weights[0])
    assert len(changed(before, recorder.weights[1])) > len(before) / 2
    assert all_finite(model)
    assert arturo_of(trainer).diagnostics()["skipped_steps"] == 0


def test_gradient_accumulation_steps_once_on_the_averaged_gradient(tmp_path):
    recorders = []
    for batch, accumulation in ((4, 1), (2, 2)):
        recorder = Recorder()
        trainer = tiny_trainer(
            tmp_path,
            tiny_model(dropout=0.0),
            max_steps=3,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            callbacks=[recorder],
        )
        # Else the Trainer takes BERT's mean over a batch for a sum that is normalised already, and adds them.
        trainer.model_accepts_loss_kwargs = False
        trainer.train()
        recorders.append(recorder)
    whole, accumulated = recorders
    assert whole.steps == accumulated.steps == 3
    assert accumulated.gradient_norms[0] == pytest.approx(whole.gradient_norms[0], rel=1e-4)


def test_clipping_can_be_on_or_off_and_is_explained_once(tmp_path, caplog):
    registry._explain_clipping.cache_clear()
    norms = {}
    with caplog.at_level(logging.INFO, logger=registry.__name__):
        for limit in (0.0, 1e-3):
            recorder = Recorder()
            trainer = tiny_trainer(tmp_path, max_steps=2, max_grad_norm=limit, callbacks=[recorder])
            trainer.train()
            norms[limit] = recorder.gradient_norms
            assert all_finite(trainer.model)
            assert arturo_of(trainer).diagnostics()["skipped_steps"] == 0
            assert sum("max_grad_norm" in message for message in caplog.messages) == (1 if limit else 0)
        tiny_trainer(tmp_path, max_grad_norm=1e-3).create_optimizer()
    assert sum("max_grad_norm" in message for message in caplog.messages) == 1
    assert {record.levelname for record in caplog.records if "max_grad_norm" in record.message} == {"INFO"}
    assert min(norms[0.0]) > 1e-2
    assert max(norms[1e-3]) <= 1e-3 * 1.001


def test_bfloat16_weights_stay_bfloat16_under_float32_state(tmp_path):
    model = tiny_model().to(torch.bfloat16)
    before = weights(model)
    trainer = tiny_trainer(tmp_path, model, learning_rate=1e-2)
    trainer.train()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in floating_state(arturo_of(trainer))} == {torch.float32}
    assert len(changed(before, weights(model))) > len(before) / 2
    assert all_finite(model)


def test_autocast_trains_float32_weights(tmp_path):
    model = tiny_model()
    before = weights(model)
    dtypes = []
    model.classifier.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    trainer = tiny_trainer(tmp_path, model, bf16=True)
    trainer.train()
    assert set(dtypes) == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {tensor.dtype for tensor in floating_state(arturo_of(trainer))} == {torch.float32}
    assert len(changed(before, weights(model))) > len(before) / 2
    assert all_finite(model)


def test_frozen_parameters_stay_where_they_are(tmp_path):
    model = tiny_model()
    model.bert.embeddings.requires_grad_(False)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen
    before = weights(model)
    trainer = tiny_trainer(tmp_path, model, weight_decay=0.1)
    trainer.train()
    moved = changed(before, weights(model))
    assert moved
    assert not moved & frozen
    optimized = {parameter for group in arturo_of(trainer).param_groups for parameter in group["params"]}
    assert optimized == {parameter for parameter in model.parameters() if parameter.requires_grad}


@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_a_run_whose_other_group_is_empty_trains_and_resumes(tmp_path, trained):
    """Adapters have no biases, so the group without decay is empty; bias-only tuning empties the other."""

    def run(folder, **resume):
        model = tiny_model()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith(f"query.{trained}"))
        before = weights(model)
        trainer = tiny_trainer(
            tmp_path / folder, model, weight_decay=0.1, max_steps=4, save_strategy="steps", save_steps=2
        )
        trainer.train(**resume)
        return trainer, changed(before, weights(model))

    whole, moved = run("whole")
    assert moved == {f"bert.encoder.layer.0.attention.self.query.{trained}"}
    filled = [group for group in arturo_of(whole).param_groups if group["params"]]
    assert [group["weight_decay"] for group in filled] == [0.1 if trained == "weight" else 0.0]
    resumed, _ = run("resumed", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_identical(weights(whole.model), weights(resumed.model))
    assert_identical(arturo_of(whole).state_dict(), arturo_of(resumed).state_dict())


def test_optimizer_cls_and_kwargs_is_the_same_run_by_another_route(tmp_path):
    by_name = tiny_trainer(tmp_path, weight_decay=0.1, optim_args="noise=fixed")
    by_name.train()
    by_class = tiny_trainer(
        tmp_path,
        weight_decay=0.1,
        optim="adamw_torch",
        trainer_kwargs={"optimizer_cls_and_kwargs": (Arturo, {"lr": 1e-3, "noise": "fixed"})},
    )
    by_class.train()
    assert_identical(weights(by_name.model), weights(by_class.model))
    assert_identical(arturo_of(by_name).state_dict(), arturo_of(by_class).state_dict())
    assert "arturo/eta" in by_class.state.log_history[0]
