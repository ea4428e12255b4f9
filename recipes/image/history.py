"""What a run has logged, kept in its checkpoints, so that a resumed run has all of it."""

from __future__ import annotations

import time
from typing import Any

import lightning
import torch
from torch import Tensor

from arturo_integrations.metrics import PREFIX


class History(lightning.Callback):
    """Entries by step, the time taken, and what determines the run; stops a run early where it is asked to.

    An entry holds "step", "epoch" (in fractions) and "loss" (mean training loss since the entry before). There is one
    at every step that Lightning logs, with what `ArturoMonitor`, an earlier callback, has added to the log, and one at
    the end of every epoch, with what `ImageClassifier` has logged over it.

    Args:
        settings: of the run, to be compared when it is resumed.
        every: the Trainer's log_every_n_steps.
        stop_after: epochs to end after, as an interruption would.
    """

    state_key = "history"

    def __init__(self, settings: dict[str, Any], every: int, stop_after: int | None = None) -> None:
        self.settings, self.every, self.stop_after = settings, every, stop_after
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
        logged = trainer.global_step % self.every == 0
        if not logged and not trainer.is_last_batch:
            return
        epoch = trainer.current_epoch + (batch_idx + 1) / int(trainer.num_training_batches)
        loss = float(torch.stack(self._losses).mean())
        self._losses.clear()
        self.entries.append({"step": trainer.global_step, "epoch": epoch, "loss": loss})
        if logged:
            self.entries[-1] |= numbers(trainer, arturo=True)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.entries[-1] |= numbers(trainer, arturo=False)
        begin, begin_cpu = self._since
        self.seconds += time.perf_counter() - begin
        self.cpu_seconds += time.process_time() - begin_cpu
        done = trainer.current_epoch + 1
        if trainer.progress_bar_callback is not None:
            trainer.progress_bar_callback.print(line(done, numbers(trainer, True) | self.entries[-1]))
        if self.stop_after is not None and done >= self.stop_after:
            trainer.should_stop = True


def numbers(trainer: lightning.Trainer, arturo: bool) -> dict[str, float]:
    """What has been logged last: the numbers of arTuRO, or all others."""
    found = trainer.callback_metrics.items()
    return {name: float(value) for name, value in found if name.startswith(PREFIX) == arturo and name != "loss"}


def line(epoch: int, entry: dict[str, float]) -> str:
    """What was logged over an epoch, in one line."""
    forms = {
        "train_loss": "training loss {:.3f}",
        "val_loss": "validation loss {:.3f}",
        "val_accuracy": "accuracy {:.1%}",
        "arturo/eta": "η {:.3g}",
        "arturo/kl_ratio": "KL/bound {:.3f}",
    }
    return f"epoch {epoch:>3}: " + ", ".join(form.format(entry[key]) for key, form in forms.items() if key in entry)
