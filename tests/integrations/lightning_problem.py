"""The network of ``tests/distributed`` as a LightningModule, the same training by hand, and comparisons to the bit."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from problem import Network, batch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from arturo_core import Arturo

BATCHES = 4  # an epoch
OPTIONS: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1}

# Lightning's tips and its pytree helper's deprecations.
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def network(dtype: torch.dtype = torch.float32, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    model = Network().to(dtype)
    del model.unused  # DDP would wait for its gradients
    return model


def loader(dtype: torch.dtype = torch.float32, rows: int = 12) -> DataLoader:
    """Rows that float32 holds exactly, as FSDP1's precision plug-in makes them pass through it."""
    inputs, targets = zip(*(batch(step, torch.float32) for step in range(BATCHES)), strict=True)
    return DataLoader(TensorDataset(torch.cat(inputs).to(dtype), torch.cat(targets).to(dtype)), batch_size=rows)


def squares(model: nn.Module, rows: Any) -> Tensor:
    inputs, targets = rows
    return (model(inputs) - targets).square().mean()


class Module(LightningModule):
    """What ``configure`` returns trains the network, automatically or by ``by_hand``.

    Args:
        configure: ``configure_optimizers``.
        by_hand: what ``training_step`` does with a batch under manual optimization.
    """

    def __init__(
        self,
        configure: Callable[[LightningModule], Any] = lambda module: Arturo(module.parameters(), **OPTIONS),
        by_hand: Callable[[Any, Any, int], None] | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.network = network(dtype, seed)
        self.configure, self.by_hand = configure, by_hand
        self.automatic_optimization = by_hand is None

    def training_step(self, rows: Any, index: int) -> Tensor | None:
        if self.by_hand is not None:
            self.by_hand(self, rows, index)
            return None
        loss = squares(self.network, rows)
        self.log("loss", loss.detach(), on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return self.configure(self)


def trainer(**settings: Any) -> Trainer:
    """A Trainer on the CPU that is silent and writes nothing."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 2, "log_every_n_steps": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what these settings are
        return Trainer(**{**defaults, **quiet, "enable_model_summary": False, **settings})


def fit(module: LightningModule, batches: Any = None, ckpt_path: Path | None = None, **settings: Any) -> Trainer:
    """Train; the Trainer afterwards."""
    made = trainer(**settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        made.fit(module, loader() if batches is None else batches, ckpt_path=ckpt_path and os.fspath(ckpt_path))
    return made


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Where two nested values differ, in anything but which tensors hold the numbers."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield where
    elif isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            yield f"{where}: {sorted(map(str, one.keys() ^ other.keys()))}"
        for key in one.keys() & other.keys():
            yield from differences(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            yield f"{where}: {len(one)} and {len(other)} entries"
        for index, (mine, theirs) in enumerate(zip(one, other, strict=False)):
            yield from differences(mine, theirs, f"{where}/{index}")
    elif one != other:
        yield f"{where}: {one} and {other}"
