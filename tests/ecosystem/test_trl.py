"""TRL: supervised fine-tuning, preferences (DPO) and rewards (GRPO) by its own trainers."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("trl")

from datasets import Dataset
from tiny_text import BAD, GOOD, SUBJECTS, sentences, tiny_llama, tiny_tokenizer
from tiny_trainer import arturo_of, assert_identical, weights
from training_records import assert_falls, assert_holds_arturo, assert_records
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

import arturo_integrations.transformers  # noqa: F401  (registers optim="arturo")

pytestmark = pytest.mark.ecosystem


def settings(folder: Any, **more: Any) -> dict[str, Any]:
    common = {
        "output_dir": str(folder),
        "optim": "arturo",
        "learning_rate": 1e-2,
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        "lr_scheduler_type": "constant",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "dataloader_pin_memory": False,
    }
    return {**common, **more}


def records_of(trainer: Any) -> list[dict[str, Any]]:
    return [record for record in trainer.state.log_history if "loss" in record]


def assert_trained(trainer: Any, steps: int, to: float | None = None) -> list[dict[str, Any]]:
    records = records_of(trainer)
    assert_records(records, range(1, steps + 1))
    if to is not None:
        assert_falls([record["loss"] for record in records], to)
    assert_holds_arturo(arturo_of(trainer), steps, trainer.model)
    return records


def supervised(folder: Any, seed: int = 0, **more: Any) -> SFTTrainer:
    return SFTTrainer(
        tiny_llama(seed),
        SFTConfig(**settings(folder, max_steps=20, max_length=16, **more)),
        train_dataset=Dataset.from_dict({"text": sentences(GOOD)}),
        processing_class=tiny_tokenizer(),
    )


def test_sft_learns_its_text_and_resumes_to_the_bit(tmp_path):
    whole = supervised(tmp_path / "whole", save_strategy="steps", save_steps=10)
    whole.train()
    records = assert_trained(whole, 20, to=0.7)
    assert records[-1]["mean_token_accuracy"] > records[0]["mean_token_accuracy"] + 0.2
    resumed = supervised(tmp_path / "resumed", seed=1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-10"))
    assert_identical(weights(whole.model), weights(resumed.model))
    assert_identical(arturo_of(whole).state_dict(), arturo_of(resumed).state_dict())


def test_dpo_prefers_what_was_chosen(tmp_path):
    pairs = [(subject, good, bad) for subject in SUBJECTS for good, bad in zip(GOOD, BAD, strict=True)]
    trainer = DPOTrainer(
        tiny_llama(),
        ref_model=tiny_llama(),
        args=DPOConfig(**settings(tmp_path, max_steps=20, max_length=16)),
        train_dataset=Dataset.from_dict(
            {
                "prompt": [f"the {subject} was" for subject, _, _ in pairs],
                "chosen": [f" {good}" for _, good, _ in pairs],
                "rejected": [f" {bad}" for _, _, bad in pairs],
            }
        ),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    records = assert_trained(trainer, 20, to=0.9)
    assert records[-1]["rewards/accuracies"] == 1
    assert records[-1]["rewards/margins"] > 0.1


def praise(completions: list[str], **kwargs: Any) -> list[float]:
    """The share of good words in a completion of four."""
    return [sum(word in GOOD for word in completion.split()) / 4 for completion in completions]


def test_grpo_raises_its_reward(tmp_path):
    trainer = GRPOTrainer(
        tiny_llama(),
        reward_funcs=praise,
        args=GRPOConfig(
            **settings(tmp_path, max_steps=25, num_generations=8, max_completion_length=4, beta=0.0, use_vllm=False)
        ),
        train_dataset=Dataset.from_dict({"prompt": [f"the {subject} was" for subject in SUBJECTS]}),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    rewards = [record["reward"] for record in assert_trained(trainer, 25)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2, rewards
