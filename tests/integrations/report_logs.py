"""Logs for the tests of the report: real runs of Trainer and Lightning, and records of a simulated run with layers."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from arturo_core import Arturo
from arturo_core.reporting.layers import LayerWatch
from arturo_integrations.metrics import arturo_metrics


def write_lines(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def plain_run(steps: int = 60) -> list[dict[str, Any]]:
    """What a loop of a user's own writes: arTuRO on a small regression, one gradient not finite, every tenth step with
    its layers."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    optimizer = Arturo(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    watch = LayerWatch(optimizer, model.named_parameters())
    records: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        inputs = torch.randn(32, 4)
        loss = torch.nn.functional.mse_loss(model(inputs), inputs.sum(1, keepdim=True))
        optimizer.zero_grad()
        loss.backward()
        if step == steps // 2:
            model[0].weight.grad[0, 0] = math.inf
        if step % 10 == 0:
            watch.arm()
        optimizer.step()
        numbers = arturo_metrics(optimizer, layers=watch if step % 10 == 0 else None, advice=False)
        record = {"step": step, "loss": loss.item(), "lr": schedule.get_last_lr()[0], **numbers}
        records.append(record)
        if step % 20 == 0:
            records.append({"step": step, "val_loss": 1.1 * loss.item()})
        schedule.step()
    return records


def block_names(layers: int) -> list[str]:
    """Names as of a transformer, in the order of the model; at least five."""
    parts = [f"{module}.weight" for module in ("attn.q_proj", "attn.k_proj", "attn.v_proj", "mlp.up", "mlp.down")]
    names = [f"model.layers.{block}.{part}" for block in range(math.ceil(layers / len(parts))) for part in parts]
    return ["model.embed.weight", *names[: layers - 2], "head.weight"]


def layer_records(names: Sequence[str], steps: Sequence[int], seed: int = 0) -> list[dict[str, Any]]:
    """Numbers of layers as they are logged: shares that sum to 1, curvature that is learned step by step."""
    draw = random.Random(seed)
    weight = {name: draw.lognormvariate(0.0, 2.0) for name in names}
    records = []
    for step in steps:
        spent = {name: 1e-6 * weight[name] * draw.lognormvariate(0.0, 0.5) for name in names}
        total = math.fsum(spent.values())
        record: dict[str, Any] = {"step": step, "arturo/kl": total, "arturo/kl_ratio": 1.0, "arturo/bound_active": 1}
        for place, name in enumerate(names):
            numbers = {
                "kl": spent[name],
                "kl_share": spent[name] / total,
                "step_rms": draw.uniform(1e-5, 1e-4),
                "weight_rms": draw.uniform(0.01, 0.2),
                "curvature": draw.lognormvariate(0.0, 0.3),
                "curvature_learned": 0.02 if place % 3 == 0 else min(0.9, step / (steps[-1] + 1)),
                "curvature_floored": 0.3 if place == 1 else 0.0,
            }
            record |= {f"arturo/layer/{name}/{key}": value for key, value in numbers.items()}
        records.append(record)
    return records


def lightning_run(folder: Path, steps: int = 12) -> None:
    """A real Lightning run with both of its loggers in one folder, and our callback with layers."""
    import lightning
    from lightning.pytorch.callbacks import LearningRateMonitor
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    from arturo_integrations.lightning_monitor import ArturoMonitor

    class Regression(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = torch.nn.Linear(4, 1)

        def error(self, batch: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.mse_loss(self.model(batch), batch.sum(1, keepdim=True))

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            loss = self.error(batch)
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch: torch.Tensor) -> None:
            self.log("val_loss", self.error(batch))

        def configure_optimizers(self) -> Arturo:
            return Arturo(self.parameters(), lr=1e-2)

    lightning.seed_everything(0, verbose=False)
    data = torch.utils.data.DataLoader(list(torch.randn(24, 4)), batch_size=4)
    trainer = lightning.Trainer(
        max_steps=steps,
        logger=[CSVLogger(folder, version=0), TensorBoardLogger(folder, version=0)],
        callbacks=[LearningRateMonitor("step"), ArturoMonitor(per_layer=True, advice=False)],
        log_every_n_steps=2,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(Regression(), data, torch.utils.data.DataLoader(list(torch.randn(8, 4)), batch_size=4))
