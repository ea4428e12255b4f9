"""What ``Arturo`` reports, beside the loss in every logger of a Lightning Trainer.

Every Trainer has an :class:`ArturoMonitor` by itself, through the entry point ``lightning.pytorch.callbacks_factory``;
one in ``Trainer(callbacks=[ArturoMonitor(...)])`` takes its place. ``ARTURO_MONITOR=0`` in the environment (or false,
no, off) switches both off. A Trainer with other optimizers does not even import ``arturo_core``.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from arturo_integrations import switch

if TYPE_CHECKING:  # imported where there is an Arturo
    from arturo_core import Arturo
    from arturo_core.reporting.layers import LayerWatch

#: A gradient whose norm has fallen by a larger share than this has been clipped; a smaller one is rounding.
_ROUNDING = 1e-3


def callbacks() -> list[Callback]:
    """What the entry point gives every Trainer: one monitor; none if ``ARTURO_MONITOR`` is 0, false, no or off."""
    return [] if switch.is_off() else [ArturoMonitor()]


@dataclass
class _Watched:
    """An ``Arturo`` of the Trainer.

    Attributes:
        prefix: of its numbers.
        optimizer: itself.
        layers: its layers, if they are asked for.
        logged: the keys that have been logged.
    """

    prefix: str
    optimizer: Arturo
    layers: LayerWatch | None = None
    logged: set[str] = field(default_factory=set)


class ArturoMonitor(Callback):
    """Logs :func:`arturo_integrations.metrics.arturo_metrics`, ``arturo/<name>``, in the record that holds the loss.

    At Lightning's own steps (``log_every_n_steps``), to all loggers of the Trainer, and into
    ``trainer.callback_metrics``; between these steps it reads nothing. With several ``Arturo``, under manual
    optimization, the keys are ``arturo/<index>/<name>`` with the index in ``trainer.optimizers``. The numbers are of
    the last step before the record. A number that a step does not have (a skipped step has no ``eta``) is logged as NaN
    once it has been logged before: Lightning would repeat the earlier one.

    Does nothing in Trainers without an ``Arturo``, if an earlier callback of the Trainer is an ``ArturoMonitor``, or
    under ``ARTURO_MONITOR=0``.

    Args:
        per_layer: also log ``arturo/layer/<layer>/<number>`` (:class:`arturo_core.reporting.layers.LayerWatch`; seven
        numbers a
            parameter) of the logged batch's first step, for which the weights are copied.
        advice: warn, once each, where the numbers of the logged steps speak against a setting
            (:class:`arturo_core.reporting.advice.ArturoAdvice`), on rank zero.
    """

    def __init__(self, per_layer: bool = False, advice: bool = True) -> None:
        self.per_layer = per_layer
        self.advice = advice
        self._watched: list[_Watched] = []
        self._unclipped: torch.Tensor | None = None

    def on_train_start(self, trainer: Any, pl_module: LightningModule) -> None:
        """Find out what there is to watch: the optimizers are built, and a checkpoint has been read.

        Raises:
            ValueError: layers are asked for under DeepSpeed.
        """
        self._close()
        first = next((one for one in trainer.callbacks if isinstance(one, ArturoMonitor)), self)
        if first is not self or trainer.barebones or switch.is_off():
            return
        self._watched = _arturos(trainer.optimizers)
        if self._watched and self.per_layer:
            from arturo_core.reporting.layers import LayerWatch

            if "deepspeed" in type(trainer.model).__module__:
                raise ValueError(
                    "Arturo: ArturoMonitor(per_layer=True) sees no layers under DeepSpeed, which gives the optimizer "
                    "one flat vector of many. Leave per_layer out, or shard by ModelParallelStrategy."
                )
            for watched in self._watched:
                watched.layers = LayerWatch(watched.optimizer, pl_module.named_parameters())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of the optimizers."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the optimizers."""
        self._close()

    def _close(self) -> None:
        for watched in self._watched:
            if watched.layers is not None:
                watched.layers.close()
        self._watched = []
        self._unclipped = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Have the layers watched in the step that will be logged."""
        if self._watched and self.per_layer and _will_log(trainer):
            for watched in self._watched:
                if watched.layers is not None:
                    watched.layers.arm()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Note how long the gradient of a step is that will be logged, before Lightning clips it."""
        if self._watched and self.advice and _clips(trainer, pl_module) and _will_log(trainer):
            self._unclipped = _length(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the numbers to the record that Lightning is about to write."""
        if not self._watched or not _will_log(trainer):
            return
        from arturo_integrations.metrics import PREFIX, arturo_metrics, reported

        for watched in self._watched:
            clipped = self._clipped(trainer, pl_module, watched.optimizer) if self.advice else None
            asked = functools.partial(
                arturo_metrics, watched.optimizer, layers=watched.layers, advice=self.advice, clipped=clipped
            )
            found = reported(asked)
            numbers = {watched.prefix + key.removeprefix(PREFIX): value for key, value in found.items()}
            numbers |= dict.fromkeys(watched.logged - numbers.keys(), float("nan"))
            watched.logged |= numbers.keys()
            # The batch size weighs means over epochs, which these are not; steps of a dataloader_iter have to say it.
            pl_module.log_dict(numbers, on_step=True, on_epoch=False, batch_size=1)
        self._unclipped = None

    def _clipped(self, trainer: Trainer, pl_module: LightningModule, optimizer: Arturo) -> bool | None:
        """Whether the step's gradients were clipped; None where that cannot be seen."""
        clips = _clips(trainer, pl_module)
        if not clips:
            return clips
        left = _length(optimizer)
        # Some modules clear the gradients in their own optimizer_step.
        if self._unclipped is None or not bool(left > 0.0):
            return None
        return bool(left < self._unclipped * (1 - _ROUNDING))


def _arturos(optimizers: Iterable[Any]) -> list[_Watched]:
    """Every ``Arturo`` among the optimizers, numbered if there are several."""
    if "arturo_core" not in sys.modules:  # there can be none
        return []
    from arturo_integrations.metrics import PREFIX, find_arturo

    found = [(index, find_arturo(optimizer)) for index, optimizer in enumerate(optimizers)]
    arturos = [(index, arturo) for index, arturo in found if arturo is not None]
    return [_Watched(f"{PREFIX}{index}/" if len(arturos) > 1 else PREFIX, arturo) for index, arturo in arturos]


def _will_log(trainer: Any) -> bool:
    """Whether Lightning writes a record of its training metrics at the end of this batch."""
    if trainer.fit_loop._should_accumulate() and trainer.lightning_module.automatic_optimization:
        return False
    return bool(trainer._logger_connector.should_update_logs or trainer.fast_dev_run)


def _clips(trainer: Trainer, pl_module: LightningModule) -> bool | None:
    """Whether Lightning may clip gradients; None where others may: the module's own loop, DeepSpeed."""
    if not pl_module.automatic_optimization or trainer.strategy.handles_gradient_accumulation:
        return None
    own = type(pl_module).configure_gradient_clipping is not LightningModule.configure_gradient_clipping
    return own or bool(trainer.gradient_clip_val)


def _length(optimizer: Any) -> torch.Tensor:
    """Norm of the gradients on this rank, 0-dimensional."""
    grads = [param.grad for group in optimizer.param_groups for param in group["params"] if param.grad is not None]
    return torch.nn.utils.get_total_norm([grad.to_local() if hasattr(grad, "to_local") else grad for grad in grads])
