"""What ``Arturo`` reports, beside the loss in every logger of a Lightning Trainer.

Every Trainer has an :class:`ArturoMonitor` by itself, through the entry point ``lightning.pytorch.callbacks_factory``;
``ARTURO_MONITOR=0`` in the environment switches that off. One in ``Trainer(callbacks=[ArturoMonitor(...)])`` takes its
place. A Trainer whose optimizers are others does not even import ``arturo_core``.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

if TYPE_CHECKING:
    from arturo_core import Arturo

SWITCH = "ARTURO_MONITOR"
#: A gradient whose norm has fallen by more than this share of it has been clipped, not rounded.
_ROUNDING = 1e-3


def callbacks() -> list[Callback]:
    """What the entry point gives every Trainer: one monitor; none if ``ARTURO_MONITOR`` is 0, false, no or off."""
    off = os.environ.get(SWITCH, "").strip().lower() in ("0", "false", "no", "off")
    return [] if off else [ArturoMonitor()]


@dataclass
class _Watched:
    """An ``Arturo`` of the Trainer, and what follows it."""

    name: str
    optimizer: Arturo
    layers: Any = None
    advisor: Any = None
    logged: set[str] = field(default_factory=set)


class ArturoMonitor(Callback):
    """Logs ``optimizer.diagnostics()`` of every ``Arturo`` as ``arturo/<name>``, in the record that holds the loss.

    At Lightning's own steps (``log_every_n_steps``), to all loggers of the Trainer, and into
    ``trainer.callback_metrics``; between these steps it reads nothing. With several ``Arturo``, under manual
    optimization, the keys are ``arturo/<index>/<name>`` with the index in ``trainer.optimizers``. The numbers are of the
    last step before the record. A number that a step does not have (a skipped step has no ``eta``) is logged as NaN,
    once it has been logged before: Lightning would otherwise repeat the earlier one.

    Does nothing in Trainers without an ``Arturo``, nor where an earlier callback of the Trainer is an ``ArturoMonitor``.

    Args:
        per_layer: also log ``arturo/layer/<layer>/<number>`` of :class:`arturo_core.layers.LayerWatch`, of the first
            step of the batch whose record it is. The weights are copied for that step.
        advice: warn (:class:`arturo_core.advice.ArturoAdvice`, on rank zero, each advice once) where the numbers of the
            logged steps say that a setting should be changed.
    """

    def __init__(self, per_layer: bool = False, advice: bool = True) -> None:
        self.per_layer = per_layer
        self.advice = advice
        self._watched: list[_Watched] = []
        self._unclipped: torch.Tensor | None = None

    # -- life ----------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out what there is to watch; the optimizers are there, and a checkpoint has been read."""
        self._close()
        first = next((one for one in trainer.callbacks if isinstance(one, ArturoMonitor)), self)
        if first is not self or trainer.barebones:
            return
        for name, optimizer in _arturos(trainer.optimizers):
            watched = _Watched(name, optimizer)
            if self.per_layer:
                from arturo_core.layers import LayerWatch

                watched.layers = LayerWatch(optimizer, _plain_names(pl_module))
            if self.advice and trainer.is_global_zero:
                from arturo_core.advice import Advisor

                watched.advisor = Advisor(optimizer)
            self._watched.append(watched)

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

    # -- steps ---------------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Have the layers watched in the step that will be logged."""
        if self._watched and self.per_layer and _will_log(trainer):
            for watched in self._watched:
                watched.layers.arm()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Note how long the gradient of a step is that will be logged, before Lightning clips it."""
        advised = any(watched.advisor is not None for watched in self._watched)
        if advised and _clips(trainer, pl_module) and _will_log(trainer):
            self._unclipped = _length(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the numbers to the record that Lightning is about to write."""
        if not self._watched or not _will_log(trainer):
            return
        from arturo_integrations.metrics import loggable

        for watched in self._watched:
            diagnostics = watched.optimizer.diagnostics()
            numbers = loggable(diagnostics)
            if watched.layers is not None:
                from arturo_integrations.metrics import layer_metrics

                numbers |= layer_metrics(watched.layers)
            self._log(pl_module, watched, numbers)
            if watched.advisor is not None:
                self._advise(watched, diagnostics, self._clipped(trainer, pl_module, watched.optimizer))
        self._unclipped = None

    def _log(self, pl_module: LightningModule, watched: _Watched, numbers: dict[str, int | float]) -> None:
        named = {watched.name + key.removeprefix("arturo/"): value for key, value in numbers.items()}
        missing = dict.fromkeys(watched.logged - named.keys(), float("nan"))
        watched.logged |= named.keys()
        # The batch size weighs means over an epoch, of which there are none; a dataloader_iter step has to give it.
        pl_module.log_dict(named | missing, on_step=True, on_epoch=False, batch_size=1)

    def _advise(self, watched: _Watched, diagnostics: dict[str, Any], clipped: bool | None) -> None:
        from arturo_core.advice import ArturoAdvice

        for text in watched.advisor.check(diagnostics, clipped):
            warnings.warn(text, ArturoAdvice, stacklevel=2)

    def _clipped(self, trainer: Trainer, pl_module: LightningModule, optimizer: Arturo) -> bool | None:
        """Whether the step's gradients were clipped; None where that cannot be seen."""
        clips = _clips(trainer, pl_module)
        if not clips:
            return clips
        if self._unclipped is None:
            return None
        return bool(_length(optimizer) < self._unclipped * (1 - _ROUNDING))


def _clips(trainer: Trainer, pl_module: LightningModule) -> bool | None:
    """Whether Lightning may clip gradients; None where others do: the module's own loop, DeepSpeed."""
    if not pl_module.automatic_optimization or trainer.strategy.handles_gradient_accumulation:
        return None
    own = type(pl_module).configure_gradient_clipping is not LightningModule.configure_gradient_clipping
    return own or bool(trainer.gradient_clip_val)


def _will_log(trainer: Trainer) -> bool:
    """Whether Lightning writes a record of its training metrics at the end of this batch."""
    loop = trainer.fit_loop
    if loop._should_accumulate() and trainer.lightning_module.automatic_optimization:
        return False
    return bool(trainer._logger_connector.should_update_logs or trainer.fast_dev_run)


def _arturos(optimizers: Iterable[Any]) -> list[tuple[str, Arturo]]:
    """Every ``Arturo`` among the optimizers, with the prefix of its numbers."""
    if "arturo_core" not in sys.modules:  # there can be none
        return []
    from arturo_integrations.metrics import PREFIX, find_arturo

    found = [(index, find_arturo(optimizer)) for index, optimizer in enumerate(optimizers)]
    arturos = [(index, arturo) for index, arturo in found if arturo is not None]
    return [(f"{PREFIX}{index}/" if len(arturos) > 1 else PREFIX, arturo) for index, arturo in arturos]


def _plain_names(module: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """Parameters by the names that they had before they were wrapped."""
    wrappers = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
    named = []
    for name, param in module.named_parameters():
        for wrapper in wrappers:
            name = name.replace(wrapper, "")
        named.append((name, param))
    return named


def _length(optimizer: Any) -> torch.Tensor:
    """Norm of the gradients on this rank, 0-dimensional."""
    grads = [param.grad for group in optimizer.param_groups for param in group["params"] if param.grad is not None]
    here = [grad.to_local() if hasattr(grad, "to_local") else grad for grad in grads]
    return torch.nn.utils.get_total_norm(here)
