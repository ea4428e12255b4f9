"""CIFAR-10 and CIFAR-100 in the "python version" of A. Krizhevsky's page, unpacked.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009: 50,000 and 10,000 images of 32 × 32 in
colour, in ten or a hundred classes.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recipes.text.errors import InputError, read_bytes

PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"


class Layout(NamedTuple):
    """How one of the two lies on disk: its folder, its files, the key of the labels."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: bytes


LAYOUTS = {
    "cifar10": Layout(
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        ("test_batch",),
        b"labels",
    ),
    "cifar100": Layout("cifar-100-python", "cifar-100-python.tar.gz", ("train",), ("test",), b"fine_labels"),
}


def folder(name: str, given: Path | None) -> Path:
    """Where the files are: the folder given, or the unpacked archive's inside it.

    Raises:
        InputError: no folder is given, or the files are in neither place.
    """
    layout = LAYOUTS[name]
    fix = f"give --data the folder that holds {layout.folder}, unpacked from {layout.archive} ({PAGE})"
    if given is None:
        raise InputError(f"{name} comes with no package: {fix}")
    for place in (given, given / layout.folder):
        if all(os.path.isfile(place / file) for file in (*layout.train, *layout.test)):
            return place
    raise InputError(f"--data {given} does not hold {', '.join((*layout.train, *layout.test))}: {fix}")


def read(name: str, place: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], list[bytes]]:
    """Images (rows, 3, 32, 32) uint8 and classes (rows,) int64 of "train" and "test", and the contents of the files.

    Raises:
        InputError: a file is something else.
    """
    layout = LAYOUTS[name]
    contents = {file: read_bytes(place / file) for file in (*layout.train, *layout.test)}

    def part(files: Sequence[str]) -> tuple[Tensor, Tensor]:
        batches = [batch(contents[file], layout.labels, place / file) for file in files]
        images, classes = (torch.cat(pieces) for pieces in zip(*batches, strict=True))
        return images, classes

    return {"train": part(layout.train), "test": part(layout.test)}, list(contents.values())


def batch(content: bytes, labels: bytes, path: Path) -> tuple[Tensor, Tensor]:
    """Images and classes of one pickled batch."""
    try:
        found = Arrays(io.BytesIO(content), encoding="bytes").load()
        images = torch.from_numpy(np.array(found[b"data"], dtype=np.uint8)).view(-1, 3, 32, 32)
        classes = torch.tensor(found[labels], dtype=torch.int64)
    except Exception as error:  # of a pickle that is something else, anything can be wrong
        raise InputError(f"{path} is no batch of CIFAR ({error}); unpack the archive of {PAGE} anew") from error
    if len(images) != len(classes):
        raise InputError(f"{path} has {len(images)} images and {len(classes)} labels; unpack the archive anew")
    return images, classes


class Arrays(pickle.Unpickler):
    """An unpickler of plain values and NumPy arrays: other pickles could run code."""

    _MODULES = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy")
    _NAMES = ("_reconstruct", "ndarray", "dtype")

    def find_class(self, module: str, name: str) -> Any:
        if module in self._MODULES and name in self._NAMES:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in Python 2's format
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")
