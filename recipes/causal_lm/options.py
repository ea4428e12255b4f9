"""The command line of `recipes.finetune_causal_lm`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recipes.arguments import HelpFormatter, Parser, amount, decay, learning_rate, path, positive, seed, several, share
from recipes.causal_lm.data import PACKAGED
from recipes.causal_lm.model import SMALL
from recipes.text.errors import InputError
from recipes.text.files import check_columns
from recipes.trial import try_optimizer

# Options that say where, how and how far to run, and leave every step of the run alone.
NOT_SETTINGS = ("output", "resume", "stop_after", "checkpoint_every", "keep", "against", "log_with", "accumulate")


@dataclass(frozen=True)
class Options:
    """The parsed command line; `parse` documents every field."""

    model: str
    data: str
    data_config: str | None
    text_column: str
    block: int
    optimizer: str
    lr: float
    schedule: str
    warmup: float
    weight_decay: float
    max_grad_norm: float
    steps: int
    batch_size: int
    accumulate: int
    seed: int
    eval_every: int
    eval_blocks: int
    checkpoint_every: int | None
    keep: int
    stop_after: int | None
    output: Path
    resume: bool
    against: list[Path]
    log_with: str | None

    @property
    def offline(self) -> bool:
        """Whether model and data are both on this machine, so that no hub need be asked."""
        return (self.model == SMALL or os.path.exists(self.model)) and (
            self.data in PACKAGED or os.path.exists(self.data)
        )

    def micro_batch(self, processes: int) -> int:
        """Blocks that one process sees at once."""
        parts = processes * self.accumulate
        if self.batch_size % parts:
            raise InputError(
                f"--batch-size {self.batch_size} cannot be divided evenly over {processes} process(es) × --accumulate "
                f"{self.accumulate}; give a multiple of {parts}"
            )
        return self.batch_size // parts

    def settings(self) -> dict[str, Any]:
        """What determines the run; `--resume` needs the same."""
        return {key: value for key, value in asdict(self).items() if key not in NOT_SETTINGS}


def parse(argv: Sequence[str] | None = None) -> Options:
    """Read the command line; `--help` prints what each option means.

    Raises:
        InputError: options without effect or that no optimizer takes.
    """
    parser = Parser(
        prog="python -m recipes.finetune_causal_lm",
        description="Train or fine-tune a causal language model with arTuRO (or AdamW) through Accelerate. Without "
        "options a small transformer learns Python's standard library byte by byte, and nothing comes from a network.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument_group("model and data").add_argument
    add("--model", default=SMALL, help=f"{SMALL} (from scratch, bytes), or a pretrained one: a hub name or a folder")
    add("--data", default="python", help=f"{', '.join(PACKAGED)}; a text, CSV or JSON(L) file; a `datasets` path")
    add("--data-config", help="configuration of a hub data set, such as wikitext-2-raw-v1 of Salesforce/wikitext")
    add("--text-column", help="its name in CSV, JSON and `datasets`; text unless given")
    add("--block", type=several, default=128, help="tokens of a training example")
    add = parser.add_argument_group("training").add_argument
    add("--optimizer", choices=("arturo", "adamw"), default="arturo", help="of torch for adamw")
    add(
        "--lr",
        type=learning_rate,
        help=f"at its peak; 1e-3 for {SMALL} and 5e-5 for pretrained models unless given",
    )
    add("--schedule", default="cosine", help="any of `transformers.get_scheduler`")
    add("--warmup", type=share, default=0.05, help="share of the steps over which the rate rises from 0")
    add("--weight-decay", type=decay, default=0.0, help="decoupled, for all but biases and normalisation")
    add("--max-grad-norm", type=amount, help="0 for no clipping; unless given, none for arturo and 1.0 for adamw")
    add("--steps", type=positive, default=300, help="optimizer steps")
    add("--batch-size", type=positive, default=16, help="blocks of an optimizer step, of all processes together")
    add("--accumulate", type=positive, default=1, help="parts that a step's blocks are worked through in")
    add("--seed", type=seed, default=0, help="of the data order, of new weights, of dropout")
    add = parser.add_argument_group("runs").add_argument
    add("--eval-every", type=positive, help="steps between evaluations; ten evaluations a run unless given")
    add("--eval-blocks", type=positive, default=64, help="validation blocks, evenly spaced")
    add("--checkpoint-every", type=positive, help="steps between checkpoints; none unless given")
    add("--keep", type=positive, default=2, help="newest checkpoints left in place")
    add("--resume", action="store_true", help="go on from the newest complete checkpoint in --output")
    add("--stop-after", type=positive, help="end after this step, as an interruption would: to try --resume")
    add("--against", type=path, action="append", default=[], help="folder of an earlier run, to compare with")
    add("--log-with", help="a tracker of Accelerate's, such as tensorboard or wandb")
    add("--output", type=path, default=Path("runs/finetune_causal_lm"), help="folder of results")
    given = vars(parser.parse_args(argv))
    check_columns(given, PACKAGED)
    given["text_column"] = given["text_column"] or "text"
    if given["lr"] is None:
        given["lr"] = 1e-3 if given["model"] == SMALL else 5e-5
    if given["max_grad_norm"] is None:  # arTuRO bounds its steps itself and models raw gradients
        given["max_grad_norm"] = 0.0 if given["optimizer"] == "arturo" else 1.0
    if given["eval_every"] is None:
        given["eval_every"] = -(-given["steps"] // 10)
    options = Options(**given)
    try_optimizer(f"--optimizer {options.optimizer}", lambda network: build(network.parameters(), options))
    return options


def build(params: Any, options: Options) -> Any:
    """The optimizer of a command line."""
    import torch

    from arturo_core import Arturo

    kind: Any = Arturo if options.optimizer == "arturo" else torch.optim.AdamW
    return kind(params, lr=options.lr, weight_decay=options.weight_decay)
