"""trec, movie and sms: the packaged MiniLM learns to classify texts, in full or (…-lora) through adapters."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recipes.benchmarks.quality.tasks.base import HELD_OUT, Problem, Task
from recipes.benchmarks.quality.tasks.common import order_generator, sha256
from recipes.text.data import PARTS, load
from recipes.text.errors import InputError
from recipes.text.packaged import minilm

BATCH = 16
GROUP = 4  # batches whose rows are sorted by length together, so that little of a batch is padding
HELD_OUT_BATCH = 50
MAX_LENGTH = 48  # tokens
VALIDATION, TEST = 400, 1000  # rows, at most

RANK, ALPHA, ADAPTER_DROPOUT = 8, 16, 0.05
ADAPTED = ("query", "value")  # as in E. Hu et al., "LoRA", ICLR 2022


class TextBatch(NamedTuple):
    """Token numbers and their mask (1: token, 0: padding), both (rows, tokens) int64, and classes (rows,) int64."""

    tokens: Tensor
    mask: Tensor
    classes: Tensor


@dataclass(frozen=True)
class Tokenized:
    """Token numbers and class of every row of each part."""

    parts: dict[str, list[tuple[list[int], int]]]
    classes: int
    padding: int
    sha256: str

    def batch(self, part: str, rows: list[int]) -> TextBatch:
        chosen = [self.parts[part][row] for row in rows]
        tokens = nn.utils.rnn.pad_sequence(
            [torch.tensor(numbers) for numbers, _ in chosen], batch_first=True, padding_value=self.padding
        )
        lengths = torch.tensor([len(numbers) for numbers, _ in chosen])
        mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
        return TextBatch(tokens, mask, torch.tensor([label for _, label in chosen]))

    def by_length(self, part: str, rows: list[int]) -> list[int]:
        """`rows` with the short texts first."""
        return sorted(rows, key=lambda row: len(self.parts[part][row][0]))


@functools.cache
def tokenized(name: str) -> Tokenized:
    """The packaged data set `name`, split and tokenised once for all runs of a process."""
    from transformers import AutoTokenizer

    data = load(name, validation_size=VALIDATION, test_size=TEST)
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    parts = {}
    for part in PARTS:
        numbers = tokenizer([text for text, _ in data.parts[part]], truncation=True, max_length=MAX_LENGTH)["input_ids"]
        parts[part] = list(zip(numbers, data.labels(part), strict=True))
    # Texts that differ in case only are the same tokens; no such copy of a held out text may be learned.
    held_out = {tuple(numbers) for part in HELD_OUT for numbers, _ in parts[part]}
    parts["train"] = [row for row in parts["train"] if tuple(row[0]) not in held_out]
    digest = sha256(f"{part}\t{label}\t{text}\n".encode() for part in PARTS for text, label in data.parts[part])
    return Tokenized(parts, len(data.label_names), tokenizer.pad_token_id, digest)


class TextClassification(Problem):
    """A batch is a TextBatch."""

    def __init__(self, data: str, steps: int, lora: bool, seed: int) -> None:
        self.data = tokenized(data)
        self.steps = steps
        self.seed = seed
        self.examples = len(self.data.parts["train"])
        self.data_sha256 = self.data.sha256
        torch.manual_seed(seed)
        self.model = classifier(self.data.classes)
        if lora:
            self.model = with_adapters(self.model)
        self.model.train()

    def batches(self) -> Iterator[TextBatch]:
        generator = order_generator(self.seed)
        group = GROUP * BATCH
        done = 0
        while True:
            order = torch.randperm(self.examples, generator=generator).tolist()
            for begin in range(0, self.examples - group + 1, group):
                rows = self.data.by_length("train", order[begin : begin + group])
                for number in torch.randperm(GROUP, generator=generator).tolist():
                    if done == self.steps:
                        return
                    yield self.data.batch("train", rows[number * BATCH : (number + 1) * BATCH])
                    done += 1

    def held_out(self, part: str) -> Iterator[TextBatch]:
        rows = self.data.by_length(part, list(range(len(self.data.parts[part]))))
        for begin in range(0, len(rows), HELD_OUT_BATCH):
            yield self.data.batch(part, rows[begin : begin + HELD_OUT_BATCH])

    def logits(self, batch: TextBatch) -> tuple[Tensor, Tensor]:
        return self.model(input_ids=batch.tokens, attention_mask=batch.mask).logits, batch.classes


def classifier(classes: int) -> nn.Module:
    """The pretrained MiniLM, dropout 0.1, under a new linear layer, drawn from torch's generator."""
    from transformers import AutoModelForSequenceClassification

    with quiet_transformers():  # which would report the new layer at every run
        model: nn.Module = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=classes)
    return model


def with_adapters(model: nn.Module) -> nn.Module:
    """`model` frozen but for low-rank adapters of its attention and for its last layer, which learns in full."""
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError:
        raise InputError("the LoRA tasks need peft; run: pip install peft -c constraints.txt") from None
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=ADAPTER_DROPOUT,
        target_modules=list(ADAPTED),
        modules_to_save=["classifier"],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft calls something of transformers by its old name
        adapted: nn.Module = get_peft_model(model, config)
    return adapted


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and only errors from transformers, for as long as this lasts."""
    from transformers.utils import logging as untyped

    logging: Any = untyped

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def task(name: str, data: str, steps: int, lora: bool, text: str, rows: int) -> Task:
    how = f"LoRA (rank {RANK}, {' and '.join(ADAPTED)})" if lora else "all weights"
    return Task(
        name=f"{name}-lora" if lora else name,
        family="lora" if lora else "fine-tuning",
        steps=steps,
        warmup=math.ceil(0.1 * steps),
        decay="linear",
        clip=1.0,
        make=functools.partial(TextClassification, data, steps, lora),
        description=f"MiniLM (22.7 M), {how}, {text}, {rows:,} rows, batch {BATCH}, {MAX_LENGTH} tokens",
        passes=steps * BATCH / rows,
    )


DATA = (
    ("trec", "trec6", 100, "TREC questions in 6 classes", 3980),
    ("movie", "movie", 80, "movie review sentiment", 8670),
    ("sms", "sms", 60, "SMS spam", 3211),
)
TASKS = tuple(task(*entry[:3], lora, *entry[3:]) for lora in (False, True) for entry in DATA)
