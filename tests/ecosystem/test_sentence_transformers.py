"""sentence-transformers: its trainer, losses with weights of their own, and a learning rate for some layers."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("sentence_transformers")

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer import losses
from tiny_text import BAD, GOOD, save_tiny_bert, sentences
from tiny_trainer import arturo_of, assert_identical, weights
from training_records import assert_falls, assert_holds_arturo, assert_records

import arturo_integrations.transformers  # noqa: F401  (registers optim="arturo")

pytestmark = pytest.mark.ecosystem

STEPS = 20


def pairs() -> Dataset:
    """Two good or two bad sentences belong together, one of each does not."""
    good, bad = sentences(GOOD), sentences(BAD)
    return Dataset.from_dict(
        {
            "sentence1": good + bad,
            "sentence2": good[::-1] + good,
            "label": [1] * len(good) + [0] * len(bad),
        }
    )


def trainer_of(folder: Any, loss: Any, seed: int = 0, **more: Any) -> SentenceTransformerTrainer:
    model = SentenceTransformer(save_tiny_bert(folder / "model", seed), device="cpu")
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "run"),
        optim="arturo",
        learning_rate=1e-2,
        max_grad_norm=0.0,
        max_steps=STEPS,
        per_device_train_batch_size=10,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **{"save_strategy": "no", **more},
    )
    return SentenceTransformerTrainer(model, arguments, train_dataset=pairs(), loss=loss(model))


def records_of(trainer: Any) -> list[dict[str, Any]]:
    return [record for record in trainer.state.log_history if "loss" in record]


def softmax(model: Any) -> losses.SoftmaxLoss:
    return losses.SoftmaxLoss(model, sentence_embedding_dimension=16, num_labels=2)


def test_embeddings_are_trained_and_resumed_to_the_bit(tmp_path):
    whole = trainer_of(tmp_path / "whole", losses.CosineSimilarityLoss, save_strategy="steps", save_steps=STEPS // 2)
    before = whole.model.similarity(*whole.model.encode(["the food was fine", "the food was awful"])).item()
    whole.train()
    assert_records(records_of(whole), range(1, STEPS + 1))
    assert_falls([record["loss"] for record in records_of(whole)], to=0.6)
    assert_holds_arturo(arturo_of(whole), STEPS, whole.loss)
    after = whole.model.similarity(*whole.model.encode(["the food was fine", "the food was awful"])).item()
    assert after < before - 0.2

    resumed = trainer_of(tmp_path / "resumed", losses.CosineSimilarityLoss, seed=1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "run" / f"checkpoint-{STEPS // 2}"))
    assert_identical(weights(whole.model), weights(resumed.model))
    assert_identical(arturo_of(whole).state_dict(), arturo_of(resumed).state_dict())


def test_a_loss_with_weights_and_an_own_learning_rate(tmp_path):
    trainer = trainer_of(tmp_path, softmax, learning_rate_mapping={r"embeddings\..*": 1e-3})
    trainer.train()
    assert_records(records_of(trainer), range(1, STEPS + 1))
    assert_falls([record["loss"] for record in records_of(trainer)], to=0.95)
    optimizer = assert_holds_arturo(arturo_of(trainer), STEPS, trainer.loss)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in trainer.loss.named_parameters():
        assert rates[id(parameter)] == (1e-3 if "embeddings" in name else 1e-2), name
