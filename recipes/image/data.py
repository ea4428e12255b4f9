"""Images of a data set in three parts, in an order of batches that depends on seed and epoch alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from recipes.image import cifar, fashion_mnist
from recipes.image.networks import Shape
from recipes.text.errors import InputError, read_bytes

SHAPES = {
    "fashion-mnist": Shape(1, 28, 10),
    "cifar10": Shape(3, 32, 10),
    "cifar100": Shape(3, 32, 100),
}
#: Data sets whose training images are cropped and flipped at random.
AUGMENTED = ("cifar10", "cifar100")

Part = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Images:
    """Images (rows, channels, side, side) uint8 and classes (rows,) int64 of "train", "validation" and "test".

    Args:
        name: a key of SHAPES.
        parts: as above.
        mean, deviation: (channels,) of the training part's pixels, from 0 to 255.
        sha256: digest of the files.
    """

    name: str
    parts: dict[str, Part]
    mean: Tensor
    deviation: Tensor
    sha256: str

    @property
    def shape(self) -> Shape:
        return SHAPES[self.name]

    def summary(self) -> dict[str, Any]:
        """What metrics.json says about the data."""
        rows = {part: len(classes) for part, (_, classes) in self.parts.items()}
        return {"name": self.name, "rows": rows, "classes": self.shape.classes, "sha256": self.sha256}


def load(name: str, given: Path | None, *, train_rows: int | None, validation_rows: int, split_seed: int) -> Images:
    """Read a data set; its training file is split into a training and a validation part.

    Args:
        name: a key of SHAPES.
        given: folder of the files; Fashion-MNIST is also looked for where a package or our command puts it.
        train_rows: rows of the training part, all that are left if None.
        validation_rows: rows of the validation part.
        split_seed: of the rows that go into either.

    Raises:
        InputError: there are no such files there, they are of another kind, or there are fewer rows.
    """
    whole, contents, place = _fashion(given) if name == "fashion-mnist" else _cifar(name, given)
    for part, (images, classes) in whole.items():
        _check(name, f"the {part} files in {place}", images, classes)
    rows = len(whole["train"][1])
    wanted = rows - validation_rows if train_rows is None else train_rows
    if wanted < 1 or validation_rows + wanted > rows:
        raise InputError(
            f"{name} has {rows} rows for training and validation, fewer than {max(wanted, 1)} + {validation_rows}: "
            "lower --train-rows or --validation-rows"
        )
    order = torch.randperm(rows, generator=generator("split", split_seed))
    validation, train = order[:validation_rows], order[validation_rows : validation_rows + wanted]
    images, classes = whole["train"]
    parts = {
        "train": (images[train], classes[train]),
        "validation": (images[validation], classes[validation]),
        "test": whole["test"],
    }
    return Images(name, parts, *mean_and_deviation(parts["train"][0]), sha256(contents))


def _fashion(given: Path | None) -> tuple[dict[str, Part], list[bytes], Path]:
    if given is None:
        place = fashion_mnist.folder()
    elif missing := [file for file in fashion_mnist.FILES.values() if not os.path.isfile(given / file)]:
        raise InputError(
            f"--data {given} does not hold {', '.join(missing)}; give the folder that does, or leave --data out and "
            f"run: {fashion_mnist.FETCH} (Debian or Ubuntu)"
        )
    else:
        place = given
    contents = {what: read_bytes(place / file) for what, file in fashion_mnist.FILES.items()}
    files = fashion_mnist.FILES
    found = {what: fashion_mnist.read_idx(content, place / files[what]) for what, content in contents.items()}
    whole = {
        part: (found[f"{part} images"].unsqueeze(1), found[f"{part} classes"].long()) for part in ("train", "test")
    }
    return whole, list(contents.values()), place


def _cifar(name: str, given: Path | None) -> tuple[dict[str, Part], list[bytes], Path]:
    if given is not None and not os.path.isdir(given):
        raise InputError(f"--data {given}: there is no such folder")
    place = cifar.folder(name, given)
    return *cifar.read(name, place), place


def _check(name: str, files: str, images: Tensor, classes: Tensor) -> None:
    """Raise an InputError unless images and classes are those of the data set."""
    shape = SHAPES[name]
    sizes = (shape.channels, shape.side, shape.side)
    fits = images.shape[1:] == sizes and classes.shape == images.shape[:1] and len(classes) > 0
    if not fits or not 0 <= int(classes.min()) <= int(classes.max()) < shape.classes:
        raise InputError(
            f"{files} are not {name}'s: images of {tuple(images.shape)}, classes of {tuple(classes.shape)}, "
            f"where (rows, {', '.join(map(str, sizes))}) and (rows,) below {shape.classes} belong; get the data anew"
        )


def mean_and_deviation(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the pixels (rows, channels, …) uint8 of each channel, (channels,) float each."""
    levels = torch.arange(256, dtype=torch.float64)
    shares = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).double()
    shares /= shares.sum(dim=1, keepdim=True)
    mean = shares @ levels
    variance = shares @ levels.square() - mean.square()
    return mean.float(), variance.clamp(min=1.0).sqrt().float()


def generator(purpose: str, *numbers: int) -> torch.Generator:
    """A generator of random numbers on the CPU for one purpose, seeded by the numbers and by nothing else."""
    digest = hashlib.sha256(" ".join((purpose, *map(str, numbers))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def sha256(contents: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return digest.hexdigest()


class Rows(Dataset[Part]):
    """Images and classes, a whole batch at a time: an index is a tensor of rows."""

    def __init__(self, part: Part) -> None:
        self.images, self.classes = part

    def __getitem__(self, rows: Tensor) -> Part:
        return self.images[rows], self.classes[rows]


class Order(Sampler[Tensor]):
    """Batches of row numbers (batch_size,), a new permutation in every epoch.

    Which one follows from seed and epoch, so that a resumed run sees what it would have seen. What is left when no full
    batch can be made of it is dropped, other rows in every epoch. Lightning calls `set_epoch`.

    Raises:
        InputError: there is not one full batch.
    """

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        if rows < batch_size:
            raise InputError(f"{rows} training rows are less than one batch of {batch_size}: lower --batch-size")
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows // self.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(self.rows, generator=generator("order", self.seed, self.epoch))
        yield from torch.split(order[: len(self) * self.batch_size], self.batch_size)
