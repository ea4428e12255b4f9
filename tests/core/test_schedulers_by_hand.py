"""Every scheduler of torch does to an Arturo what its learning rates do when set by hand, and goes on where it was."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import assert_identical, snapshot
from torch import nn
from torch.optim import lr_scheduler, swa_utils

from arturo_core import Arturo

STEPS = 8

#: One of each class, cycling momentum where it can, as its defaults say.
MAKE: dict[str, Callable[[Arturo], Any]] = {
    "LambdaLR": lambda one: lr_scheduler.LambdaLR(one, lambda step: min(1.0, (step + 1) / 3)),
    "MultiplicativeLR": lambda one: lr_scheduler.MultiplicativeLR(one, lambda step: 0.9),
    "StepLR": lambda one: lr_scheduler.StepLR(one, 2, 0.5),
    "MultiStepLR": lambda one: lr_scheduler.MultiStepLR(one, [2, 4]),
    "ConstantLR": lambda one: lr_scheduler.ConstantLR(one, 0.5, 2),
    "LinearLR": lambda one: lr_scheduler.LinearLR(one, 0.1, total_iters=4),
    "ExponentialLR": lambda one: lr_scheduler.ExponentialLR(one, 0.9),
    "PolynomialLR": lambda one: lr_scheduler.PolynomialLR(one, STEPS),
    "CosineAnnealingLR": lambda one: lr_scheduler.CosineAnnealingLR(one, STEPS),
    "CosineAnnealingWarmRestarts": lambda one: lr_scheduler.CosineAnnealingWarmRestarts(one, 3),
    "SequentialLR": lambda one: lr_scheduler.SequentialLR(
        one, [lr_scheduler.LinearLR(one, 0.1, total_iters=2), lr_scheduler.ExponentialLR(one, 0.9)], milestones=[2]
    ),
    "ChainedScheduler": lambda one: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(one, 0.5, 2), lr_scheduler.ExponentialLR(one, 0.9)]
    ),
    "CyclicLR": lambda one: lr_scheduler.CyclicLR(one, 1e-3, 1e-2, step_size_up=2),
    "OneCycleLR": lambda one: lr_scheduler.OneCycleLR(one, 1e-2, total_steps=STEPS + 1),
    "ReduceLROnPlateau": lambda one: lr_scheduler.ReduceLROnPlateau(one, patience=0, factor=0.5),
    "SWALR": lambda one: swa_utils.SWALR(one, swa_lr=1e-3, anneal_epochs=4),
}

CYCLED = ["CyclicLR", "OneCycleLR"]

every_scheduler = pytest.mark.parametrize("name", MAKE)


def test_these_are_all_that_torch_has() -> None:
    base = lr_scheduler.LRScheduler
    members = {**vars(lr_scheduler), **vars(swa_utils)}
    found = {name for name, one in members.items() if inspect.isclass(one) and issubclass(one, base)}
    assert found - {"LRScheduler", "_LRScheduler"} == set(MAKE)


class Run:
    """A small model and its optimizer, with two groups, the second at a third of the first's lr."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        first, second = self.model[0].parameters(), self.model[2].parameters()
        self.optimizer = Arturo([{"params": first}, {"params": second, "lr": 1e-3}], lr=3e-3, weight_decay=0.1)

    def step(self, index: int) -> None:
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(index))
        self.optimizer.zero_grad()
        (self.model(inputs) - inputs[:, :1]).square().mean().backward()
        self.optimizer.step()

    @property
    def rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def values(self) -> Any:
        """Weights and statistics; not the keys that schedulers keep in the groups."""
        return {key: value for key, value in snapshot(self.optimizer).items() if key != "groups"}


def advance(scheduler: Any) -> None:
    plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step(*([1.0] if plateau else []))


@every_scheduler
def test_weights_move_as_with_the_same_rates_set_by_hand(name: str) -> None:
    scheduled, by_hand = Run(), Run()
    scheduler = MAKE[name](scheduled.optimizer)
    seen = []
    for index in range(STEPS):
        seen.append(scheduled.rates)
        for group, lr in zip(by_hand.optimizer.param_groups, scheduled.rates, strict=True):
            group["lr"] = lr
        scheduled.step(index)
        by_hand.step(index)
        advance(scheduler)
    assert len({tuple(rates) for rates in seen}) > 1, "it has moved lr"
    assert_identical(scheduled.values(), by_hand.values())


@every_scheduler
def test_a_schedule_goes_on_from_its_state_dict_to_the_bit(name: str) -> None:
    straight, interrupted = Run(), Run()
    schedulers = MAKE[name](straight.optimizer), MAKE[name](interrupted.optimizer)
    for index in range(STEPS // 2):
        for run, scheduler in zip((straight, interrupted), schedulers, strict=True):
            run.step(index)
            advance(scheduler)
    resumed = Run()
    scheduler = MAKE[name](resumed.optimizer)
    saved = pickle.loads(pickle.dumps([interrupted.optimizer.state_dict(), interrupted.model.state_dict()]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.optimizer.load_state_dict(saved[0])
    resumed.model.load_state_dict(saved[1])
    scheduler.load_state_dict(copy.deepcopy(schedulers[1].state_dict()))
    for index in range(STEPS // 2, STEPS):
        for run, one in ((straight, schedulers[0]), (resumed, scheduler)):
            run.step(index)
            advance(one)
    assert straight.rates == resumed.rates
    assert_identical(snapshot(straight.optimizer), snapshot(resumed.optimizer))


def test_one_cycle_moves_lr_and_momentum_as_it_says() -> None:
    """Cosines from a 25th of the peak up in three tenths of the steps, and down to a 250,000th; momentum against it."""
    run = Run()
    total, peak = 20, 1e-2
    scheduler = lr_scheduler.OneCycleLR(run.optimizer, peak, total_steps=total)
    turn = 0.3 * total - 1
    for index in range(total):
        up = index <= turn
        share = index / turn if up else (index - turn) / (total - 1 - turn)
        cosine = (1 + math.cos(math.pi * share)) / 2
        lr = peak + (peak / 25 - peak) * cosine if up else peak / 25e4 + (peak - peak / 25e4) * cosine
        momentum = 0.85 + 0.1 * (cosine if up else 1 - cosine)
        assert run.rates == pytest.approx([lr, lr])
        assert [group["momentum"] for group in run.optimizer.param_groups] == pytest.approx([momentum, momentum])
        run.step(index)
        if index < total - 1:
            scheduler.step()
    assert float(run.optimizer.param_groups[0]["peak_lr"]) == pytest.approx(peak)


@pytest.mark.parametrize("name", CYCLED)
def test_momentum_is_in_the_state_dict_and_read_by_no_step(name: str) -> None:
    run, other = Run(), Run()
    MAKE[name](run.optimizer)
    written = [group["momentum"] for group in run.optimizer.state_dict()["param_groups"]]
    assert written == ([0.95, 0.95] if name == "OneCycleLR" else [0.9, 0.9])
    for group, lr in zip(other.optimizer.param_groups, run.rates, strict=True):
        group["lr"], group["momentum"] = lr, -1e9
    run.step(0)
    other.step(0)
    assert_identical(run.values(), other.values())


def test_without_a_scheduler_there_is_none() -> None:
    run = Run()
    assert run.optimizer.defaults["momentum"] == 0.0
    assert [group["momentum"] for group in run.optimizer.param_groups] == [0.0, 0.0]
    run.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert run.optimizer.param_groups[-1]["momentum"] == 0.0


def test_checkpoints_from_before_there_was_the_key_load_without_a_word() -> None:
    run, fresh = Run(), Run()
    run.step(0)
    old = copy.deepcopy(run.optimizer.state_dict())
    for group in old["param_groups"]:
        del group["momentum"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh.optimizer.load_state_dict(old)
    for key in ("state", "groups"):
        assert_identical(snapshot(fresh.optimizer)[key], snapshot(run.optimizer)[key])
    lr_scheduler.OneCycleLR(fresh.optimizer, 1e-2, total_steps=3)


def test_pickles_from_before_there_was_the_key_take_schedulers_too() -> None:
    run = Run()
    del run.optimizer.defaults["momentum"]
    for group in run.optimizer.param_groups:
        del group["momentum"]
    loaded = pickle.loads(pickle.dumps(run.optimizer))
    assert [group["momentum"] for group in loaded.param_groups] == [0.0, 0.0]
    lr_scheduler.CyclicLR(loaded, 1e-3, 1e-2)


def test_averaging_weights_by_swa() -> None:
    """torch's own recipe: the average of the weights of some epochs, at SWALR's rate."""
    run = Run()
    averaged = swa_utils.AveragedModel(run.model)
    scheduler = swa_utils.SWALR(run.optimizer, swa_lr=1e-3, anneal_epochs=2, anneal_strategy="linear")
    kept = []
    for index in range(5):
        run.step(index)
        scheduler.step()
        averaged.update_parameters(run.model)
        kept.append([param.detach().clone() for param in run.model.parameters()])
    assert run.rates == pytest.approx([1e-3, 1e-3])
    for mean, *weights in zip(averaged.module.parameters(), *kept, strict=True):
        torch.testing.assert_close(mean, torch.stack(weights).mean(dim=0))


def test_the_keys_that_fastai_reads_and_writes() -> None:
    """Its ``OptimWrapper`` maps the keys of the first group when it is built, and raises for others later."""
    run, by_hand = Run(), Run()
    names = {"momentum": "mom", "weight_decay": "wd"}
    first = {key: value for key, value in run.optimizer.param_groups[0].items() if key != "params"}
    assert not [key for key, value in first.items() if isinstance(value, (list, tuple))], (
        "they would become keys of two"
    )
    known = {names.get(key, key): key for key in first}
    assert {"lr", "mom", "wd"} <= known.keys()
    for index in range(6):
        position = index / 6
        for group in run.optimizer.param_groups:
            group[known["lr"]] = 1e-3 + 1e-3 * position
            group[known["mom"]] = 0.95 - 0.1 * position
            group[known["wd"]] = 0.01
        for group in by_hand.optimizer.param_groups:
            group["lr"], group["weight_decay"] = 1e-3 + 1e-3 * position, 0.01
        run.step(index)
        by_hand.step(index)
    assert_identical(run.values(), by_hand.values())
