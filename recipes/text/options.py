"""The command line of `recipes.finetune_text`."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recipes.arguments import (
    LARGEST,
    HelpFormatter,
    Parser,
    amount,
    check_rates,
    decay,
    learning_rate,
    listing,
    path,
    positive,
    rate,
    rate_for,
    seed,
    seed_listing,
    several,
    share,
    threads,
)
from recipes.text.errors import InputError
from recipes.text.files import check_columns
from recipes.text.packaged import MINILM, PACKAGED

# What a short name on the command line means to `transformers.TrainingArguments(optim=...)`.
TRAINER_NAMES = {"adamw": "adamw_torch_fused"}
# Options that add runs or say where and how to run, and leave the result of any one run alone.
NOT_SETTINGS = ("optimizers", "seeds", "output", "resume", "threads")


@dataclass(frozen=True)
class Options:
    """The parsed command line; `parse` documents every field."""

    model: str
    data: str
    data_config: str | None
    text_column: str | None
    label_column: str | None
    split_seed: int
    validation_size: int
    test_size: int
    optimizers: list[str]
    optim_args: str | None
    lr: float
    lr_for: dict[str, float]
    schedule: str
    warmup: float
    weight_decay: float
    max_grad_norm: float | None
    max_steps: int | None
    epochs: float | None
    batch_size: int
    max_length: int
    seeds: list[int]
    eval_every: int | None
    output: Path
    resume: bool
    threads: int | None

    @property
    def offline(self) -> bool:
        """Whether model and data are both on this machine, so that no hub need be asked."""
        return (self.model == MINILM or os.path.exists(self.model)) and (
            self.data in PACKAGED or os.path.exists(self.data)
        )

    @property
    def runs(self) -> list[tuple[int, str]]:
        """(seed, optimizer) of every run; seed by seed, so that an interruption leaves whole comparisons."""
        return [(seed, optimizer) for seed in self.seeds for optimizer in self.optimizers]

    def steps(self, rows: int) -> int:
        """Optimizer steps of a run on `rows` training rows."""
        if self.max_steps is not None:
            return self.max_steps
        wanted = (1.0 if self.epochs is None else self.epochs) * math.ceil(rows / self.batch_size)
        if wanted > LARGEST:
            raise InputError(f"--epochs {self.epochs:g} are {wanted:.0e} steps: give fewer, or --max-steps")
        return max(1, math.ceil(wanted))

    def eval_steps(self, steps: int) -> int:
        """Steps from one evaluation on the validation part to the next; five a run unless told."""
        return math.ceil(steps / 5) if self.eval_every is None else self.eval_every

    def learning_rate(self, optimizer: str) -> float:
        return self.lr_for.get(optimizer, self.lr)

    def clipping(self, optimizer: str) -> float:
        """Largest gradient norm let through, 0 for no limit: as each optimizer is meant to be used."""
        if self.max_grad_norm is not None:
            return self.max_grad_norm
        return 0.0 if optimizer == "arturo" else 1.0  # arTuRO bounds its steps itself and models raw gradients

    def settings(self) -> dict[str, Any]:
        """What determines a run besides its optimizer and seed; `--resume` needs the same."""
        return {key: value for key, value in asdict(self).items() if key not in NOT_SETTINGS}


def parse(argv: Sequence[str] | None = None) -> Options:
    """Read the command line; `--help` prints what each option means."""
    parser = Parser(
        prog="python -m recipes.finetune_text",
        description="Fine-tune a pretrained transformer on text classification with arTuRO beside AdamW: "
        "same data, seeds, budget and learning rate. Without options everything comes from installed "
        "packages and nothing from the network.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument_group("model and data").add_argument
    add("--model", default=MINILM, help="the packaged MiniLM, a hub name or a folder")
    add(
        "--data",
        default="trec6",
        help=f"{', '.join(PACKAGED)}; a CSV, TSV, JSON or JSONL file; a `datasets` path",
    )
    add("--data-config", help="configuration of a hub data set, such as sst2 of nyu-mll/glue")
    add("--text-column", help="its name in your own data; guessed if it is a usual one")
    add("--label-column", help="its name in your own data; guessed if it is a usual one")
    add("--max-length", type=several, default=48, help="tokens; longer texts are cut")
    add("--validation-size", type=positive, default=500, help="rows, at most a tenth of the data")
    add("--test-size", type=positive, default=1000, help="rows, at most a fifth of the data")
    add("--split-seed", type=seed, default=0, help="seed of the split, the same for every run")
    add = parser.add_argument_group("training").add_argument
    add("--optimizers", type=listing, default="arturo,adamw", help="any of the Trainer's")
    add("--optim-args", help='options of arturo, such as "kl_rtol=1e-2,noise=fixed"')
    # The default had AdamW's best validation loss on trec6 among 1.5e-4, 3e-4, 6e-4 and 1e-3 (100 steps, seed 0).
    add("--lr", type=learning_rate, default=3e-4, help="learning rate of every optimizer")
    add("--lr-for", type=rate_for, action="append", default=[], metavar="OPTIMIZER=LR", help="exception to --lr")
    add("--schedule", default="linear", help="any learning rate schedule of the Trainer")
    add("--warmup", type=share, default=0.1, help="share of the steps over which the rate rises from 0")
    add("--weight-decay", type=decay, default=0.0, help="decoupled, for all but biases and normalisation")
    clipping = "gradient clipping of all, 0 for none; unless given, none for arturo and the Trainer's 1.0 for others"
    add("--max-grad-norm", type=amount, help=clipping)
    add("--batch-size", type=positive, default=16, help="training rows of a step")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--max-steps", type=positive, help="steps of a run; 100 unless --epochs is given")
    budget.add_argument("--epochs", type=rate, help="passes over the training part")
    add = parser.add_argument_group("runs").add_argument
    add("--seeds", type=seed_listing, default="0", help="one run each per optimizer, with commas")
    add("--eval-every", type=positive, help="steps between evaluations; five evaluations a run unless given")
    add("--output", type=path, default=Path("runs/finetune_text"), help="folder of results")
    add("--resume", action="store_true", help="keep the finished runs found in --output and do the others")
    add("--threads", type=threads, help="CPU threads; PyTorch decides unless given")
    given = vars(parser.parse_args(argv))
    given["lr_for"] = dict(given["lr_for"])
    try:
        check_rates(given["lr_for"], given["optimizers"], "--optimizers")
        check_columns(given, PACKAGED)
    except InputError as error:
        parser.error(str(error))
    if given["optim_args"] and "arturo" not in given["optimizers"]:
        parser.error("--optim-args is for arturo, which is not among --optimizers")
    if not given["optimizers"] or not given["seeds"]:
        parser.error("--optimizers and --seeds need at least one entry")
    if given["epochs"] is None and given["max_steps"] is None:
        given["max_steps"] = 100
    return Options(**given)
