"""Images in the formats of Fashion-MNIST and of CIFAR, a few of them, whose classes a network can learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from quality_fashion import idx

from recipes.image import cifar, fashion_mnist


def images(rows: int, channels: int, side: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright square whose place is the class, (rows, channels, side, side) and (rows,)."""
    rng = np.random.default_rng(seed)
    classes = np.arange(rows) % 10
    pixels = rng.integers(0, 120, (rows, channels, side, side))
    for row, number in enumerate(classes):
        top, left = 2 + 10 * (number // 5), 2 + 5 * (number % 5)
        pixels[row, :, top : top + 8, left : left + 5] += 130
    return pixels.astype(np.uint8), classes


def write_fashion(folder: Path, train: int = 200, test: int = 60) -> Path:
    """Fashion-MNIST's four files."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows, seed in (("train", train, 0), ("test", test, 1)):
        pixels, classes = images(rows, 1, 28, seed)
        (folder / fashion_mnist.FILES[f"{part} images"]).write_bytes(idx(pixels[:, 0]))
        (folder / fashion_mnist.FILES[f"{part} classes"]).write_bytes(idx(classes))
    return folder


def write_cifar(folder: Path, name: str = "cifar10", rows: int = 40) -> Path:
    """A folder that the archive of CIFAR was unpacked in, with so many rows in every file."""
    layout = cifar.LAYOUTS[name]
    (folder / layout.folder).mkdir(parents=True)
    for seed, file in enumerate((*layout.train, *layout.test)):
        pixels, classes = images(rows, 3, 32, seed)
        content = python2_pickle(pixels.reshape(rows, -1), layout.labels, classes.tolist())
        (folder / layout.folder / file).write_bytes(content)
    return folder


def python2_pickle(pixels: np.ndarray, key: bytes, labels: list[int]) -> bytes:
    """A batch as Python 2 with the NumPy of its day has written CIFAR's, opcode by opcode."""

    def string(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    def integer(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    raw = pixels.tobytes()
    kind = b"cnumpy\ndtype\n" + string(b"u1") + integer(0) + integer(1) + b"\x87R"
    kind += b"(" + integer(3) + string(b"|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + integer(0) + b"\x85" + string(b"b") + b"\x87R"
    shape = integer(pixels.shape[0]) + integer(pixels.shape[1]) + b"\x86"
    array += b"(" + integer(1) + shape + kind + b"\x89" + b"T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    listed = b"](" + b"".join(map(integer, labels)) + b"e"
    return b"\x80\x02}(" + string(b"data") + array + string(key) + listed + b"u."
