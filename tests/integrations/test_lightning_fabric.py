"""Fabric trains with Arturo, saves and loads it to the bit, and logs its numbers by one line of its user's."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import CSVLogger
from lightning_problem import BATCHES, OPTIONS, differences, loader, network, squares

from arturo_core import Arturo
from arturo_integrations.lightning import arturo_metrics, find_arturo, optimizer_for

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*")

PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.float32, "bf16-true": torch.bfloat16}


def start(precision: str, together: bool, seed: int = 0, **settings: Any) -> tuple[Fabric, Any, Any]:
    """Model and optimizer set up in one call, or one after the other."""
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision, **settings)
    model = network(PRECISIONS[precision], seed)
    if together:
        return fabric, *fabric.setup(model, Arturo(model.parameters(), **OPTIONS))
    model = fabric.setup_module(model)
    return fabric, model, fabric.setup_optimizers(optimizer_for(model, **OPTIONS))


def train(fabric: Fabric, model: Any, optimizer: Any) -> None:
    for rows in fabric.setup_dataloaders(loader()):
        fabric.backward(squares(model, rows))
        fabric.clip_gradients(model, optimizer, max_norm=0.5)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("together", [True, False], ids=["setup", "setup_module and setup_optimizers"])
def test_fabric_saves_and_goes_on_bit_for_bit(together, precision, tmp_path):
    fabric, model, optimizer = start(precision, together)
    train(fabric, model, optimizer)
    fabric.save(tmp_path / "half.ckpt", {"model": model, "optimizer": optimizer})
    train(fabric, model, optimizer)
    again, resumed, theirs = start(precision, together, seed=1)
    again.load(tmp_path / "half.ckpt", {"model": resumed, "optimizer": theirs})
    train(again, resumed, theirs)
    assert find_arturo(theirs).diagnostics()["steps"] == 2 * BATCHES
    assert not list(differences(resumed.state_dict(), model.state_dict()))
    assert not list(differences(theirs.state_dict(), optimizer.state_dict()))


def test_fabric_takes_the_steps_of_a_loop_by_hand():
    fabric, model, optimizer = start("32-true", together=True)
    train(fabric, model, optimizer)
    other = network()
    hand = Arturo(other.parameters(), **OPTIONS)
    for rows in loader():
        squares(other, rows).backward()
        torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        hand.step()
        hand.zero_grad()
    assert not list(differences(model.state_dict(), other.state_dict()))


def test_the_line_that_logs(tmp_path: Path):
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    fabric, model, optimizer = start("32-true", together=True, loggers=logger)
    for step, rows in enumerate(fabric.setup_dataloaders(loader())):
        loss = squares(model, rows)
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        fabric.log_dict({"loss": loss, **arturo_metrics(optimizer)}, step)
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["arturo/steps"]) for row in rows] == list(range(1, BATCHES + 1))
    assert float(rows[-1]["arturo/eta"]) == find_arturo(optimizer).diagnostics()["eta"]
    assert all(float(row["loss"]) > 0 for row in rows)
