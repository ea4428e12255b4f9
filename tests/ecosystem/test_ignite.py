"""Ignite: its trainer, parameter schedulers, loggers and checkpoints."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("ignite")

import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from ignite.handlers import Checkpoint, CosineAnnealingScheduler, DiskSaver, PiecewiseLinear, TensorboardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_regression import BATCHES, assert_same_state, assert_same_weights, batches, loop, tiny_network
from training_records import assert_falls, assert_holds_arturo, assert_records

from arturo_core import Arturo
from arturo_integrations.metrics import arturo_metrics

EPOCHS = 20


def parts(seed: int = 0, **options: Any) -> tuple[torch.nn.Module, Arturo, Engine, PiecewiseLinear]:
    """A model, its optimizer, Ignite's trainer, and a schedule that warms up and comes down."""
    model = tiny_network(seed)
    optimizer = Arturo(model.parameters(), lr=1e-2, weight_decay=0.01)
    trainer = create_supervised_trainer(model, optimizer, torch.nn.MSELoss(), **options)
    schedule = PiecewiseLinear(optimizer, "lr", [(0, 1e-3), (10, 3e-2), (EPOCHS * BATCHES, 1e-3)])
    trainer.add_event_handler(Events.ITERATION_STARTED, schedule)
    return model, optimizer, trainer, schedule


def test_training_equals_a_loop_by_hand_and_is_logged(tmp_path):
    model, optimizer, trainer, _ = parts()
    losses, rates = [], []
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda: rates.append(optimizer.param_groups[0]["lr"]))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output))
    with TensorboardLogger(log_dir=tmp_path) as logger:
        logger.attach_output_handler(
            trainer,
            event_name=Events.ITERATION_COMPLETED(every=10),
            tag="training",
            output_transform=lambda loss: {"loss": loss, **arturo_metrics(optimizer)},
        )
        trainer.run(batches(), max_epochs=EPOCHS)
    assert_falls(losses, to=0.3)
    assert_holds_arturo(optimizer, EPOCHS * BATCHES, model)
    assert max(rates) == pytest.approx(3e-2, rel=1e-6)
    twin = tiny_network()
    by_hand = Arturo(twin.parameters(), lr=1e-2, weight_decay=0.01)
    assert loop(twin, by_hand, rates) == losses
    assert_same_weights(model, twin)

    events = EventAccumulator(str(tmp_path)).Reload()
    read: dict[int, dict[str, float]] = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            read.setdefault(event.step, {})[tag.removeprefix("training/")] = event.value
    assert_records(list(read.values()), list(read))
    assert list(read) == list(range(10, EPOCHS * BATCHES + 1, 10))


def test_a_checkpoint_of_ignite_resumes_to_the_bit(tmp_path):
    def saved(model, optimizer, trainer, schedule):
        return {"model": model, "optimizer": optimizer, "trainer": trainer, "schedule": schedule}

    whole = parts()
    handler = Checkpoint(saved(*whole), DiskSaver(tmp_path, create_dir=False), n_saved=None)
    whole[2].add_event_handler(Events.EPOCH_COMPLETED(once=EPOCHS // 2), handler)
    whole[2].run(batches(), max_epochs=EPOCHS)
    (file,) = tmp_path.iterdir()
    resumed = parts(seed=1)
    Checkpoint.load_objects(saved(*resumed), torch.load(file, weights_only=True))
    resumed[2].run(batches(), max_epochs=EPOCHS)
    assert_same_weights(whole[0], resumed[0])
    assert_same_state(whole[1], resumed[1])


def test_accumulation_counts_one_step_for_several_batches():
    model, optimizer, trainer, _ = parts(gradient_accumulation_steps=2)
    trainer.run(batches(), max_epochs=EPOCHS)
    assert_holds_arturo(optimizer, EPOCHS * BATCHES // 2, model)


def test_simulating_a_schedule_leaves_the_optimizer_alone():
    model, optimizer, trainer, _ = parts()
    trainer.run(batches(), max_epochs=1)
    twin, other, trainer, _ = parts()
    trainer.run(batches(), max_epochs=1)
    CosineAnnealingScheduler.simulate_values(8, param_name="lr", start_value=1e-1, end_value=1e-3, cycle_size=8)
    schedule = torch.optim.lr_scheduler.ExponentialLR(other, 0.5)
    from ignite.handlers import LRScheduler

    rates = [rate for _, rate in LRScheduler.simulate_values(4, schedule)]
    assert rates == pytest.approx([rates[0] * 0.5**step for step in range(4)])
    assert_same_weights(model, twin)
    for group in other.param_groups:
        group.pop("initial_lr", None)
    assert_same_state(optimizer, other)
