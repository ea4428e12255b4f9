"""Images in Fashion-MNIST's format, a few of them and random."""

from __future__ import annotations

import gzip

import numpy as np

from recipes.image import fashion_mnist as files

SMALL = 40  # rows that the tests evaluate on


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return gzip.compress(header + values.astype(np.uint8).tobytes(), 1)


def write_fashion(folder, train=320, test=60):
    rng = np.random.default_rng(0)
    for part, rows in (("train", train), ("test", test)):
        images = rng.integers(0, 256, (rows, 28, 28))
        (folder / files.FILES[f"{part} images"]).write_bytes(idx(images))
        (folder / files.FILES[f"{part} classes"]).write_bytes(idx(rng.integers(0, 10, rows)))
