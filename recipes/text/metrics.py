"""Scores of a classifier and the size of an optimizer's state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def classification_scores(truth: Sequence[int], answers: Sequence[int]) -> dict[str, float]:
    """Accuracy and macro-F1 (the mean over the classes that occur in either, absent hits counting 0)."""
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "accuracy": float(accuracy_score(truth, answers)),
        "macro_f1": float(f1_score(truth, answers, average="macro", zero_division=0)),
    }


def compute_metrics(prediction: Any) -> dict[str, float]:
    """`classification_scores` in the form that `transformers.Trainer` calls."""
    answers = np.argmax(prediction.predictions, axis=-1)
    return classification_scores(prediction.label_ids.tolist(), answers.tolist())


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors that the optimizer saves, parameters not included."""

    def count(value: Any) -> int:
        if isinstance(value, torch.Tensor):
            return value.numel() * value.element_size()
        if isinstance(value, dict):
            return sum(map(count, value.values()))
        return sum(map(count, value)) if isinstance(value, (list, tuple)) else 0

    return count(optimizer.state_dict())
