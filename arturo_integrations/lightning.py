"""``Arturo`` with Lightning: one call for every strategy, and the diagnostics beside the loss in every logger.

    def configure_optimizers(self):
        return optimizer_for(self, lr=3e-4, weight_decay=0.01)

What each strategy needs:

======================================= ============================================================================
one process, DDP, ModelParallelStrategy ``Arturo(self.parameters(), lr=...)`` does too
FSDPStrategy (FSDP1)                    the process group of the shards, which :func:`optimizer_for` finds
DeepSpeedStrategy                       :func:`arturo_integrations.deepspeed.attach` before the first step, which
                                        :func:`optimizer_for` arranges
======================================= ============================================================================

With Fabric: ``optimizer_for(fabric.setup_module(model), lr=...)``, then ``fabric.setup_optimizers``, is right for all
strategies but DeepSpeed's, which sets up both together: ``model, optimizer = fabric.setup(model, Arturo(...))``, then
``attach(optimizer)``, with ``strategy.config["gradient_clipping"] = 0.0`` (DeepSpeed clips to 1.0 by default; Trainer
changes that). Fabric leaves logging to its user:
``fabric.log_dict({"loss": loss, **arturo_metrics(optimizer)}, step)``.

Trainer's loggers get the same numbers from :class:`ArturoMonitor`, which every Trainer has by itself; see
:mod:`arturo_integrations.lightning_monitor`. ``ARTURO_MONITOR=0`` in the environment switches it off.

``LightningCLI`` takes ``--optimizer=Arturo`` once this module (or ``arturo_core``) has been imported, and
``--optimizer=arturo_core.Arturo`` without; it builds the optimizer itself, so FSDP1 and DeepSpeed need
``configure_optimizers`` as above.

``trainer.optimizers`` are the optimizers themselves. What ``self.optimizers()`` and Fabric return are wrappers, on
which every method of an ``Arturo`` does what it does on the optimizer inside; attributes set on them stay there.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from arturo_core import Arturo
from arturo_integrations import fsdp1
from arturo_integrations.deepspeed import attach
from arturo_integrations.lightning_monitor import ArturoMonitor
from arturo_integrations.metrics import arturo_metrics, find_arturo
from arturo_integrations.unsharded import few, unsharded

__all__ = ["ArturoMonitor", "DeepSpeedAttachment", "arturo_metrics", "find_arturo", "optimizer_for"]


def optimizer_for(
    module: nn.Module, lr: float | Tensor = 1e-3, *, params: ParamsT | None = None, **options: Any
) -> Arturo:
    """An ``Arturo`` over a module's trainable parameters, told what the strategy's sharding does not tell it.

    Args:
        module: ``self``, in ``configure_optimizers``; with Fabric, what ``fabric.setup_module`` has returned.
        lr: of :class:`arturo_core.Arturo`.
        params: parameters, named parameters or groups to optimise instead of all trainable ones. Those of ``module`` as
            it is now, after sharding; ``FSDPStrategy(use_orig_params=False)`` has but flat ones, in
            ``self.trainer.model.parameters()``.
        options: of :class:`arturo_core.Arturo`: ``weight_decay``, ``noise``, ...

    Raises:
        ValueError: the strategy shards the model but for some trainable parameters, whose gradients would differ
            between ranks; and what ``Arturo`` raises.
    """
    strategy, trainer, model = _surroundings(module)
    trainable = [param for param in model.parameters() if param.requires_grad]
    group = fsdp1.process_group(model)
    if group is not None:
        options = {"process_group": group, **options}
    _check_sharded(model, strategy, by_fsdp1=group is not None)
    arturo = Arturo(trainable if params is None else params, lr, **options)
    if isinstance(strategy, DeepSpeedStrategy):
        DeepSpeedAttachment.add_to(trainer)
    return arturo


class DeepSpeedAttachment(Callback):
    """Makes steps under ``DeepSpeedStrategy`` exact; :func:`optimizer_for` adds it to the Trainer.

    DeepSpeed steps the partitions of the parameters one after another; see :mod:`arturo_integrations.deepspeed`.
    """

    @classmethod
    def add_to(cls, trainer: Any) -> None:
        """Give the Trainer one, before its other callbacks; a second one is not added."""
        if not any(isinstance(callback, cls) for callback in trainer.callbacks):
            trainer.callbacks.insert(0, cls())

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The engine has been built, and no checkpoint been read.

        Raises:
            ValueError, RuntimeError: as :func:`arturo_integrations.deepspeed.attach`.
        """
        attach(trainer.model)


def _surroundings(module: Any) -> tuple[Any, Any, nn.Module]:
    """The strategy that has set a module up and its Trainer, where there are any, and what became of the module."""
    strategy = getattr(module, "_strategy", None)  # of Fabric's modules
    if strategy is not None:
        return strategy, None, module
    try:
        trainer = module.trainer
    except (AttributeError, RuntimeError):  # no LightningModule, or one without a Trainer
        return None, None, module
    model = getattr(trainer, "model", None)
    return getattr(trainer, "strategy", None), trainer, module if model is None else model


def _check_sharded(model: nn.Module, strategy: Any, by_fsdp1: bool) -> None:
    """Raise ``ValueError`` where ranks of a sharded model hold a parameter whole and see different data."""
    mesh = getattr(strategy, "_device_mesh", None)
    if not by_fsdp1 and (mesh is None or mesh["data_parallel"].size() == 1):
        return
    whole = unsharded(model)
    if whole:
        left, how = ("FSDP1 leaves", "let FSDP wrap them") if by_fsdp1 else ("fully_shard has not", "shard them too")
        raise ValueError(
            f"Arturo: {left} split {few(whole)}: their gradients differ between ranks, and "
            f"with them the one multiplier. Freeze them with requires_grad_(False), or {how}."
        )
