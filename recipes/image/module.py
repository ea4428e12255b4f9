"""An image classifier as a LightningModule; the optimizer is one of `recipes.image.optimizers`."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from recipes.image import networks, optimizers
from recipes.image.data import SHAPES, Part, generator

CALIBRATION_BINS = 15


class ImageClassifier(lightning.LightningModule):
    """A network, its optimizer and its scores; `load_from_checkpoint` restores it from a checkpoint of this recipe.

    Logged are loss (nats), of the batch, at every step that Lightning logs, and every epoch train_loss, val_loss,
    train_accuracy, val_accuracy, val_calibration_error (expected calibration error over 15 bins, from 0 to 1) and lr
    (the epoch's largest; of arTuRO as published ε in nats).

    Args:
        dataset: a key of `recipes.image.data.SHAPES`.
        network: one of `recipes.image.networks.NETWORKS`.
        optimizer, setting: of `recipes.image.optimizers`.
        lr, weight_decay: as there; by default those of the optimizer and setting.
        warmup: share of the steps over which the lr rises from 0, setting "default".
        seed: of the initial weights and of dropout.

    Raises:
        InputError: nothing is published for this network and data set, or a package is missing.
    """

    def __init__(
        self,
        dataset: str = "fashion-mnist",
        network: str = "cnn",
        optimizer: str = "arturo",
        setting: str = "default",
        lr: float | None = None,
        weight_decay: float | None = None,
        warmup: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = optimizers.starting_rate(optimizer, setting, dataset, network) if lr is None else lr
        shape = SHAPES[dataset]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = networks.build(network, shape)
        self.train_accuracy = MulticlassAccuracy(shape.classes, average="micro")
        held_out = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(shape.classes, average="micro"),
                "calibration_error": MulticlassCalibrationError(shape.classes, n_bins=CALIBRATION_BINS),
            }
        )
        self.val_scores, self.test_scores = held_out.clone(prefix="val_"), held_out.clone(prefix="test_")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (rows, classes) of images (rows, channels, side, side)."""
        logits: Tensor = self.network(images)
        return logits

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        given: Any = self.hparams
        optimizer = optimizers.build(
            self.network.parameters(),
            given.optimizer,
            setting=given.setting,
            dataset=given.dataset,
            network=given.network,
            lr=self.lr,
            weight_decay=given.weight_decay,
        )
        schedule = optimizers.schedule(
            optimizer,
            given.setting,
            steps=int(self.trainer.estimated_stepping_batches),
            warmup=given.warmup,
        )
        # By steps: Lightning saves a checkpoint at an epoch's end before it steps schedules that go by epochs.
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        given: Any = self.hparams
        # Dropout's masks follow from seed and epoch: the same for every optimizer, and for a resumed run.
        torch.manual_seed(generator("dropout", given.seed, self.current_epoch).initial_seed())

    def training_step(self, batch: Part, batch_idx: int) -> Tensor:
        images, classes = batch
        logits = self(images)
        loss = functional.cross_entropy(logits, classes)
        self.train_accuracy(logits, classes)
        self.log("loss", loss)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(classes))
        # The schedule has not stepped yet; of an epoch its first, or in the warm-up its last, rate is kept.
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log("lr", lr, on_step=False, on_epoch=True, reduce_fx="max", batch_size=len(classes))
        self.log("train_accuracy", self.train_accuracy, on_step=False, on_epoch=True, batch_size=len(classes))
        return loss

    def validation_step(self, batch: Part, batch_idx: int) -> None:
        self._score(batch, "val_loss", self.val_scores)

    def test_step(self, batch: Part, batch_idx: int) -> None:
        self._score(batch, "test_loss", self.test_scores)

    def _score(self, batch: Part, name: str, scores: MetricCollection) -> None:
        images, classes = batch
        logits = self(images)
        scores.update(logits, classes)
        self.log(name, functional.cross_entropy(logits, classes), batch_size=len(classes))
        self.log_dict(scores, batch_size=len(classes))
