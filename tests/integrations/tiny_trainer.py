"""A Trainer small enough for tests: a randomly initialised BERT of a few thousand weights on 16 examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import arturo_integrations.transformers  # noqa: F401  (registers optim="arturo")
from arturo_core import Arturo
from arturo_integrations.metrics import find_arturo


def tiny_model(seed: int = 0, dropout: float = 0.1) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=8,
        num_labels=2,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForSequenceClassification(config)


def tiny_dataset() -> list[dict[str, Any]]:
    """Sixteen sentences of six tokens; the label is whether the first token is one of the upper half."""
    tokens = torch.randint(0, 32, (16, 6), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row.tolist(), "labels": int(row[0] >= 16)} for row in tokens]


def tiny_arguments(output_dir: Path, **overrides: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "optim": "arturo",
        "learning_rate": 1e-3,
        "max_grad_norm": 0.0,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    }
    return TrainingArguments(output_dir=str(output_dir), **{**settings, **overrides})


def tiny_trainer(
    output_dir: Path,
    model: torch.nn.Module | None = None,
    *,
    callbacks: Any = None,
    trainer_kwargs: Any = None,
    **overrides: Any,
) -> Trainer:
    return Trainer(
        tiny_model() if model is None else model,
        tiny_arguments(output_dir, **overrides),
        train_dataset=tiny_dataset(),
        callbacks=callbacks,
        **(trainer_kwargs or {}),
    )


def arturo_of(trainer: Trainer) -> Arturo:
    optimizer = find_arturo(trainer.optimizer)
    assert optimizer is not None, f"not an Arturo: {trainer.optimizer!r}"
    return optimizer


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Names of the weights that are not the same bit for bit."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def assert_identical(left: Any, right: Any, path: str = "") -> None:
    """Compares nested containers; tensors bit for bit, with their types."""
    assert type(left) is type(right), path
    if isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_identical(left[key], right[key], f"{path}/{key}")
    elif isinstance(left, (list, tuple)):
        for index, pair in enumerate(zip(left, right, strict=True)):
            assert_identical(*pair, f"{path}/{index}")
    elif isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype, path
        assert torch.equal(left, right), path
    else:
        assert left == right, path


class Recorder(TrainerCallback):
    """Keeps the weights after every step, and the gradients and learning rates that every step was given."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.gradient_norms: list[float] = []
        self.learning_rates: list[float] = []
        self.steps = 0

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        arturo = find_arturo(optimizer)
        assert arturo is not None
        arturo.register_step_pre_hook(self._before_step)

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.gradient_norms.append(float(torch.stack([g.float().norm() for g in gradients]).norm()))
        self.learning_rates.append(float(optimizer.param_groups[0]["lr"]))
        self.steps += 1

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.weights.append(weights(model))
