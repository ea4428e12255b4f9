"""Lightning's own callbacks and tuner on an Arturo: cycled momentum, monitors of it, averaged weights, lr_find."""

from __future__ import annotations

import csv
import math
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from lightning_problem import BATCHES, OPTIONS, Module, batch, fit, loader, network, squares, trainer

from arturo_core import Arturo
from arturo_core.reporting.advice import ArturoAdvice

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*")

EPOCHS = 2
STEPS = EPOCHS * BATCHES


def one_cycle(module: Any) -> dict[str, Any]:
    optimizer = Arturo(module.parameters(), **OPTIONS)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=STEPS + 1)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def by_hand() -> tuple[torch.nn.Module, list[tuple[float, float]]]:
    """The same training in a loop, and the lr and momentum of its steps."""
    model = network()
    optimizer = Arturo(model.parameters(), **OPTIONS)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=STEPS + 1)
    seen = []
    for _ in range(EPOCHS):
        for rows in loader():
            seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
            optimizer.zero_grad()
            squares(model, rows).backward()
            optimizer.step()
            scheduler.step()
    return model, seen


def test_one_cycle_is_that_of_a_loop_by_hand_and_its_momentum_is_logged(tmp_path: Path) -> None:
    module = Module(one_cycle)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*do not have momentum.*")
        fit(
            module,
            callbacks=LearningRateMonitor(logging_interval="step", log_momentum=True),
            logger=CSVLogger(tmp_path),
            max_epochs=EPOCHS,
        )
    model, seen = by_hand()
    for mine, theirs in zip(module.network.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    (log,) = tmp_path.rglob("metrics.csv")
    rows = [row for row in csv.DictReader(log.open()) if row.get("lr-Arturo-momentum")]
    assert [float(row["lr-Arturo"]) for row in rows] == pytest.approx([lr for lr, _ in seen])
    assert [float(row["lr-Arturo-momentum"]) for row in rows] == pytest.approx([momentum for _, momentum in seen])


def test_a_cycle_goes_on_from_a_checkpoint_to_the_bit(tmp_path: Path) -> None:
    straight = Module(one_cycle)
    fit(straight, max_epochs=EPOCHS)
    first = fit(Module(one_cycle), max_epochs=1)
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed = Module(one_cycle, seed=1)
    fit(resumed, max_epochs=EPOCHS, ckpt_path=tmp_path / "half.ckpt")
    for mine, theirs in zip(resumed.network.parameters(), straight.network.parameters(), strict=True):
        assert torch.equal(mine, theirs)


class Rates(Callback):
    """The lr of every step, and the weights after every epoch."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.weights: list[list[torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.rates.append(float(trainer.optimizers[0].param_groups[0]["lr"]))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.weights.append([param.detach().clone() for param in pl_module.network.parameters()])


def test_weights_are_averaged() -> None:
    """The callback averages the weights at the start of the second to the fourth epoch, and SWALR sets lr."""
    module, seen = Module(), Rates()
    averaging = StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=2, annealing_epochs=1)
    fit(module, callbacks=[averaging, seen], max_epochs=4)
    assert seen.rates[0] == OPTIONS["lr"]
    assert seen.rates[-1] == pytest.approx(1e-3)
    for param, *epochs in zip(module.network.parameters(), *seen.weights[:3], strict=True):
        torch.testing.assert_close(param.detach(), torch.stack(epochs).mean(dim=0))


class Named(Module):
    """With the attribute that the tuner sets."""

    def __init__(self) -> None:
        super().__init__(lambda module: Arturo(module.parameters(), lr=module.lr))
        self.lr = 1e-3


def told(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(one.message) for one in caught if issubclass(one.category, ArturoAdvice)]


def test_lr_find_is_recognised_and_leaves_no_trace(tmp_path: Path) -> None:
    module = Named()
    made = trainer(max_epochs=1000, default_root_dir=tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        finder = Tuner(made).lr_find(module, loader(), num_training=60, early_stop_threshold=None, update_attr=False)
    assert max(finder.results["lr"]) > 0.3
    (text,) = told(caught)
    assert "as in a learning-rate range test" in text
    assert math.isfinite(min(finder.results["loss"]))
    before = network()
    for mine, theirs in zip(module.network.parameters(), before.parameters(), strict=True):
        assert torch.equal(mine, theirs), "the tuner restores the weights"


def test_warm_up_under_lightning_is_no_range_test() -> None:
    def configure(module: Any) -> dict[str, Any]:
        optimizer = Arturo(module.parameters(), lr=3e-3)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 16)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Module(configure), max_epochs=4)
    assert told(caught) == []


def test_networks_trained_against_each_other_are_not_taken_for_one_model() -> None:
    """Manual optimization with two optimizers, as for a GAN: the LightningModule merely holds the networks."""

    def alternate(module: Any, rows: Any, index: int) -> None:
        for optimizer, model in zip(module.optimizers(), (module.network, module.other), strict=True):
            optimizer.zero_grad()
            module.manual_backward(squares(model, rows))
            optimizer.step()

    module = Module(lambda one: [Arturo(one.network.parameters()), Arturo(one.other.parameters())], alternate)
    module.other = network(seed=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module, max_epochs=2)
    assert told(caught) == []
    assert batch(0, torch.float32)[0].isfinite().all()
