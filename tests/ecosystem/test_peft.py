"""Adapters of PEFT under the Trainer: trained alone, and resumed to the bit."""

from __future__ import annotations

import shutil

import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import peft
import transformers
from tiny_trainer import arturo_of, assert_identical, changed, tiny_model, tiny_trainer, weights
from training_records import assert_falls, assert_holds_arturo, assert_records

STEPS = 24
METHODS = {
    "LoRA": lambda: peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=2, lora_dropout=0.1),
    "DoRA": lambda: peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=2, use_dora=True),
    "IA3": lambda: peft.IA3Config(
        task_type="SEQ_CLS", target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"]
    ),
}
NAMES = {"LoRA": "lora_", "DoRA": "lora_magnitude_vector", "IA3": "ia3_l"}


def adapted(method, seed=0):
    """A model whose own weights are always the same, since they are frozen, and an adapter drawn with the seed."""
    model = tiny_model(0)
    transformers.set_seed(seed)
    return peft.get_peft_model(model, METHODS[method]())


def run(folder, method, seed=0, **resume):
    trainer = tiny_trainer(
        folder,
        adapted(method, seed),
        learning_rate=3e-2,
        max_steps=STEPS,
        per_device_train_batch_size=8,
        warmup_steps=2,
        save_strategy="steps",
        save_steps=STEPS // 2,
    )
    trainer.train(**resume)
    return trainer


def records_of(trainer):
    return [record for record in trainer.state.log_history if "loss" in record]


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_is_trained_alone_and_resumes_to_the_bit(method, tmp_path):
    before = weights(adapted(method))
    whole = run(tmp_path / "whole", method)
    after = weights(whole.model)
    moved = changed(before, after)
    assert moved == {name for name, parameter in whole.model.named_parameters() if parameter.requires_grad}
    assert any(NAMES[method] in name for name in moved), "nothing of the adapter moved"
    assert any("base_layer" in name or "embeddings" in name for name in after.keys() - moved), "nothing is frozen"

    # The first step of a warm-up has a learning rate of 0, and does not count.
    assert_records(records_of(whole)[1:], range(1, STEPS))
    assert_falls([record["loss"] for record in records_of(whole)], to=0.9)
    assert_holds_arturo(arturo_of(whole), STEPS - 1, whole.model)

    checkpoint = tmp_path / "whole" / f"checkpoint-{STEPS // 2}"
    resumed = run(tmp_path / "resumed", method, seed=1, resume_from_checkpoint=str(checkpoint))
    assert_identical(after, weights(resumed.model))
    assert_identical(arturo_of(whole).state_dict(), arturo_of(resumed).state_dict())
    assert records_of(resumed) == records_of(whole)

    # The comparison must be able to fail: without the optimizer's file the run continues differently.
    forgetful = tmp_path / "forgetful"
    shutil.copytree(checkpoint, forgetful)
    (forgetful / "optimizer.pt").unlink()
    fresh = run(tmp_path / "fresh", method, seed=1, resume_from_checkpoint=str(forgetful))
    assert changed(after, weights(fresh.model)) == moved
