"""fastai: Learner with its wrapper of torch's optimizers."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from packages import package

package("fastai")

import torch
from fastai.basics import DataLoader, DataLoaders, Learner, MSELossFlat, OptimWrapper, params
from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger
from fastai.callback.schedule import combined_cos  # noqa: F401  (gives Learner its fit_... methods)
from fastai.metrics import ValueMetric
from tiny_regression import BATCHES, assert_same_state, assert_same_weights, batches, loop, rows, tiny_network
from training_records import assert_falls, assert_holds_arturo, assert_within_trust_region

from arturo_core import Arturo
from arturo_integrations.metrics import arturo_metrics

pytestmark = pytest.mark.ecosystem

EPOCHS = 12


class Numbers(Callback):
    """Keeps what every step reports, and the learning rate it had."""

    def before_fit(self) -> None:
        self.rates: list[float] = getattr(self, "rates", [])
        self.records: list[dict[str, Any]] = getattr(self, "records", [])
        self.losses: list[float] = getattr(self, "losses", [])

    def before_step(self) -> None:
        self.rates.append(self.opt.opt.param_groups[0]["lr"])

    def after_step(self) -> None:
        self.records.append(arturo_metrics(self.opt.opt))
        self.losses.append(self.loss.item())


def learner(folder: Any, seed: int = 0, **more: Any) -> Learner:
    data = list(zip(*rows(), strict=True))
    loaders = DataLoaders(*(DataLoader(data, bs=len(data) // BATCHES, shuffle=False) for _ in range(2)))
    return Learner(
        loaders,
        tiny_network(seed),
        loss_func=MSELossFlat(),
        opt_func=partial(OptimWrapper, opt=Arturo),
        lr=2e-2,
        path=folder,
        cbs=[Numbers(), *more.pop("cbs", [])],
        **more,
    )


def fitted(folder: Any, method: str, *arguments: Any, **more: Any) -> Learner:
    learn = learner(folder, **more)
    with learn.no_bar():
        getattr(learn, method)(EPOCHS, *arguments)
    return learn


def assert_equals_a_loop_by_hand(learn: Learner, weight_decay: float) -> None:
    twin = tiny_network()
    by_hand = Arturo(twin.parameters(), lr=2e-2, weight_decay=weight_decay)
    assert loop(twin, by_hand, learn.numbers.rates) == pytest.approx(learn.numbers.losses, rel=1e-5)
    for weight, other in zip(learn.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-4, atol=1e-6)


def assert_trained(learn: Learner) -> None:
    assert_falls(learn.numbers.losses, to=0.5)
    assert [record["arturo/steps"] for record in learn.numbers.records] == list(range(1, EPOCHS * BATCHES + 1))
    for record in learn.numbers.records:
        assert_within_trust_region(record)
    assert_holds_arturo(learn.opt.opt, EPOCHS * BATCHES, learn.model)


@pytest.mark.parametrize("method", ["fit", "fit_flat_cos", "fit_sgdr"])
def test_fitting_equals_a_loop_by_hand(method, tmp_path):
    learn = fitted(tmp_path, method, *([1] if method == "fit_sgdr" else []), wd=0.1)
    if method == "fit_sgdr":
        assert len(learn.numbers.rates) == BATCHES * (2**EPOCHS - 1)
    assert_trained(learn)
    assert_equals_a_loop_by_hand(learn, 0.1)


def test_fit_one_cycle_moves_the_learning_rate(tmp_path):
    learn = fitted(tmp_path, "fit_one_cycle")
    assert_trained(learn)
    rates = learn.numbers.rates
    assert max(rates) == pytest.approx(2e-2, rel=1e-2)
    assert rates[0] == pytest.approx(2e-2 / 25, rel=1e-6)
    assert rates[-1] < 1e-3
    assert_equals_a_loop_by_hand(learn, 0.0)
