"""Training through Lightning's DeepSpeed strategies on one rank of two.

They want GPUs; the ones here only tell DeepSpeed that the devices are CPUs.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import zero_problem  # before DeepSpeed: makes tests/distributed known
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy as FabricDDP
from lightning.fabric.strategies import DeepSpeedStrategy as FabricDeepSpeed
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from lightning_problem import Module, fit, loader, network, squares
from lightning_ranks import Recorder, decay
from torch import Tensor, distributed, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, DistributedSampler

from arturo_core import Arturo
from arturo_integrations.deepspeed import attach
from arturo_integrations.lightning import ArturoMonitor, arturo_metrics, optimizer_for

STAGES = (1, 2, 3)
EPOCHS = 2
OPTIONS: dict[str, Any] = {"lr": 3e-3, "weight_decay": 0.1}


class DeepSpeedOnCPU(DeepSpeedStrategy):
    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", self.local_rank)

    def setup_environment(self) -> None:
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        self.set_world_ranks()
        self._init_deepspeed_distributed()


class FabricDeepSpeedOnCPU(FabricDeepSpeed):
    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", self.local_rank)

    def setup_environment(self) -> None:
        FabricDDP.setup_environment(self)

    def _setup_distributed(self) -> None:
        self._set_world_ranks()
        self._init_deepspeed_distributed()
        self._format_config()


def rows() -> DataLoader:
    whole = loader()
    sampler = DistributedSampler(whole.dataset, 2, distributed.get_rank(), shuffle=False)
    return DataLoader(whole.dataset, batch_size=whole.batch_size // 2, sampler=sampler)


def weights(model: nn.Module, stage: int) -> dict[str, Tensor]:
    """Full values by the names of the plain network."""
    from deepspeed.utils import safe_get_full_fp32_param

    read: Callable[[Any], Tensor] = safe_get_full_fp32_param if stage == 3 else lambda param: param
    named = {name: read(param).detach().clone() for name, param in model.named_parameters()}
    return {name.removeprefix("module.").removeprefix("network."): value for name, value in named.items()}


def trained(
    stage: int, seed: int = 0, configure: Any = None, per_layer: bool = False, **settings: Any
) -> tuple[Any, dict[str, Any]]:
    """The Trainer, what it has done, and what its monitor had for its loggers."""
    callbacks = [recorder := Recorder(), ArturoMonitor(per_layer)]
    module = Module(configure or (lambda module: optimizer_for(module, **OPTIONS)), seed=seed)
    strategy = DeepSpeedOnCPU(stage=stage, process_group_backend="gloo")
    done = fit(module, rows(), devices=2, strategy=strategy, callbacks=callbacks, **{"max_epochs": EPOCHS, **settings})
    logged = {key: float(value) for key, value in done.callback_metrics.items()}
    return done, {"numbers": recorder.numbers, "weights": weights(done.model, stage), "logged": logged}


def scheduled(module: Any) -> dict[str, Any]:
    """With a learning rate that falls after every step."""
    optimizer = optimizer_for(module, **OPTIONS)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, decay), "interval": "step"}}


def resumes(stage: int, folder: Path) -> dict[str, Any]:
    """A run that is not interrupted, and one that starts at half of it from a checkpoint, with other weights."""
    more = {"max_epochs": 2 * EPOCHS, "configure": scheduled}
    _, whole = trained(stage, **more)
    half, _ = trained(stage, configure=scheduled)
    half.save_checkpoint(folder / f"stage {stage}")
    _, resumed = trained(stage, seed=1, ckpt_path=folder / f"stage {stage}", **more)
    return {"whole": whole, "resumed": resumed}


def by_fabric(stage: int) -> dict[str, Any]:
    strategy = FabricDeepSpeedOnCPU(stage=stage, process_group_backend="gloo")
    strategy.config["gradient_clipping"] = 0.0  # DeepSpeed's default is 1.0, which Trainer changes and Fabric does not
    fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy)
    fabric.launch()
    model = network()
    model, optimizer = fabric.setup(model, Arturo(model.parameters(), **OPTIONS))
    attach(optimizer)
    numbers = []
    for _ in range(EPOCHS):
        for one in fabric.setup_dataloaders(rows()):
            fabric.backward(squares(model, one))
            optimizer.step()
            optimizer.zero_grad()
            numbers.append(arturo_metrics(optimizer))
    return {"numbers": numbers, "weights": weights(model.module, stage)}


def refused(attempt: Callable[[], Any]) -> str:
    try:
        attempt()
    except (RuntimeError, ValueError) as error:
        return str(error)
    return "not refused"


def plain(module: Any) -> Arturo:
    """An optimizer that is not attached."""
    return Arturo(module.parameters(), **OPTIONS)


def everything(folder: Path) -> dict[Any, Any]:
    zero_problem.as_if_launched()
    warnings.filterwarnings("ignore")
    os.environ["LOCAL_RANK"] = str(distributed.get_rank())
    found: dict[Any, Any] = {}
    for stage in STAGES:
        found["trains", stage] = trained(stage)[1]
        found["accumulates", stage] = trained(stage, accumulate_grad_batches=2)[1]
        found["resumes", stage] = resumes(stage, folder)
        found["Fabric", stage] = by_fabric(stage)
        found["by itself", stage] = refused(lambda stage=stage: trained(stage, configure=plain))
        found["layers", stage] = refused(lambda stage=stage: trained(stage, per_layer=True))
    return found


#: Lightning divides an accumulated loss by the number of batches, and DeepSpeed does again; these have its unit.
OF_THE_LOSS = ("arturo/kl", "arturo/kl_bound", "arturo/precision_q05", "arturo/precision_q50", "arturo/precision_q95")


def single(accumulate: int = 1) -> dict[str, Any]:
    """The same training in one process, by hand."""
    model = network()
    optimizer = Arturo(model.parameters(), **OPTIONS)
    numbers = []
    for _ in range(EPOCHS):
        for index, one in enumerate(loader()):
            (squares(model, one) / accumulate).backward()
            if (index + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
                numbers.append(arturo_metrics(optimizer))
    return {"numbers": numbers, "weights": {name: param.detach() for name, param in model.named_parameters()}}
