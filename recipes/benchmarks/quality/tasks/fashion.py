"""fashion-cnn and fashion-vit: Fashion-MNIST with the paper's CNN and with a small vision transformer.

    python -m recipes.image.fashion_mnist     # gets the data: Debian's dataset-fashion-mnist, without root

Data: H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", 2017. The test part is the first rows of its test file, the validation part the last rows of its
training file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from recipes.benchmarks.quality.tasks.base import Problem, Task
from recipes.benchmarks.quality.tasks.common import from_scratch, sha256, shuffled
from recipes.image import fashion_mnist as files
from recipes.image.fashion_mnist import FILES, read_idx
from recipes.image.networks import small_cnn
from recipes.text.errors import InputError

CLASSES = 10
TRAIN = 50_000
VALIDATION, TEST = 1000, 4000
MEAN, DEVIATION = 0.2860, 0.3530  # of the training file's pixels, scaled to [0, 1]
BATCH = 64
HELD_OUT_BATCH = 250
CNN_STEPS, VIT_STEPS = 250, 400
PATCH, WIDTH, LAYERS, HEADS = 7, 64, 3, 4


@dataclass(frozen=True)
class Images:
    """Images (rows, 28, 28) uint8 and classes (rows,) int64 of each part, and the digest of the files."""

    parts: dict[str, tuple[Tensor, Tensor]]
    sha256: str


@functools.cache
def fashion_mnist(place: Path) -> Images:
    """The files in the folder `place`, split."""
    contents = {what: (place / name).read_bytes() for what, name in FILES.items()}
    read = {what: read_idx(content, place / FILES[what]) for what, content in contents.items()}
    images, classes = read["train images"], read["train classes"].long()
    if len(images) < TRAIN + VALIDATION or len(images) != len(classes):
        raise InputError(f"the Fashion-MNIST in {place} is not complete; get it anew: {files.FETCH}")
    parts = {
        "train": (images[:TRAIN], classes[:TRAIN]),
        "validation": (images[-VALIDATION:], classes[-VALIDATION:]),
        "test": (read["test images"][:TEST], read["test classes"][:TEST].long()),
    }
    return Images(parts, sha256(contents[what] for what in FILES))


class Fashion(Problem):
    """A batch is (images, classes): (rows, 1, 28, 28) float, standardised, and (rows,) int64."""

    def __init__(self, network: Callable[[], nn.Module], steps: int, seed: int) -> None:
        self.images = fashion_mnist(files.folder().resolve())
        self.steps = steps
        self.seed = seed
        self.examples = TRAIN
        self.data_sha256 = self.images.sha256
        torch.manual_seed(seed)
        self.model = network()

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, classes = self.images.parts["train"]
        for rows in shuffled(self.examples, BATCH, self.steps, self.seed):
            yield standardised(images[rows]), classes[rows]

    def held_out(self, part: str) -> Iterator[tuple[Tensor, Tensor]]:
        images, classes = self.images.parts[part]
        pieces = zip(torch.split(images, HELD_OUT_BATCH), torch.split(classes, HELD_OUT_BATCH), strict=True)
        for pixels, chosen in pieces:
            yield standardised(pixels), chosen

    def logits(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        images, classes = batch
        return self.model(images), classes


def standardised(images: Tensor) -> Tensor:
    """(rows, 28, 28) uint8 as (rows, 1, 28, 28) float of mean 0 and variance 1 over the training file."""
    return ((images.float() / 255 - MEAN) / DEVIATION).unsqueeze(1)


class VisionTransformer(nn.Module):
    """Patches of PATCH × PATCH pixels through a pre-norm encoder without dropout; the mean over them is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, stride=PATCH)
        self.positions = nn.Parameter(torch.empty((28 // PATCH) ** 2, WIDTH))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.layers = nn.Sequential(
            *(
                # layer by layer: nn.TransformerEncoder would start all of its layers with the same weights
                nn.TransformerEncoderLayer(
                    WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(LAYERS)
            )
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (rows, CLASSES) of images (rows, 1, 28, 28)."""
        hidden = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.norm(self.layers(hidden)).mean(1))
        return logits


def task(name: str, steps: int, network: Callable[[], nn.Module], text: str) -> Task:
    make = functools.partial(Fashion, network, steps)
    return from_scratch(
        name, steps, make, f"{text}, Fashion-MNIST, {TRAIN:,} rows, batch {BATCH}", steps * BATCH / TRAIN
    )


TASKS = (
    task("fashion-cnn", CNN_STEPS, small_cnn, "the paper's CNN (390 k)"),
    task("fashion-vit", VIT_STEPS, VisionTransformer, f"vision transformer ({LAYERS} x {WIDTH}, patches of {PATCH})"),
)
