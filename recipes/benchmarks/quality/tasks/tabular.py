"""diamonds-mlp: the cut of a diamond, in five classes, from its other columns.

Data: the prices and attributes of 53,940 round cut diamonds, collected by H. Wickham for ggplot2 and carried by
plotnine as a CSV file; read by path, plotnine is not imported.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recipes.benchmarks.quality.tasks.base import Problem
from recipes.benchmarks.quality.tasks.common import from_scratch, sha256, shuffled
from recipes.text.packaged import package_file

STEPS = 2000
BATCH = 128
HELD_OUT_BATCH = 2000
ROWS = 43_794  # of the training part
WIDTH = 128
VALIDATION, TEST = 2000, 8000
SPLIT_SEED = 0

CUTS = ("Fair", "Good", "Very Good", "Premium", "Ideal")
NUMBERS = ("carat", "depth", "table", "price", "x", "y", "z")
CATEGORIES = ("color", "clarity")
LARGEST = 5.0  # standard deviations; a few sizes (y = 58.9 mm) are slips of the pen and would rule the scale


@dataclass(frozen=True)
class Table:
    """Features (rows, columns) and classes (rows,) of each part, and the digest of the file."""

    parts: dict[str, tuple[Tensor, Tensor]]
    sha256: str

    @property
    def columns(self) -> int:
        return self.parts["train"][0].shape[1]


@functools.cache
def diamonds() -> Table:
    """The table without copies of a row, its numbers standardised with the training part's mean and deviation."""
    path = package_file("plotnine", "plotnine/data/diamonds.csv")
    content = path.read_bytes()
    records = [dict(pairs) for pairs in dict.fromkeys(tuple(row.items()) for row in read_csv(content))]
    numbers = torch.tensor([[float(row[name]) for name in NUMBERS] for row in records], dtype=torch.float64)
    price = NUMBERS.index("price")
    numbers[:, price] = numbers[:, price].log()  # dollars over three orders of magnitude
    columns = [numbers]
    for name in CATEGORIES:
        levels = sorted({row[name] for row in records})
        number = torch.tensor([levels.index(row[name]) for row in records])
        columns.append(torch.nn.functional.one_hot(number, len(levels)).double())
    features = torch.cat(columns, dim=1)
    classes = torch.tensor([CUTS.index(row["cut"]) for row in records])
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(SPLIT_SEED))
    rows = {
        "validation": order[:VALIDATION],
        "test": order[VALIDATION : VALIDATION + TEST],
        "train": order[VALIDATION + TEST :],
    }
    train = features[rows["train"]]
    features = ((features - train.mean(0)) / train.std(0)).clamp(-LARGEST, LARGEST).float()
    return Table({part: (features[chosen], classes[chosen]) for part, chosen in rows.items()}, sha256([content]))


def read_csv(content: bytes) -> Iterator[dict[str, str]]:
    """The rows of a CSV file in UTF-8, by the names of their columns."""
    return csv.DictReader(content.decode("utf-8").splitlines())


class Diamonds(Problem):
    """A batch is (features, classes)."""

    def __init__(self, seed: int) -> None:
        self.table = diamonds()
        self.seed = seed
        self.examples = len(self.table.parts["train"][1])
        self.data_sha256 = self.table.sha256
        torch.manual_seed(seed)
        self.model = mlp(self.table.columns, len(CUTS))

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        features, classes = self.table.parts["train"]
        for rows in shuffled(self.examples, BATCH, STEPS, self.seed):
            yield features[rows], classes[rows]

    def held_out(self, part: str) -> Iterator[tuple[Tensor, Tensor]]:
        features, classes = self.table.parts[part]
        yield from zip(torch.split(features, HELD_OUT_BATCH), torch.split(classes, HELD_OUT_BATCH), strict=True)

    def logits(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        features, classes = batch
        return self.model(features), classes


def mlp(columns: int, classes: int) -> nn.Module:
    """Two hidden layers with layer normalisation and ReLU; torch's own initialisation."""
    return nn.Sequential(
        nn.Linear(columns, WIDTH),
        nn.LayerNorm(WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.LayerNorm(WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, classes),
    )


TASKS = (
    from_scratch(
        "diamonds-mlp",
        STEPS,
        Diamonds,
        f"MLP (2 x {WIDTH}, layer norm), cut of diamonds in 5 classes, {ROWS:,} rows, batch {BATCH}",
        STEPS * BATCH / ROWS,
    ),
)
