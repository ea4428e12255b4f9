"""ArturoMonitor adds its numbers to the record of the loss, at Lightning's steps and no others."""

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
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning_problem import BATCHES, OPTIONS, Module, fit, loader, squares
from torch.utils._python_dispatch import TorchDispatchMode

from arturo_core import Arturo
from arturo_core.reporting.advice import ArturoAdvice
from arturo_core.reporting.layers import LayerWatch
from arturo_integrations.lightning import ArturoMonitor, arturo_metrics
from arturo_integrations.metrics import layer_metrics

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*")

EPOCHS = 2
STEPS = EPOCHS * BATCHES


class Counting(Arturo):
    """Counts how often it is read."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        self.read = 0

    def diagnostics(self) -> dict[str, Any]:
        self.read += 1
        return super().diagnostics()


def counting(module: Any) -> Counting:
    return Counting(module.parameters(), **OPTIONS)


class Truth(Callback):
    """The numbers after every batch, by the number of batches that stepped before it."""

    def __init__(self) -> None:
        self.numbers: dict[int, dict[str, float]] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        self.numbers[step] = arturo_metrics(trainer.optimizers[0], advice=False)


def records(folder: Path) -> list[dict[str, float]]:
    """Rows of the CSV file that have a step's loss or numbers of ours."""
    with next(folder.rglob("metrics.csv")).open() as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    return [row for row in rows if "loss_step" in row or ours(row)]


def ours(names: Any) -> list[str]:
    return [name for name in names if name.startswith("arturo/")]


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"log_every_n_steps": 1}, list(range(STEPS))),
        ({"log_every_n_steps": 3}, [2, 5]),
        ({"log_every_n_steps": 2, "accumulate_grad_batches": 2}, [1, 3]),
        # The last batches of an epoch make a step of their own.
        ({"log_every_n_steps": 1, "accumulate_grad_batches": 3}, [0, 1, 2, 3]),
    ],
    ids=str,
)
def test_one_record_holds_the_loss_and_our_numbers(settings, steps, tmp_path):
    truth, module = Truth(), Module(counting)
    trained = fit(module, logger=CSVLogger(tmp_path), callbacks=[truth, ArturoMonitor()], **settings)
    found = records(tmp_path)
    assert [row["step"] for row in found] == steps
    for row in found:
        expected = truth.numbers[int(row["step"])]
        assert "loss_step" in row
        assert set(ours(row)) == expected.keys()
        for key, value in expected.items():
            assert row[key] == pytest.approx(value, rel=1e-5), key
    # Read by Truth after every batch, and by the monitor once a record.
    assert trained.optimizers[0].read == EPOCHS * BATCHES + len(steps)


def test_every_logger_gets_them(tmp_path):
    loggers = [CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "board")]
    fit(Module(), logger=loggers, callbacks=ArturoMonitor(), log_every_n_steps=2)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(next((tmp_path / "board").rglob("events.*")).parent)).Reload()
    rows = records(tmp_path / "csv")
    for key in ("loss_step", "arturo/eta", "arturo/kl_ratio", "arturo/curvature_q50"):
        scalars = [(event.step, event.value) for event in board.Scalars(key)]
        assert scalars == [(row["step"], pytest.approx(row[key], rel=1e-5)) for row in rows]


def test_no_logger_is_needed():
    trained = fit(Module(), callbacks=ArturoMonitor())
    assert trained.callback_metrics["arturo/steps"] == STEPS
    assert fit(Module(), callbacks=ArturoMonitor(), fast_dev_run=True).callback_metrics["arturo/steps"] == 1
    bare = {"logger": None, "enable_checkpointing": None, "enable_progress_bar": None, "enable_model_summary": None}
    module = Module(counting, lambda module, rows, index: module.manual_backward(squares(module.network, rows)))
    trained = fit(module, callbacks=ArturoMonitor(), barebones=True, log_every_n_steps=None, **bare)
    assert trained.optimizers[0].read == 0


def test_silent_without_an_arturo(tmp_path):
    module = Module(lambda module: torch.optim.AdamW(module.parameters()))
    trained = fit(module, logger=CSVLogger(tmp_path), callbacks=ArturoMonitor(per_layer=True))
    assert not ours(trained.callback_metrics)
    assert not any(ours(row) for row in records(tmp_path))


def test_a_second_monitor_is_silent():
    trained = fit(Module(counting), callbacks=[ArturoMonitor(), ArturoMonitor(per_layer=True)])
    assert trained.optimizers[0].read == STEPS
    assert not [key for key in trained.callback_metrics if "layer" in key]


def in_turns(module: Any, rows: Any, index: int) -> None:
    """One step of each optimizer; of the second only at odd batches."""
    for number, optimizer in enumerate(module.optimizers()):
        module.manual_backward(squares(module.network, rows))
        if number == 0 or index % 2:
            optimizer.step()
        optimizer.zero_grad()


def test_several_optimizers_are_numbered(tmp_path):
    halves = [["first", "norm", "up"], ["down", "head"]]

    def configure(module: Any, kinds: Any) -> Any:
        params = [[param for name in names for param in getattr(module.network, name).parameters()] for names in halves]
        return tuple({"optimizer": kind(part, lr=1e-2)} for kind, part in zip(kinds, params, strict=True))

    module = Module(lambda module: configure(module, (Arturo, Arturo)), in_turns)
    trained = fit(module, logger=CSVLogger(tmp_path), callbacks=ArturoMonitor(per_layer=True))
    found = {key: float(value) for key, value in trained.callback_metrics.items()}
    assert found["arturo/0/steps"] == STEPS
    assert found["arturo/1/steps"] == STEPS // 2
    assert "arturo/0/layer/network.up.weight/kl" in found
    assert "arturo/1/layer/network.head.weight/kl" in found
    assert all(key.startswith(("arturo/0/", "arturo/1/")) for key in ours(found))
    # The first batch has had no step of the second: it has counters alone.
    assert {key for key in records(tmp_path)[0] if key.startswith("arturo/1/")} == {
        "arturo/1/steps",
        "arturo/1/skipped_steps",
    }

    module = Module(lambda module: configure(module, (torch.optim.AdamW, Arturo)), in_turns)
    found = fit(module, callbacks=ArturoMonitor()).callback_metrics
    assert found["arturo/steps"] == STEPS // 2


class Copies(TorchDispatchMode):
    """Counts values that the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_steps_that_are_not_logged_are_not_waited_for(manual):
    def by_hand(module: Any, rows: Any, index: int) -> None:
        module.manual_backward(squares(module.network, rows))
        module.optimizers().step()
        module.optimizers().zero_grad()

    counts = []
    for callbacks in ([], [ArturoMonitor(per_layer=True)]):
        module = Module(counting, by_hand if manual else None)
        with Copies() as copies:
            trained = fit(
                module, callbacks=callbacks, log_every_n_steps=1000, gradient_clip_val=None if manual else 0.1
            )
        assert trained.optimizers[0].read == 0
        counts.append(copies.count)
    assert counts[0] == counts[1]


class Spoiled(Module):
    """Its third batch has a loss that is not finite."""

    def training_step(self, rows: Any, index: int) -> Any:
        inputs, targets = rows
        return super().training_step((inputs, targets * math.inf if index == 2 else targets), index)


def test_a_skipped_step_does_not_repeat_the_numbers_of_the_one_before(tmp_path):
    fit(Spoiled(), logger=CSVLogger(tmp_path), callbacks=ArturoMonitor(), max_epochs=1)
    etas = [row["arturo/eta"] for row in records(tmp_path)]
    assert [math.isnan(eta) for eta in etas] == [False, False, True, False]
    assert records(tmp_path)[2]["arturo/skipped_steps"] == 1


def test_means_over_an_epoch_keep_their_weights():
    """The last of three batches is smaller."""
    means = [
        float(fit(Module(), loader(rows=20), callbacks=callbacks).callback_metrics["loss_epoch"])
        for callbacks in ([], [ArturoMonitor()])
    ]
    assert means[0] == means[1]


class Iterating(Module):
    """Takes its batches itself."""

    def training_step(self, dataloader_iter: Any) -> Any:
        rows, _, _ = next(dataloader_iter)
        return squares(self.network, rows)


@pytest.mark.filterwarnings("ignore:.*dataloader_iter.*")
def test_steps_that_take_their_own_batches_are_logged():
    assert fit(Iterating(), callbacks=ArturoMonitor()).callback_metrics["arturo/steps"] == STEPS


class Layers(Callback):
    """What a watch of our own sees in every step."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.watch = LayerWatch(trainer.optimizers[0], pl_module.named_parameters())
        self.numbers: dict[int, dict[str, float]] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.watch.arm()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.numbers[trainer.fit_loop.epoch_loop._batches_that_stepped] = layer_metrics(self.watch)


def test_layers_are_those_of_the_logged_step(tmp_path):
    layers = Layers()
    monitor = ArturoMonitor(per_layer=True)
    trained = fit(Module(), logger=CSVLogger(tmp_path), callbacks=[layers, monitor], log_every_n_steps=3)
    found = records(tmp_path)
    assert [row["step"] for row in found] == [2, 5]
    for row in found:
        expected = layers.numbers[int(row["step"])]
        assert {key for key in row if "/layer/" in key} == expected.keys()
        assert row["arturo/layer/network.head.weight/step_rms"] > 0
        for key, value in expected.items():
            assert row[key] == pytest.approx(value, rel=1e-5), key
    layers.watch.close()
    assert not trained.optimizers[0]._optimizer_step_pre_hooks


class Failing(Callback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        raise RuntimeError("of the test")


def test_nothing_stays_on_the_optimizer_after_an_exception():
    optimizers: list[Any] = []

    def configure(module: Any) -> Any:
        optimizers.append(counting(module))
        return optimizers

    monitor = ArturoMonitor(per_layer=True)
    with pytest.raises(RuntimeError, match="of the test"):
        fit(Module(configure), callbacks=[monitor, Failing()])
    assert optimizers[0].read == 1
    assert not optimizers[0]._optimizer_step_pre_hooks


ALWAYS, NEVER = 1e-3, 1e3
CLIPPING = {
    "always": ({"gradient_clip_val": ALWAYS}, True),
    "always, values": ({"gradient_clip_val": 1e-4, "gradient_clip_algorithm": "value"}, True),
    "never": ({"gradient_clip_val": NEVER}, False),
    "off": ({}, False),
}


@pytest.mark.parametrize("name", CLIPPING)
def test_advice_follows_what_clipping_does(name):
    settings, advised = CLIPPING[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Module(), callbacks=ArturoMonitor(), log_every_n_steps=10, max_epochs=40, **settings)
    texts = [str(one.message) for one in caught if issubclass(one.category, ArturoAdvice)]
    assert len([text for text in texts if "clipping has rescaled" in text]) == int(advised)


def test_advice_can_be_left_out():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settings, _ = CLIPPING["always"]
        fit(Module(), callbacks=ArturoMonitor(advice=False), log_every_n_steps=10, max_epochs=40, **settings)
    assert not [one for one in caught if issubclass(one.category, ArturoAdvice)]
