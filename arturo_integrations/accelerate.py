"""``Arturo`` with Hugging Face Accelerate: one call for every layout, and the diagnostics for trackers.

    accelerator = Accelerator(log_with="tensorboard")
    model, optimizer, batches = prepare(accelerator, model, batches, lr=3e-4, weight_decay=0.01)
    ...
    accelerator.log(arturo_metrics(optimizer), step=step)

:func:`prepare` builds the optimizer when and as the Accelerator's configuration asks for it. What each needs:

============================== =====================================================================================
one process, DDP, TP           ``accelerator.prepare(model, Arturo(model.parameters()))`` does too
FSDP2, HSDP                    the same, with model and optimizer in one call, as for every optimizer
FSDP1                          an optimizer built after the model has been wrapped, and told of the process group
DeepSpeed ZeRO                 :func:`arturo_integrations.deepspeed.attach` after ``accelerator.prepare``
Megatron-LM                    refused: it builds an optimizer of its own
============================== =====================================================================================

Checkpoints are Accelerate's own ``save_state`` and ``load_state``. Save after a step, where
``accelerator.sync_gradients``: what has been accumulated since the last one is in no checkpoint.

Schedulers: build them on the optimizer that :func:`prepare` returns. One that goes through ``accelerator.prepare`` as
well is stepped ``num_processes`` times per step unless the Accelerator splits batches; one that does not has to be
stepped when ``accelerator.sync_gradients``, and saved by ``accelerator.register_for_checkpointing``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from arturo_core import Arturo
from arturo_integrations import fsdp1
from arturo_integrations.deepspeed import attach
from arturo_integrations.metrics import arturo_metrics, find_arturo
from arturo_integrations.unsharded import few, unsharded

__all__ = ["arturo_metrics", "find_arturo", "prepare"]

#: From a model whose parameters are those that will be optimised, an ``Arturo`` over them.
Build = Callable[..., Arturo]
#: From the Accelerator, the model, whatever else is to be prepared, and the above, all of them prepared: the model, the
#: optimizer, the rest.
Preparation = Callable[[Accelerator, nn.Module, tuple[Any, ...], Build], tuple[Any, ...]]


def prepare(
    accelerator: Accelerator,
    model: nn.Module,
    *others: Any,
    params: Callable[[nn.Module], ParamsT] | None = None,
    **options: Any,
) -> tuple[Any, ...]:
    """Prepare a model for training, with an ``Arturo`` over its parameters, built in the order its layout needs.

    Args:
        accelerator: configured in code or by ``accelerate launch``.
        model: not prepared yet.
        others: data loaders and whatever else ``accelerator.prepare`` takes.
        params: given a model, the parameters, named parameters or groups to optimise; all trainable ones by default. It
            is called with the wrapped model under FSDP1, where parameters are flat pieces (names are kept with
            ``use_orig_params=True``, shapes are not), else with the model as it was given.
        options: of :class:`arturo_core.Arturo`: ``lr``, ``weight_decay``, ...

    Returns:
        The model, the optimizer and the others, prepared, in this order.

    Raises:
        ValueError: the Accelerator is configured for Megatron-LM; a trainable parameter of the model is not in the
            optimizer, or FSDP leaves one unsharded; and what ``Arturo``, ``accelerator.prepare`` and, under DeepSpeed,
            ``attach`` raise.
    """

    def build(module: nn.Module, **found: Any) -> Arturo:
        chosen = trainable(module) if params is None else params(module)
        return Arturo(chosen, **{**found, **options})

    preparation = _PREPARATIONS.get(accelerator.distributed_type, _together)
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        preparation = _fsdp1
    prepared = preparation(accelerator, model, others, build)
    if accelerator.distributed_type != DistributedType.DEEPSPEED:  # whose optimizers hold partitions instead
        _check_complete(prepared[0], prepared[1], sharded=accelerator.distributed_type == DistributedType.FSDP)
    return prepared


def trainable(model: nn.Module) -> list[Tensor]:
    """The parameters that require gradients."""
    return [param for param in model.parameters() if param.requires_grad]


def _together(accelerator: Accelerator, model: nn.Module, others: tuple[Any, ...], build: Build) -> tuple[Any, ...]:
    """Replicated parameters stay what they are; FSDP2 puts DTensors, which speak for themselves, in their places."""
    return tuple(accelerator.prepare(model, build(model), *others))


def _fsdp1(accelerator: Accelerator, model: nn.Module, others: tuple[Any, ...], build: Build) -> tuple[Any, ...]:
    """The parameters to optimise exist after the wrapping only, and do not know who holds the rest of them."""
    wrapped = accelerator.prepare(model)
    arturo = build(wrapped, process_group=fsdp1.process_group(wrapped))
    prepared = accelerator.prepare(arturo, *others)
    optimizer, *rest = prepared if others else (prepared,)
    arturo.allocate_state()  # after Accelerate has copied the state that there was
    return (wrapped, optimizer, *rest)


def _deepspeed(accelerator: Accelerator, model: nn.Module, others: tuple[Any, ...], build: Build) -> tuple[Any, ...]:
    """ZeRO steps its partitions one after another; attached, they are one step."""
    prepared = tuple(accelerator.prepare(model, build(model), *others))
    attach(prepared[1])
    return prepared


def _megatron(accelerator: Accelerator, model: nn.Module, others: tuple[Any, ...], build: Build) -> tuple[Any, ...]:
    raise ValueError(
        "Arturo: with Megatron-LM, Accelerate builds an optimizer of Megatron's own. Use FSDP2: accelerate launch "
        "--use_fsdp --fsdp_version 2."
    )


#: Layouts that need more than one call of ``accelerator.prepare``.
_PREPARATIONS: dict[DistributedType, Preparation] = {
    DistributedType.DEEPSPEED: _deepspeed,
    DistributedType.MEGATRON_LM: _megatron,
}


def _check_complete(model: nn.Module, optimizer: Any, sharded: bool) -> None:
    """Raise ``ValueError`` unless the optimizer holds all that is trained, and FSDP, if there is one, shards it."""
    held = {id(param) for group in optimizer.param_groups for param in group["params"]}
    wanted = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    missing = [name for name, param in wanted if id(param) not in held]
    if missing:
        raise ValueError(
            f"Arturo: {few(missing)} of the model are trainable and not in the optimizer, whose one multiplier needs "
            "sums over all that is trained. Let params= return them too, in a group with lr=0 if they are to stay, or "
            "freeze them with requires_grad_(False)."
        )
    whole = unsharded(model) if sharded else []
    if whole:
        raise ValueError(
            f"Arturo: FSDP leaves {few(whole)} alone (ignored_modules): their gradients would differ between ranks, "
            "and with them the one multiplier. Freeze them with requires_grad_(False), or let FSDP shard them."
        )
