"""What every task of the benchmark offers: a model, its batches, a loss and scores on data held out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Family = Literal["fine-tuning", "lora", "from scratch"]
HELD_OUT = ("validation", "test")
CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Scores:
    """Means over the rows (for language models: over the tokens) of a part.

    `loss` is the negative log-likelihood in nats, `accuracy` and `ece` (expected calibration error: 15 equal
    bins of confidence, absolute differences) lie in [0, 1].
    """

    loss: float
    accuracy: float
    ece: float


class Problem(ABC):
    """One task with one seed: `model` is in training mode, and what it shall learn has requires_grad=True.

    The split of the data is the same for every seed; the seed sets the new weights, the dropout (`torch`'s own
    generator, seeded when the problem is made) and the order of the batches (a generator of their own).
    `examples` is the size of the training part in rows (language models: tokens), and `data_sha256` a digest of
    the data that the problem reads, so that results name what they were measured on.
    """

    model: nn.Module
    examples: int
    data_sha256: str

    @abstractmethod
    def batches(self) -> Iterator[Any]:
        """Exactly `steps` batches of the training part, the same ones at every call."""

    @abstractmethod
    def held_out(self, part: str) -> Iterator[Any]:
        """All of "validation" (small) or "test" (larger) in batches, in a fixed order, drawing no random number."""

    @abstractmethod
    def logits(self, batch: Any) -> tuple[Tensor, Tensor]:
        """The model's logits (rows, classes) and the right classes (rows,), int64."""

    def loss(self, batch: Any) -> Tensor:
        """Mean cross-entropy in nats, 0-dim."""
        return functional.cross_entropy(*self.logits(batch))

    def evaluate(self, part: str) -> Scores:
        """Scores on "validation" or "test"; leaves the mode of every module and the random state as they were."""
        from torchmetrics.functional.classification import multiclass_calibration_error

        if part not in HELD_OUT:
            raise ValueError(f"there is no part {part!r} to evaluate on; choose one of {', '.join(HELD_OUT)}")
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                pairs = [self.logits(batch) for batch in self.held_out(part)]
        finally:
            for module, training in modes.items():
                module.training = training
        logits = torch.cat([pair[0] for pair in pairs]).float()
        targets = torch.cat([pair[1] for pair in pairs])
        loss = functional.cross_entropy(logits, targets).item()
        accuracy = (logits.argmax(1) == targets).double().mean().item()
        if not math.isfinite(loss):  # diverged: there are no probabilities to calibrate
            return Scores(loss, accuracy, math.nan)
        ece = multiclass_calibration_error(
            logits.softmax(1), targets, num_classes=logits.shape[1], n_bins=CALIBRATION_BINS, norm="l1"
        )
        return Scores(loss, accuracy, ece.item())


@dataclass(frozen=True)
class Task:
    """How to make and train a problem: `warmup` counts steps, `clip` is the largest norm of the whole gradient."""

    name: str
    family: Family
    steps: int
    warmup: int
    decay: Literal["linear", "cosine"]
    clip: float | None
    make: Callable[[int], Problem]
    description: str  # one line: model, data, sizes, batch
    passes: float | None = None  # over the training part, about: examples that all steps see over its size

    @property
    def setting(self) -> str:
        """Length, schedule and clipping, in words."""
        length = f"{self.steps} steps" + ("" if self.passes is None else f" ({self.passes:.2g} passes over the data)")
        clipping = "no clipping" if self.clip is None else f"gradients clipped at norm {self.clip:g}"
        return f"{length}, {self.warmup} of warm-up, {self.decay} decay to 0, {clipping}"

    def factor(self, step: int) -> float:
        """What the learning rate of `step` (from 0) is multiplied with: up to 1, then down to 0 at `steps`.

        The first and the last step that are taken have a factor above 0: neither is wasted.
        """
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = min((step - self.warmup) / max(self.steps - self.warmup, 1), 1.0)
        return 1.0 - done if self.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
