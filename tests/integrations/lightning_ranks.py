"""Training through a Lightning Trainer, or Fabric, on one rank of two, in every layout that torch offers on CPUs.

Lightning's own FSDP1 strategy wants a GPU; the one here only tells torch that the device is the CPU.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import FSDPPrecision as FabricFSDPPrecision
from lightning.fabric.strategies import FSDPStrategy as FabricFSDP
from lightning.fabric.strategies import ModelParallelStrategy as FabricModelParallel
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import FSDPPrecision
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning_problem import BATCHES, Module, differences, fit, loader, network, squares
from many_ranks import attempted
from problem import groups
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import (
    FullOptimStateDictConfig,
    FullStateDictConfig,
    FullyShardedDataParallel,
    ShardedOptimStateDictConfig,
    ShardedStateDictConfig,
    StateDictType,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, DistributedSampler

from arturo_core import Arturo
from arturo_core.distributed.sharding import local
from arturo_integrations.lightning import ArturoMonitor, arturo_metrics, find_arturo, optimizer_for

WORLD = 2
EPOCHS = 2
OPTIONS: dict[str, Any] = {"lr": 3e-3, "weight_decay": 0.1}


def _float64(precision: type[Any]) -> property:
    """A precision that Lightning does not have for FSDP1, whatever is chosen."""
    plugin = precision("32-true")
    plugin._desired_input_dtype = torch.float64
    plugin.convert_output = lambda data: data
    return property(lambda strategy: plugin, lambda strategy, chosen: None)


class FSDPOnCPU(FSDPStrategy):
    precision_plugin = _float64(FSDPPrecision)

    def _setup_model(self, model: nn.Module) -> nn.Module:
        return on_cpu(model, self.sharding_strategy, self.kwargs)


class FabricFSDPOnCPU(FabricFSDP):
    precision = _float64(FabricFSDPPrecision)

    def setup_module(self, module: nn.Module) -> nn.Module:
        return on_cpu(module, self.sharding_strategy, self._fsdp_kwargs)


def on_cpu(model: nn.Module, strategy: Any, options: dict[str, Any]) -> nn.Module:
    for config in (FullStateDictConfig, FullOptimStateDictConfig, ShardedStateDictConfig, ShardedOptimStateDictConfig):
        # FSDP1 takes what is on the CPU for a copy there already, and frees or overwrites it under the state dict.
        config.offload_to_cpu = property(lambda config: False, lambda config, value: None)
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), sharding_strategy=strategy, **options)


class Module2(Module):
    """Shards itself by FSDP2 where the strategy has a mesh, all of it or all but its head."""

    whole_head = False

    def configure_model(self) -> None:
        mesh = getattr(self.trainer.strategy, "_device_mesh", None)
        if mesh is not None and not isinstance(next(self.parameters()), DTensor):
            shard(self.network, mesh["data_parallel"], self.whole_head)


def shard(model: nn.Module, mesh: Any, whole_head: bool = False) -> nn.Module:
    kept = {model.head.weight, model.head.bias} if whole_head else set()
    for module in (model.first, model.up, model.down, *(() if whole_head else (model.head,)), model):
        fully_shard(module, mesh=mesh, ignored_params=kept)
    return model


def fsdp1(kind: str, flat: bool, **more: Any) -> FSDPStrategy:
    return FSDPOnCPU(
        process_group_backend="gloo",
        auto_wrap_policy={nn.Linear},
        use_orig_params=not flat,
        state_dict_type=kind,
        **more,
    )


def fsdp2(kind: str) -> ModelParallelStrategy:
    return ModelParallelStrategy(WORLD, 1, save_distributed_checkpoint=kind == "sharded", process_group_backend="gloo")


#: Strategies by the kind of their checkpoints, and the kinds.
LAYOUTS: dict[str, tuple[Callable[[str], Any], tuple[str, ...]]] = {
    "DDP": (lambda kind: "ddp", ("",)),
    "FSDP2": (fsdp2, ("full", "sharded")),
    "FSDP1": (lambda kind: fsdp1(kind, flat=False), ("full", "sharded")),
    # Lightning cannot write full checkpoints of flat parameters, of any optimizer.
    "FSDP1 flat": (lambda kind: fsdp1(kind, flat=True), ("sharded",)),
}


def ours(module: Any) -> Arturo:
    """Two groups where the parameters keep their names."""
    names = [name for name, _ in module.trainer.model.named_parameters()]
    flat = any("_flat_param" in name for name in names)
    options = {**OPTIONS, "weight_decay": 0.0} if flat else OPTIONS
    return optimizer_for(module, params=None if flat else groups(module.network), **options)


def theirs(module: Any) -> Arturo:
    """Without our call, as every other optimizer."""
    return Arturo(groups(module.network), **OPTIONS)


def scheduled(module: Any) -> dict[str, Any]:
    """The same, with a learning rate that falls after every step."""
    optimizer = ours(module)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, decay), "interval": "step"}}


def decay(step: int) -> float:
    return 1.0 / (1 + step / 10)


class Recorder(Callback):
    """The numbers of every step."""

    def __init__(self) -> None:
        self.numbers: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not trainer.fit_loop._should_accumulate():
            self.numbers.append(arturo_metrics(trainer.optimizers[0]))


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Full values by the names of the plain network."""
    if isinstance(model, FullyShardedDataParallel):
        with FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT):
            named: Any = {name: value.clone() for name, value in model.state_dict().items()}
    else:
        named = {
            name: (value.full_tensor() if isinstance(value, DTensor) else value.detach()).clone()
            for name, value in model.named_parameters()
        }
    return {name.removeprefix("module.").removeprefix("network."): value for name, value in named.items()}


def rows() -> DataLoader:
    """Every second row of each batch; Lightning's own sampler would shuffle them."""
    whole = loader(torch.float64)
    sampler = DistributedSampler(whole.dataset, WORLD, distributed.get_rank(), shuffle=False)
    return DataLoader(whole.dataset, batch_size=whole.batch_size // WORLD, sampler=sampler)


def trained(
    name: str, kind: str = "", seed: int = 0, configure: Any = ours, monitor: Any = None, **settings: Any
) -> tuple[Any, dict[str, Any]]:
    """The Trainer, and what it has done."""
    recorder = Recorder()
    module = Module2(configure, dtype=torch.float64, seed=seed)
    settings = {"strategy": LAYOUTS[name][0](kind or LAYOUTS[name][1][0]), "max_epochs": EPOCHS, **settings}
    done = fit(module, rows(), devices=WORLD, callbacks=[recorder, *([monitor] if monitor else [])], **settings)
    return done, {"numbers": recorder.numbers, "weights": weights(done.model)}


def resumes(name: str, kind: str, folder: Path) -> dict[str, Any]:
    """A run that is not interrupted, and one that starts from checkpoints, with other weights, two times."""
    whole, expected = trained(name, kind, configure=scheduled, max_epochs=3 * EPOCHS)
    made, found = trained(name, kind, configure=scheduled)
    for part in (2, 3):
        place = folder / f"{name} {kind} {part}"
        made.save_checkpoint(place)
        distributed.barrier()
        more = {"max_epochs": part * EPOCHS, "ckpt_path": place}
        made, found = trained(name, kind, seed=part, configure=scheduled, **more)
    states = [held(one.optimizers[0]) for one in (made, whole)]
    return {"whole": expected, "resumed": found, "states differ": list(differences(*states))}


def held(optimizer: Arturo) -> dict[str, Any]:
    """The state dict, of this rank's elements: FSDP1 loads no state where it has none, nor that of its padding."""
    saved = optimizer.state_dict()
    params = [param for group in optimizer.param_groups for param in group["params"]]
    state = {
        key: {name: local(value, params[key]) if value.dim() else value for name, value in one.items()}
        for key, one in saved["state"].items()
        if local(params[key].detach(), params[key]).numel()
    }
    return {**saved, "state": state}


def logged(name: str, folder: Path) -> dict[str, Any]:
    """What a monitor has given this rank to look at; only the first writes files."""
    place = folder / f"logs of {name}"
    monitor = ArturoMonitor(per_layer=True)
    done, _ = trained(name, monitor=monitor, logger=CSVLogger(place, version=0), log_every_n_steps=3)
    return {key: float(value) for key, value in done.callback_metrics.items()}


def _fsdp2_by_fabric() -> FabricModelParallel:
    def split(model: nn.Module, mesh: Any) -> nn.Module:
        return shard(model, mesh["data_parallel"])

    return FabricModelParallel(split, WORLD, 1, process_group_backend="gloo")


BY_FABRIC: dict[str, Callable[[], Any]] = {
    "DDP": lambda: "ddp",
    "FSDP2": _fsdp2_by_fabric,
    "FSDP1": lambda: FabricFSDPOnCPU(process_group_backend="gloo", auto_wrap_policy={nn.Linear}),
}


def by_fabric(name: str, folder: Path) -> dict[str, Any]:
    """Fabric's own save and load; a model is set up before the optimizer is built."""

    def start(seed: int) -> Any:
        fabric = Fabric(accelerator="cpu", devices=WORLD, strategy=BY_FABRIC[name]())
        fabric.launch()
        model = fabric.setup_module(network(torch.float64, seed))
        return fabric, model, fabric.setup_optimizers(optimizer_for(model, lr=OPTIONS["lr"]))

    def train(fabric: Any, model: Any, optimizer: Any) -> dict[str, Any]:
        numbers = []
        for one in fabric.setup_dataloaders(rows()):
            optimizer.zero_grad()
            fabric.backward(squares(model, one))
            optimizer.step()
            numbers.append(arturo_metrics(optimizer))
        return {"numbers": numbers, "weights": weights(model._forward_module)}

    fabric, model, optimizer = start(0)
    first = train(fabric, model, optimizer)
    place = folder / f"Fabric {name}"
    fabric.save(place, {"model": model, "optimizer": optimizer})
    whole = train(fabric, model, optimizer)
    again = start(1)
    again[0].load(place, {"model": again[1], "optimizer": again[2]})
    found = train(*again)
    states = [held(find_arturo(one)) for one in (again[2], optimizer)]
    return {"first": first, "whole": whole, "resumed": found, "states differ": list(differences(*states))}


def refused(attempt: Callable[[], Any]) -> str:
    try:
        attempt()
    except ValueError as error:
        return str(error)
    return "not refused"


class WholeHead(Module2):
    whole_head = True


def _ignoring_head() -> None:
    module = Module2(ours, dtype=torch.float64)
    strategy = fsdp1("full", flat=False, ignored_modules=[module.network.head])
    fit(module, rows(), devices=WORLD, strategy=strategy)


#: Strategies that need no call of ours.
THEMSELVES = ("DDP", "FSDP2")

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "FSDP1 by itself": (lambda: trained("FSDP1", configure=theirs), "Pass process_group=FSDP.fsdp_modules"),
    "ignored by FSDP1": (_ignoring_head, "FSDP1 leaves split parameters"),
    "not sharded by FSDP2": (
        lambda: fit(WholeHead(ours, dtype=torch.float64), rows(), devices=WORLD, strategy=fsdp2("full")),
        "parameters network.head.weight, network.head.bias",
    ),
}


def everything(folder: Path) -> dict[Any, Any]:
    """All cases on one rank; a case that fails leaves its traceback."""
    warnings.filterwarnings("ignore")
    rank = str(distributed.get_rank())
    os.environ.update(RANK=rank, LOCAL_RANK=rank)
    cases: dict[Any, Callable[[], Any]] = {}
    for name, (_, kinds) in LAYOUTS.items():
        cases["trains", name] = lambda name=name: trained(name)[1]
        cases["accumulates", name] = lambda name=name: trained(name, accumulate_grad_batches=2)[1]
        cases["logs", name] = lambda name=name: logged(name, folder)
        for kind in kinds:
            cases["resumes", name, kind] = lambda name=name, kind=kind: resumes(name, kind, folder)
    for name in THEMSELVES:
        cases["trains by itself", name] = lambda name=name: trained(name, configure=theirs)[1]
    for name in BY_FABRIC:
        cases["Fabric", name] = lambda name=name: by_fabric(name, folder)
    for name, (attempt, _) in REFUSED.items():
        cases["refuses", name] = lambda attempt=attempt: refused(attempt)
    return attempted(cases)


def single(named: bool = True, accumulate: int = 1, epochs: int = EPOCHS) -> dict[str, Any]:
    """The same training in one process, by hand; the numbers of every step and the weights at the end."""
    model = network(torch.float64)
    optimizer = Arturo(groups(model), **(OPTIONS if named else {**OPTIONS, "weight_decay": 0.0}))
    numbers = []
    for _ in range(epochs):
        for index, one in enumerate(loader(torch.float64)):
            (squares(model, one) / accumulate).backward()
            if (index + 1) % accumulate == 0 or index + 1 == BATCHES:
                optimizer.step()
                optimizer.zero_grad()
                numbers.append(arturo_metrics(optimizer))
    return {"numbers": numbers, "weights": {name: param.detach() for name, param in model.named_parameters()}}
