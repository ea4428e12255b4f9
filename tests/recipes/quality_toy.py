"""A task of the quality benchmark that trains in a tenth of a second."""

from __future__ import annotations

import torch
from torch import nn

from recipes.benchmarks.quality.tasks.base import Problem, Task

STEPS = 24
TRAINING, VALIDATION = 256, 64


class Toy(Problem):
    """Three classes cut out of nine numbers by a fixed matrix; a small network with every kind of weight."""

    examples = TRAINING
    data_sha256 = "toy"

    def __init__(self, seed: int, poisoned_at: int | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(TRAINING + 2 * VALIDATION, 9, generator=generator)
        self.targets = (self.inputs @ torch.randn(9, 3, generator=generator)).argmax(1)
        torch.manual_seed(seed)
        self.model = nn.Sequential(
            nn.Unflatten(1, (1, 3, 3)),
            nn.Conv2d(1, 4, 2),
            nn.Flatten(),
            nn.LayerNorm(16),
            nn.Linear(16, 16),
            nn.Tanh(),
            nn.Dropout(0.1),
            nn.Linear(16, 3),
        )
        self.model.register_parameter("unused", nn.Parameter(torch.ones(2)))
        self.model.register_parameter("frozen", nn.Parameter(torch.ones(2), requires_grad=False))
        self.seed, self.poisoned_at = seed, poisoned_at

    def batches(self):
        generator = torch.Generator().manual_seed(self.seed)
        for step in range(STEPS):
            rows = torch.randint(0, TRAINING, (32,), generator=generator)
            poison = float("nan") if step == self.poisoned_at else 0.0
            yield self.inputs[rows] + poison, self.targets[rows]

    def held_out(self, part):
        begin = TRAINING + (VALIDATION if part == "test" else 0)
        yield self.inputs[begin : begin + VALIDATION], self.targets[begin : begin + VALIDATION]

    def logits(self, batch):
        return self.model(batch[0]), batch[1]


def toy_task(make=Toy, family="from scratch"):
    return Task("toy", family, STEPS, 3, "cosine", 1.0, make, "a toy")
