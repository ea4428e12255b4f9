"""What the core is told of frameworks by itself: how to notice them, and what to say (:mod:`arturo_core.surroundings`).

The core imports this with the first optimizer, whether or not a hook is used: the frameworks may be in use without one.
No framework is imported here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from arturo_core import surroundings
from arturo_core.distributed import flat, fsdp1

_ZERO = "torch.distributed.optim.zero_redundancy_optimizer"

#: Modules of DeepSpeed that step an optimizer whose parameters it has left alone.
_LEAVES_PARAMETERS_ALONE = ("deepspeed.runtime.engine", "deepspeed.runtime.lr_schedules", "deepspeed.runtime.utils")


def check_zero_redundancy(params: Sequence[Any], process_group: Any) -> None:
    """Raise where ``ZeroRedundancyOptimizer`` builds an optimizer of its rank's share that sees no other rank.

    Its parameters are plain tensors, so nothing but the caller tells them from replicated ones.

    Raises:
        ValueError: without ``process_group``, or over FSDP1's parameters.
    """
    if _ZERO not in sys.modules or _ZERO not in surroundings.callers():
        return
    if any(fsdp1.is_shard(param) for param in params):
        raise ValueError(
            "Arturo: ZeroRedundancyOptimizer splits parameters that FSDP1 holds already. Use one of them: "
            "FullyShardedDataParallel alone, or DistributedDataParallel with ZeroRedundancyOptimizer."
        )
    if process_group is None:
        raise ValueError(
            "Arturo: ZeroRedundancyOptimizer gives every rank a part of the parameters, and the trust region needs "
            "sums over all of them. Pass optimizer_class=functools.partial(Arturo, "
            "process_group=torch.distributed.group.WORLD) (or the group that the parameters are split over)."
        )


def check_deepspeed(groups: Iterable[dict[str, Any]]) -> None:
    """Raise where DeepSpeed takes a step of parameters of its own making, and nobody has said what they are made of.

    It exchanges an optimizer's parameters for flat partitions, and steps them group by group.

    Raises:
        RuntimeError: a parameter is not declared in :mod:`arturo_core.distributed.flat`.
    """
    if "deepspeed" not in sys.modules or all(flat.is_declared(param) for group in groups for param in group["params"]):
        return
    for module in surroundings.callers():
        if module.startswith("deepspeed.runtime.") and module not in _LEAVES_PARAMETERS_ALONE:
            raise RuntimeError(
                f"Arturo: a step was asked for by {module}, which trains parts of the parameters, one parameter group "
                "at a time; the trust region needs them all. With ZeRO stage 1, 2 or 3 call "
                "arturo_integrations.deepspeed.attach(engine) after deepspeed.initialize() or Accelerator.prepare(); "
                "under Lightning return arturo_integrations.lightning.optimizer_for(self, ...) from "
                "configure_optimizers. Without ZeRO, DeepSpeed is supported in float32 alone, without pipeline stages: "
                "use ZeRO stage 1 for bf16 and fp16."
            )


def is_lightning_module(kind: type) -> bool:
    """Whether a class is a LightningModule, which is often a container of networks with an optimizer each."""
    return any(base.__name__ == "LightningModule" for base in kind.__mro__)


surroundings.add_caller_check(check_zero_redundancy)
surroundings.add_step_check(check_deepspeed)
surroundings.add_container(is_lightning_module)
