"""Training through an ``Accelerator`` on one rank, in every layout that Accelerate offers.

On CPUs Accelerate itself offers DDP alone. For the rest the ranks are passed off as devices before the ``Accelerator``
is built, which then chooses and validates as it does on GPUs; what it builds are torch's own FSDP and DTensors on gloo.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    ParallelismConfig,
)
from layouts import part, tensor_parallel
from many_ranks import attempted
from problem import Network, batch, groups
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import (
    FullOptimStateDictConfig,
    FullStateDictConfig,
    FullyShardedDataParallel,
    ShardedOptimStateDictConfig,
    ShardedStateDictConfig,
    StateDictType,
)
from torch.distributed.tensor import DTensor

from arturo_core import Arturo
from arturo_integrations.accelerate import arturo_metrics, prepare

STEPS = 3  # before a checkpoint is written, and as many after it
OPTIONS: dict[str, Any] = {"lr": 3e-3, "weight_decay": 0.1}


@dataclass(frozen=True)
class Layout:
    """How Accelerate splits the network.

    Attributes:
        world: ranks.
        fsdp: version, or 0.
        sizes: of ``ParallelismConfig``, none without one.
        data: ranks that see different data; the others see the same.
        plugin: more settings of FSDP's plug-in.
        itself: whether ``accelerator.prepare(model, Arturo(...))`` does, without ours.
    """

    world: int
    fsdp: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    data: int = 2
    plugin: dict[str, Any] = field(default_factory=dict)
    itself: bool = True

    @property
    def named(self) -> bool:
        """Whether the parameters keep their names, and so their groups."""
        return self.fsdp != 1 or bool(self.plugin.get("use_orig_params"))


LAYOUTS: dict[str, Layout] = {
    "DDP": Layout(2),
    "FSDP2": Layout(2, fsdp=2),
    "FSDP1": Layout(2, fsdp=1, plugin={"use_orig_params": True}, itself=False),
    "FSDP1 flat": Layout(2, fsdp=1, plugin={"use_orig_params": False}, itself=False),
    "TP": Layout(2, sizes={"tp_size": 2}, data=1),
    "HSDP": Layout(4, fsdp=2, sizes={"dp_replicate_size": 2, "dp_shard_size": 2}, data=4),
}
#: Accelerate's kinds of checkpoints; that of replicated parameters has no name, and of TP alone it writes none.
KINDS = {name: ("FULL_STATE_DICT", "SHARDED_STATE_DICT") if layout.fsdp else ("",) for name, layout in LAYOUTS.items()}
del KINDS["TP"]
#: A checkpoint of one layout, read in another, on another number of ranks.
RESHARDED = {("FSDP2", "HSDP"): 4}


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    model = Network().double()
    del model.unused
    return model


def accelerator(name: str, kind: str = "FULL_STATE_DICT", **more: Any) -> Accelerator:
    """A fresh one on this rank; Accelerate keeps one state a process."""
    layout = LAYOUTS[name]
    # FSDP1 takes what is on the CPU for a copy there already, and frees or overwrites it under the state dict.
    for config in (FullStateDictConfig, FullOptimStateDictConfig, ShardedStateDictConfig, ShardedOptimStateDictConfig):
        config.offload_to_cpu = property(lambda config: False, lambda config, value: None)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    for variable in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        del os.environ[variable]  # an earlier one's settings
    os.environ["LOCAL_RANK"] = os.environ["RANK"] = str(distributed.get_rank())
    os.environ["LOCAL_WORLD_SIZE"] = os.environ["WORLD_SIZE"] = str(distributed.get_world_size())
    PartialState(cpu=True)
    if layout.fsdp or layout.sizes:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        PartialState._shared_state["device"] = torch.device("cpu")  # FSDP1 knows no cpu:0
    if layout.fsdp:
        more["fsdp_plugin"] = FullyShardedDataParallelPlugin(
            fsdp_version=layout.fsdp,
            state_dict_type=kind,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["Linear"],
            cpu_ram_efficient_loading=False,
            sync_module_states=False if layout.fsdp == 1 else None,
            **layout.plugin,
        )
    if layout.sizes:
        more["parallelism_config"] = ParallelismConfig(**layout.sizes)
    return Accelerator(cpu=True, **more)


@dataclass
class Run:
    """A network, prepared."""

    accelerator: Accelerator
    model: nn.Module
    optimizer: Any
    layout: Layout

    def share(self) -> slice:
        """This rank's rows of a batch."""
        ranks = self.layout.data
        return part(distributed.get_rank() * ranks // self.layout.world, ranks)

    def train(self, steps: range, accumulate: int = 1) -> list[dict[str, float]]:
        """Numbers of every step."""
        found = []
        for step in steps:
            inputs, targets = (whole[self.share()].chunk(accumulate) for whole in batch(step))
            for rows, wanted in zip(inputs, targets, strict=True):
                with self.accelerator.accumulate(self.model):
                    loss = (self.model(rows) - wanted).square().mean()
                    self.accelerator.backward(loss)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
            found.append(arturo_metrics(self.optimizer))
        return found

    def whole(self) -> dict[str, Tensor]:
        """Full values by the names of the plain network."""
        if isinstance(self.model, FullyShardedDataParallel):
            with FullyShardedDataParallel.state_dict_type(self.model, StateDictType.FULL_STATE_DICT):
                return {name: value.clone() for name, value in self.model.state_dict().items()}
        return {
            name.removeprefix("module."): (
                value.full_tensor() if isinstance(value, DTensor) else value.detach()
            ).clone()
            for name, value in self.model.named_parameters()
        }


def start(name: str, kind: str = "FULL_STATE_DICT", ours: bool = True, seed: int = 0, **more: Any) -> Run:
    """A network in a layout, by our ``prepare`` or by Accelerate's alone."""
    layout = LAYOUTS[name]
    chosen = accelerator(name, kind, **more)
    model = network(seed)
    if layout.sizes.get("tp_size"):
        tensor_parallel(model, chosen.torch_device_mesh["tp"])
        model.tp_size = layout.sizes["tp_size"]  # as transformers says it
    if ours:
        prepared, optimizer = prepare(chosen, model, params=groups if layout.named else None, **options(name))
    else:
        prepared, optimizer = chosen.prepare(model, Arturo(groups(model), **options(name)))
    return Run(chosen, prepared, optimizer, layout)


def options(name: str) -> dict[str, Any]:
    """One flat vector has one weight decay."""
    return OPTIONS if LAYOUTS[name].named else {**OPTIONS, "weight_decay": 0.0}


def trains(name: str, ours: bool) -> dict[str, Any]:
    run = start(name, ours=ours)
    return {"numbers": run.train(range(2 * STEPS)), "weights": run.whole()}


def accumulates(name: str) -> dict[str, Any]:
    more = {"kwargs_handlers": [DistributedDataParallelKwargs()]} if name == "DDP" else {}
    run = start(name, gradient_accumulation_steps=3, **more)
    return {"numbers": run.train(range(2 * STEPS), accumulate=3), "weights": run.whole()}


def resumes(name: str, kind: str, folder: Path) -> dict[str, Any]:
    """A run that goes on after its checkpoint, and one that starts from it, with other weights and no state."""
    whole = start(name, kind)
    whole.train(range(STEPS))
    whole.accelerator.save_state(os.fspath(folder / f"{name} {kind}"))
    later = {"numbers": whole.train(range(STEPS, 2 * STEPS)), "weights": whole.whole()}
    return {"whole": later, "resumed": continues(name, kind, folder / f"{name} {kind}")}


def continues(name: str, kind: str, folder: Path) -> dict[str, Any]:
    resumed = start(name, kind, seed=1)
    resumed.accelerator.load_state(os.fspath(folder))
    return {"numbers": resumed.train(range(STEPS, 2 * STEPS)), "weights": resumed.whole()}


def refused(attempt: Callable[[], Any]) -> str:
    try:
        attempt()
    except ValueError as error:
        return str(error)
    return "not refused"


def built_by_trainer() -> bool:
    """Whether ``optim="arturo"`` is told of FSDP1's ranks: Trainer asks with the wrapped model."""
    from transformers import Trainer

    import arturo_integrations.transformers  # noqa: F401

    wrapped = start("FSDP1").model
    asked = SimpleNamespace(optim="arturo", optim_args="", learning_rate=3e-3, max_grad_norm=0)
    chosen, settings = Trainer.get_optimizer_cls_and_kwargs(asked, wrapped)
    optimizer = chosen(groups(wrapped), **settings)
    assert isinstance(optimizer, Arturo)
    assert {param for group in optimizer.param_groups for param in group["params"]} == set(optimizer.state)
    assert {group["lr"] for group in optimizer.param_groups} == {3e-3}
    optimizer.step()
    return settings["process_group"].size() == distributed.get_world_size()


def fsdp1_by_itself() -> None:
    start("FSDP1", ours=False).train(range(1))


def ignored_by_fsdp(name: str) -> Callable[[], None]:
    def attempt() -> None:
        chosen, model = accelerator(name), network()
        chosen.state.fsdp_plugin.ignored_modules = [model.head]
        prepare(chosen, model, lr=1e-3)

    return attempt


REFUSED: dict[str, tuple[Callable[[], None], str]] = {
    "FSDP1 by itself": (fsdp1_by_itself, "Pass process_group=FSDP.fsdp_modules"),
    "ignored by FSDP1": (ignored_by_fsdp("FSDP1"), "parameters head.weight, head.bias alone"),
    "ignored by FSDP2": (ignored_by_fsdp("FSDP2"), "parameters head.weight, head.bias alone"),
}


def everything(world: int, folder: Path) -> dict[Any, Any]:
    """All cases of this number of ranks, on one rank; a case that fails leaves its traceback."""
    cases: dict[Any, Callable[[], Any]] = {}
    for name in [name for name, layout in LAYOUTS.items() if layout.world == world]:
        cases["trains", name] = lambda name=name: trains(name, ours=True)
        if LAYOUTS[name].itself:
            cases["trains by itself", name] = lambda name=name: trains(name, ours=False)
        cases["accumulates", name] = lambda name=name: accumulates(name)
        for kind in KINDS.get(name, ()):
            cases["resumes", name, kind] = lambda name=name, kind=kind: resumes(name, kind, folder)
    for (source, target), ranks in RESHARDED.items():
        for kind in KINDS[source] if ranks == world else ():
            cases["reshards", source, target, kind] = lambda source=source, target=target, kind=kind: continues(
                target, kind, folder / f"{source} {kind}"
            )
    if world == 2:
        for name, (attempt, _) in REFUSED.items():
            cases["refuses", name] = lambda attempt=attempt: refused(attempt)
        cases["built by Trainer", "FSDP1"] = built_by_trainer
    return attempted(cases)


def single(name: str = "DDP") -> dict[str, Any]:
    """The same training in one process, by hand; the numbers of every step and the weights at the end."""
    model = network()
    optimizer = Arturo(groups(model), **options(name))
    numbers = []
    for step in range(2 * STEPS):
        inputs, targets = batch(step)
        optimizer.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        optimizer.step()
        numbers.append(arturo_metrics(optimizer))
    return {"numbers": numbers, "weights": dict(model.named_parameters())}
