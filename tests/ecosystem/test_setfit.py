"""SetFit: its first phase trains the encoder, and logs the loss as ``embedding_loss``; its second fits a classifier.

The second builds an AdamW of its own where the classifier is a differentiable one.
"""

from __future__ import annotations

import pytest

pytest.importorskip("setfit")

from datasets import Dataset
from setfit import SetFitModel, Trainer, TrainingArguments
from tiny_text import BAD, GOOD, save_tiny_bert, sentences
from tiny_trainer import arturo_of
from training_records import assert_falls, assert_holds_arturo, assert_records

import arturo_integrations.transformers  # noqa: F401  (registers optim="arturo")

pytestmark = pytest.mark.ecosystem

STEPS = 60


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("setfit")
    model = SetFitModel.from_pretrained(save_tiny_bert(tmp_path / "model"), device="cpu")
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        batch_size=8,
        max_steps=STEPS,
        body_learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    rows = {"text": sentences(GOOD) + sentences(BAD), "label": [1] * 20 + [0] * 20}
    trainer = Trainer(model, arguments, train_dataset=Dataset.from_dict(rows))
    trainer.st_trainer.args.optim = "arturo"
    trainer.st_trainer.args.max_grad_norm = 0.0
    trainer.train()
    return trainer


def test_the_encoder_is_trained_and_then_classifies(trained):
    records = [record for record in trained.st_trainer.state.log_history if "embedding_loss" in record]
    assert_falls([record["embedding_loss"] for record in records], to=0.3)
    # The first step of SetFit's warm-up has a learning rate of 0, and does not count.
    assert_holds_arturo(arturo_of(trained.st_trainer), STEPS - 1, trained.model.model_body)
    assert trained.model.predict(["the food was fine", "the room was grim"]).tolist() == [1, 0]


def test_the_records_hold_the_diagnostics(trained):
    records = [record for record in trained.st_trainer.state.log_history if "embedding_loss" in record]
    assert_records(records[1:], range(1, STEPS))
