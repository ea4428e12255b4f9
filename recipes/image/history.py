"""What a run has logged, kept in its checkpoints, so that a resumed run has all of it."""

from __future__ import annotations

import time
from typing import Any

import lightning
import torch
from torch import Tensor

from arturo_integrations.metrics import arturo_metrics, find_arturo

#: Entries in every epoch.
PER_EPOCH = 5


class History(lightning.Callback):
    """Entries by step, the time taken, and what determines the run; stops a run early where it is asked to.

    An entry holds "step", "epoch" (in fractions), "loss" (mean training loss since the entry before) and, of arTuRO,
    "arturo/…"; at the end of an epoch also what `ImageClassifier` has logged. Loss and diagnostics go to the loggers.

    Args:
        settings: of the run, to be compared when it is resumed.
        stop_after: epochs to end after, as an interruption would.
    """

    state_key = "history"

    def __init__(self, settings: dict[str, Any], stop_after: int | None = None) -> None:
        self.settings, self.stop_after = settings, stop_after
        self.entries: list[dict[str, float]] = []
        self.seconds = self.cpu_seconds = 0.0
        self._losses: list[Tensor] = []
        self._since = (0.0, 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {
            "settings": self.settings,
            "entries": self.entries,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.entries = list(state_dict["entries"])
        self.seconds, self.cpu_seconds = state_dict["seconds"], state_dict["cpu_seconds"]

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._since = (time.perf_counter(), time.process_time())

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._losses.append(outputs["loss"].detach())
        batches = int(trainer.num_training_batches)
        if (batch_idx + 1) * PER_EPOCH // batches == batch_idx * PER_EPOCH // batches:
            return
        numbers: dict[str, float] = {"loss": float(torch.stack(self._losses).mean())}
        self._losses.clear()
        if find_arturo(trainer.optimizers[0]) is not None:
            numbers |= arturo_metrics(trainer.optimizers[0])
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=trainer.global_step)
        epoch = trainer.current_epoch + (batch_idx + 1) / batches
        self.entries.append({"step": trainer.global_step, "epoch": epoch, **numbers})

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.entries[-1] |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        begin, begin_cpu = self._since
        self.seconds += time.perf_counter() - begin
        self.cpu_seconds += time.process_time() - begin_cpu
        done = trainer.current_epoch + 1
        if trainer.progress_bar_callback is not None:
            trainer.progress_bar_callback.print(line(done, self.entries[-1]))
        if self.stop_after is not None and done >= self.stop_after:
            trainer.should_stop = True


def line(epoch: int, entry: dict[str, float]) -> str:
    """What the last entry of an epoch says, in one line."""
    forms = {
        "train_loss": "training loss {:.3f}",
        "val_loss": "validation loss {:.3f}",
        "val_accuracy": "accuracy {:.1%}",
        "arturo/eta": "η {:.3g}",
        "arturo/kl_ratio": "KL/bound {:.3f}",
    }
    return f"epoch {epoch:>3}: " + ", ".join(form.format(entry[key]) for key, form in forms.items() if key in entry)
