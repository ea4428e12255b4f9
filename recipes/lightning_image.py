"""Train the networks of arTuRO's paper on Fashion-MNIST or CIFAR with Lightning, arTuRO beside other optimizers.

    python -m recipes.lightning_image                                        # arturo and adamw, minutes on a CPU
    python -m recipes.lightning_image --optimizer arturo,adamw,adam,sgd --seeds 0,1,2
    python -m recipes.lightning_image --full --setting published             # the paper's protocol: hours on a CPU
    python -m recipes.lightning_image --full --setting published --resume    # go on after an interruption
    python -m recipes.lightning_image --dataset cifar10 --data FOLDER --network resnet34 --full

All a LightningModule of yours needs is `Arturo(self.parameters(), lr=1e-3)` in `configure_optimizers`: see
`recipes.image.module`, and `arturo_integrations.lightning` for several devices. For a seed every optimizer gets the
same split, order of batches, crops and flips, initial weights and dropout. The test part is read once, after training,
with the last weights. A resumed run goes on exactly: on a CPU bit for bit, with as many threads as before. The output
folder receives metrics.json (after every run), curves.png and curves.svg, the trained model of each run as a Lightning
checkpoint, and Lightning's CSV logs.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from recipes.folders import try_folder
from recipes.text.errors import InputError, exit_code
from recipes.text.record import Record, environment

if TYPE_CHECKING:
    from recipes.image.data import Images
    from recipes.image.options import Options

EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # which would only copy images that are in memory
    "Checkpoint directory .* exists and is not empty.*",  # on --resume
    ".*treespec, LeafSpec.*",  # Lightning's own, deprecated by torch
)
LOGGED_PER_EPOCH = 5
PACKAGES = ("arturo-optim", "torch", "lightning", "torchmetrics", "transformers", "numpy")


def train(
    options: Options, optimizer: str, seed: int, images: Images, checkpoint: Path | None
) -> dict[str, Any] | None:
    """One run, or the rest of one from a checkpoint; its entry in metrics.json, or None if --stop-after ended it."""
    import lightning
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.callbacks import RichProgressBar
    from lightning.pytorch.loggers import CSVLogger

    from arturo_integrations.lightning import ArturoMonitor
    from recipes.image import checkpoints
    from recipes.image.datamodule import ImageData
    from recipes.image.history import History
    from recipes.image.module import ImageClassifier
    from recipes.text.metrics import state_bytes

    name = run_name(optimizer, seed)
    model = ImageClassifier(
        dataset=options.dataset,
        network=options.network,
        optimizer=optimizer,
        setting=options.setting,
        lr=options.learning_rate(optimizer),
        weight_decay=options.weight_decay,
        warmup=options.warmup,
        seed=seed,
    )
    data = ImageData(images, options.batch_size, seed)
    every = max(1, len(data.order) // LOGGED_PER_EPOCH)
    history = History(identity(options, images), every, options.stop_after)
    # As published arTuRO's noise levels are far from what the filter measures; advice on that would be of no use here.
    monitor = ArturoMonitor(advice=options.setting != "published")
    saving = checkpoints.callback(options.output, name, options.checkpoint_every)
    try:
        trainer = lightning.Trainer(
            accelerator=options.accelerator,
            devices=1,
            max_epochs=options.epochs,
            logger=CSVLogger(options.output / "logs", name=name),
            callbacks=[RichProgressBar(), monitor, history, saving],
            log_every_n_steps=every,
            num_sanity_val_steps=0,
            enable_model_summary=False,
        )
    except MisconfigurationException as error:
        raise InputError(f"--accelerator {options.accelerator}: {error} Choose another, or auto") from error
    trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
    if trainer.current_epoch < options.epochs:
        return None
    trainer.save_checkpoint(options.output / f"{name}.ckpt")
    steps = trainer.global_step
    (test,) = trainer.test(model, data, verbose=False)
    last = history.entries[-1]
    return {
        "optimizer": optimizer,
        "seed": seed,
        "learning_rate": options.learning_rate(optimizer),
        "steps": steps,
        "train": {"loss": last["train_loss"], "accuracy": last["train_accuracy"]},
        "validation": {key: last[f"val_{key}"] for key in ("loss", "accuracy", "calibration_error")},
        "test": {key: test[f"test_{key}"] for key in ("loss", "accuracy", "calibration_error")},
        "train_seconds": history.seconds,
        "train_cpu_seconds": history.cpu_seconds,  # of all threads, validation included; blind to other programs
        "state_bytes": state_bytes(trainer.optimizers[0]),
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "environment": environment(PACKAGES),
        "history": history.entries,
    }


def set_aside(path: Path) -> None:
    """Rename the results of an earlier comparison, which --resume would take for this one's."""
    if path.exists():
        path.replace(path.with_name("metrics.previous.json"))


def run_name(optimizer: str, seed: int) -> str:
    return f"{optimizer}-seed{seed}"


def identity(options: Options, images: Images) -> dict[str, Any]:
    """What a checkpoint has to agree on with the run that goes on from it."""
    return options.settings() | {"data": images.sha256}


def compare(options: Options, console: Console) -> None:
    """Do every run that is not done yet, then write and show the results."""
    import torch

    from recipes.image import checkpoints, report
    from recipes.image.data import Order, load
    from recipes.image.plot import plot_curves

    if options.threads:
        torch.set_num_threads(options.threads)
    with console.status(f"reading {options.dataset}"):
        images = load(
            options.dataset,
            options.data,
            train_rows=options.train_rows,
            validation_rows=options.validation_rows,
            split_seed=options.split_seed,
        )
    Order(len(images.parts["train"][1]), options.batch_size, 0)  # raises where there is no full batch
    saving = ("metrics.json", "metrics.previous.json", "curves.png", "curves.svg")
    models = [f"{run_name(optimizer, seed)}.ckpt" for seed, optimizer in options.runs]
    try_folder(options.output, files=(*saving, *models), folders=("logs", "checkpoints"))
    saved = {run: checkpoints.complete(options.output, run_name(run[1], run[0])) for run in options.runs}
    if not options.resume:
        if any(saved.values()):
            raise InputError(
                f"{options.output / 'checkpoints'} holds an unfinished run: go on with it by --resume, choose another "
                "--output, or delete that folder"
            )
        set_aside(options.output / "metrics.json")
    record = Record(options.output, options.settings(), images.summary(), options.resume)
    if options.resume and not record.runs and not any(saved.values()):
        raise InputError(f"{options.output} has neither finished runs nor checkpoints; start without --resume")
    left = [run for run in options.runs if not record.has(run[1], run[0])]
    resumed = {
        run: checkpoints.find(options.output, run_name(run[1], run[0]), identity(options, images), console)
        for run in left
    }
    for number, (seed, optimizer) in enumerate(options.runs, 1):
        name = run_name(optimizer, seed)
        if (seed, optimizer) in left:
            checkpoint = resumed[seed, optimizer]
            begin = f", from {checkpoint.stem}" if checkpoint else ""
            console.rule(f"run {number}/{len(options.runs)}: {name}{begin}")
            entry = train(options, optimizer, seed, images, checkpoint)
            if entry is None:
                console.print(f"stopped after epoch {options.stop_after}; --resume goes on from the newest checkpoint")
                return
            record.add(entry)
        else:
            console.print(f"run {number}/{len(options.runs)}: {name}: done before")
        shutil.rmtree(checkpoints.folder(options.output, name), ignore_errors=True)  # the run is whole
    plot_curves(record.content, options.output)
    report.print_table(record.content, console)
    for file in ("metrics.json", "curves.png", "curves.svg", *(f"{run_name(o, s)}.ckpt" for s, o in options.runs)):
        console.print(f"[bold]{options.output / file}[/]")


def main(argv: Sequence[str] | None = None) -> int:
    def work() -> None:
        for package in ("lightning", "matplotlib"):
            if importlib.util.find_spec(package) is None:
                raise InputError(f"{package} is not installed; run: pip install -e '.[lightning,recipes]'")
        import lightning.pytorch  # noqa: F401  (which sets the levels of its loggers)

        from recipes.image.options import parse

        options = parse(argv)
        for name in ("lightning.pytorch", "lightning.fabric"):  # their notes on everything they do
            logging.getLogger(name).setLevel(logging.WARNING)
        with warnings.catch_warnings():
            for unfounded in EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", unfounded)
            compare(options, Console())

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
