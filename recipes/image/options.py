"""The command line of `recipes.lightning_image`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from recipes.arguments import (
    HelpFormatter,
    Parser,
    check_rates,
    decay,
    known,
    listing,
    path,
    positive,
    rate_for,
    seed,
    seed_listing,
    share,
    threads,
)
from recipes.image import optimizers, published
from recipes.image.data import SHAPES
from recipes.image.networks import NETWORKS
from recipes.text.errors import InputError
from recipes.trial import try_optimizer

#: The short protocol: two runs of it fit three minutes on two cores.
SHORT_EPOCHS, SHORT_ROWS = 5, 12_000
ALL_ROWS = 0  # on the command line; None in Options
# Options that add runs or say where and how to run, and leave the result of any one run alone.
NOT_SETTINGS = (
    "data",
    "optimizers",
    "seeds",
    "output",
    "resume",
    "stop_after",
    "checkpoint_every",
    "threads",
    "accelerator",
)


@dataclass(frozen=True)
class Options:
    """The parsed command line; `parse` documents every field."""

    dataset: str
    data: Path | None
    network: str
    train_rows: int | None
    validation_rows: int
    split_seed: int
    optimizers: list[str]
    setting: str
    lr_for: dict[str, float]
    weight_decay: float | None
    warmup: float
    epochs: int
    batch_size: int
    seeds: list[int]
    checkpoint_every: int
    stop_after: int | None
    output: Path
    resume: bool
    accelerator: str
    threads: int | None

    @property
    def runs(self) -> list[tuple[int, str]]:
        """(seed, optimizer) of every run; seed by seed, so that an interruption leaves whole comparisons."""
        return [(seed, optimizer) for seed in self.seeds for optimizer in self.optimizers]

    def learning_rate(self, optimizer: str) -> float:
        """Before any schedule; of arTuRO as published its bound ε in nats."""
        usual = optimizers.starting_rate(optimizer, self.setting, self.dataset, self.network)
        return self.lr_for.get(optimizer, usual)

    def settings(self) -> dict[str, Any]:
        """What determines a run besides its optimizer and seed; `--resume` needs the same."""
        return {key: value for key, value in asdict(self).items() if key not in NOT_SETTINGS}


def rows(text: str) -> int:
    return ALL_ROWS if text == "all" else positive(text)


def parse(argv: Sequence[str] | None = None) -> Options:
    """Read the command line; `--help` prints what each option means.

    Raises:
        InputError: options that contradict each other or that no optimizer takes, or a task that nothing is published
            for.
    """
    parser = Parser(
        prog="python -m recipes.lightning_image",
        description="The image experiments of arTuRO's paper with Lightning: Fashion-MNIST or CIFAR, arTuRO beside "
        "AdamW, Adam and SGD, with the same split, order of batches, initial weights and dropout. Without options a "
        "short comparison of arTuRO and AdamW on Fashion-MNIST, minutes on a CPU.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument_group("data and network").add_argument
    add("--dataset", choices=tuple(SHAPES), default="fashion-mnist", help="CIFAR needs --data")
    add("--data", type=path, help="folder of the files; Fashion-MNIST is found where its package or our command put it")
    add("--network", choices=NETWORKS, default="cnn", help="cnn is the paper's for the data set")
    add("--train-rows", type=rows, help=f'"all", or so many; {SHORT_ROWS:,} unless --full')
    add("--validation-rows", type=positive, default=5000, help="rows of the training file held out for validation")
    add("--split-seed", type=seed, default=0, help="of that split, the same for every run")
    training = parser.add_argument_group("training")
    add, protocol = training.add_argument, training.add_mutually_exclusive_group()
    protocol.add_argument("--short", action="store_true", help="a few epochs of a part of the rows, the default")
    protocol.add_argument("--full", action="store_true", help="the published protocol's epochs of all rows")
    add("--optimizer", type=listing, default="arturo,adamw", help=f"of {', '.join(optimizers.NAMES)}, with commas")
    add(
        "--setting",
        choices=optimizers.SETTINGS,
        default="default",
        help="published: arTuRO with the paper's values and schedule; the others, of which no published values are "
        "known to us, at common defaults in both",
    )
    add("--lr-for", type=rate_for, action="append", default=[], metavar="OPTIMIZER=LR", help="another learning rate")
    add("--weight-decay", type=decay, help="of every optimizer; unless given AdamW's default 0.01, 0 for the others")
    add("--warmup", type=share, default=0.05, help="share of the steps over which lr rises, --setting default")
    add("--epochs", type=positive, help=f"{SHORT_EPOCHS} unless --full, which has 120 (CIFAR: 160)")
    add("--batch-size", type=positive, default=published.BATCH_SIZE, help="the published one")
    add = parser.add_argument_group("runs").add_argument
    add("--seeds", type=seed_listing, default="0", help="one run each per optimizer, with commas")
    add("--checkpoint-every", type=positive, default=1, help="epochs between checkpoints")
    add("--resume", action="store_true", help="keep the finished runs in --output, go on with the unfinished one")
    add("--stop-after", type=positive, help="end after this epoch, as an interruption would: to try --resume")
    add("--output", type=path, default=Path("runs/lightning_image"), help="folder of results")
    add("--accelerator", choices=("auto", "cpu", "gpu", "mps"), default="auto", help="of which one device is used")
    add(
        "--threads",
        type=threads,
        help="CPU threads, PyTorch's choice unless given; 1 is faster where other programs keep the cores busy",
    )
    given = vars(parser.parse_args(argv))
    given["lr_for"] = dict(given["lr_for"])
    given["optimizers"] = given.pop("optimizer")
    del given["short"]
    full = given.pop("full")
    check(given, full)
    chosen = ALL_ROWS if full else given["train_rows"]
    given["train_rows"] = SHORT_ROWS if chosen is None else chosen or None
    given["epochs"] = published.EPOCHS[given["dataset"]] if full else given["epochs"] or SHORT_EPOCHS
    options = Options(**given)
    for name in options.optimizers:
        try_optimizer(f"--optimizer {name}", partial(_build, options, name))
    return options


def _build(options: Options, name: str, network: Any) -> Any:
    return optimizers.build(
        network.parameters(),
        name,
        setting=options.setting,
        dataset=options.dataset,
        network=options.network,
        lr=options.learning_rate(name),
        weight_decay=options.weight_decay,
    )


def check(given: dict[str, Any], full: bool) -> None:
    """Raise an InputError for what cannot be meant."""
    if not given["optimizers"] or not given["seeds"]:
        raise InputError("--optimizer and --seeds need at least one entry")
    for name in given["optimizers"]:
        known("--optimizer", name, optimizers.NAMES)
    check_rates(given["lr_for"], given["optimizers"], "--optimizer")
    if full and (given["epochs"], given["train_rows"]) != (None, None):
        raise InputError("--full sets epochs and rows: leave it out to choose --epochs and --train-rows")
    if given["setting"] == "published" and "arturo" in given["optimizers"]:
        published.values(given["dataset"], given["network"])
        if "arturo" in given["lr_for"] or given["weight_decay"] is not None:
            raise InputError(
                "--setting published has its own bound and weight decay for arturo: leave out --lr-for arturo=… and "
                "--weight-decay, or choose --setting default"
            )
