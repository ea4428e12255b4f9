"""Fashion-MNIST: where its files are, how to get them, and how to read them.

    python -m recipes.image.fashion_mnist     # gets the data: Debian's dataset-fashion-mnist, without root

H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", 2017: 60,000 and 10,000 grey images of 28 × 28, in ten classes.
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from recipes.text.errors import InputError

VARIABLE = "ARTURO_FASHION_MNIST"
PACKAGE = "dataset-fashion-mnist"
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
OWN_FOLDER = Path("runs/data/fashion-mnist")
FILES = {
    "train images": "train-images-idx3-ubyte.gz",
    "train classes": "train-labels-idx1-ubyte.gz",
    "test images": "t10k-images-idx3-ubyte.gz",
    "test classes": "t10k-labels-idx1-ubyte.gz",
}
FETCH = "python -m recipes.image.fashion_mnist"


def folder() -> Path:
    """Where the four files are; an InputError that says how to get them if they are nowhere."""
    given = os.environ.get(VARIABLE)
    places = [Path(given)] if given else [SYSTEM_FOLDER, OWN_FOLDER]
    for place in places:
        if all((place / name).is_file() for name in FILES.values()):
            return place
    looked = " and ".join(map(str, places))
    raise InputError(
        f"Fashion-MNIST is not in {looked}; run: {FETCH} (Debian or Ubuntu), or set {VARIABLE} to a folder with "
        f"{', '.join(FILES.values())}"
    )


def read_idx(content: bytes, path: Path) -> Tensor:
    """The unsigned bytes of a gzip-compressed IDX file in the shape its header states.

    Raises:
        InputError: it is none; names the path it came from.
    """
    try:
        raw = gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        raw = b""
    header = 4 + 4 * raw[3] if raw[:3] == b"\x00\x00\x08" and len(raw) > 3 else 0
    shape = [int.from_bytes(raw[at : at + 4], "big") for at in range(4, header, 4)]
    if not header or len(raw) - header != prod(shape):
        raise InputError(f"{path} is not in the IDX format with unsigned bytes, or cut off: get it anew ({FETCH})")
    return torch.frombuffer(bytearray(raw[header:]), dtype=torch.uint8).view(shape)


def fetch(target: Path = OWN_FOLDER) -> Path:
    """Download Debian's package with apt, needing no root, and copy the data out of it into `target`."""
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise InputError(
                f"there is no {tool} here to get {PACKAGE} with; download the four Fashion-MNIST files "
                f"({', '.join(FILES.values())}) and set {VARIABLE} to their folder"
            )
    with tempfile.TemporaryDirectory() as scratch:
        run(["apt-get", "download", PACKAGE], scratch, "as root: apt-get update, then run this again")
        archives = list(Path(scratch).glob(f"{PACKAGE}_*.deb"))
        if len(archives) != 1:
            raise InputError(f"apt-get left {len(archives)} archives of {PACKAGE}, not one; run it again")
        run(["dpkg", "-x", archives[0].name, "unpacked"], scratch, "the archive may be cut off: run this again")
        target.mkdir(parents=True, exist_ok=True)
        for name in FILES.values():
            shutil.copy(Path(scratch) / "unpacked" / SYSTEM_FOLDER.relative_to("/") / name, target / name)
    return target


def run(command: list[str], where: str, fix: str) -> None:
    """Run `command` in the folder `where`; if it fails, an InputError with the end of what it said and `fix`."""
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise InputError(f"`{' '.join(command)}` failed: {said[-1] if said else done.returncode}; {fix}")


def main() -> None:
    """The command line: get the data."""
    try:
        sys.stdout.write(f"Fashion-MNIST is in {fetch()}\n")
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
