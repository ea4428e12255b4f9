"""DeepSpeed's ZeRO under the Trainer: the call of :func:`arturo_integrations.deepspeed.attach`."""

from __future__ import annotations

from typing import Any

from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper  # its package exports it with DeepSpeed alone
from transformers import TrainerCallback

from arturo_integrations.deepspeed import attach
from arturo_integrations.metrics import find_arturo


class ArturoZeroCallback(TrainerCallback):
    """Attaches an ``Arturo`` that DeepSpeed has wrapped, before the first step.

    Raises:
        ValueError: ZeRO is configured in a way whose steps could not be exact.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        if isinstance(optimizer, DeepSpeedOptimizerWrapper) and find_arturo(optimizer) is not None:
            attach(optimizer)


def refuse_replacement(args: Any) -> None:
    """Refuses training arguments under which Accelerate would train with DeepSpeedCPUAdam without a word.

    Raises:
        ValueError: the optimizer is to be offloaded, and DeepSpeed's config does not allow other optimizers.
    """
    config = getattr(getattr(args, "deepspeed_plugin", None), "deepspeed_config", None) or {}
    offload = (config.get("zero_optimization") or {}).get("offload_optimizer") or {}
    if offload.get("device", "none") != "none" and config.get("zero_force_ds_cpu_optimizer", True):
        raise ValueError(
            'Arturo: under offload_optimizer, Accelerate puts DeepSpeedCPUAdam in the place of optim="arturo". Set '
            '"zero_force_ds_cpu_optimizer": false in the DeepSpeed config, or leave offload_optimizer out.'
        )
