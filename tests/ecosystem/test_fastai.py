"""fastai: Learner with its wrapper of torch's optimizers."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

pytest.importorskip("fastai")

import torch
from fastai.basics import DataLoader, DataLoaders, Learner, MSELossFlat, OptimWrapper, params
from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger
from fastai.callback.schedule import combined_cos  # noqa: F401  (gives Learner its fit_... methods)
from fastai.metrics import ValueMetric
from tiny_regression import BATCHES, assert_same_state, assert_same_weights, loop, rows, tiny_network
from training_records import assert_falls, assert_holds_arturo, assert_within_trust_region

from arturo_core import Arturo
from arturo_integrations.metrics import arturo_metrics

pytestmark = pytest.mark.ecosystem

EPOCHS = 12


class Numbers(Callback):
    """Keeps what every step reports, and the learning rate it had."""

    def before_fit(self) -> None:
        if not hasattr(self, "records"):
            self.all_rates, self.rates, self.records, self.losses = [], [], [], []

    def before_step(self) -> None:
        self.all_rates.append([group["lr"] for group in self.opt.opt.param_groups])
        self.rates.append(self.all_rates[-1][0])

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


def fitted(learn: Learner, method: str, *arguments: Any, **more: Any) -> Learner:
    with learn.no_bar(), learn.no_logging():
        getattr(learn, method)(*arguments, **more)
    return learn


def assert_trained(learn: Learner) -> None:
    assert_falls(learn.numbers.losses, to=0.5)
    assert [record["arturo/steps"] for record in learn.numbers.records] == list(range(1, EPOCHS * BATCHES + 1))
    for record in learn.numbers.records:
        assert_within_trust_region(record)
    assert_holds_arturo(learn.opt.opt, EPOCHS * BATCHES, learn.model)


def assert_equals_a_loop_by_hand(learn: Learner, weight_decay: float) -> None:
    twin = tiny_network()
    by_hand = Arturo(twin.parameters(), weight_decay=weight_decay)
    assert loop(twin, by_hand, learn.numbers.rates) == learn.numbers.losses
    assert_same_weights(learn.model, twin)


#: Methods of Learner, and arguments that make twelve epochs of each.
METHODS = {"fit": (EPOCHS,), "fit_flat_cos": (EPOCHS,), "fit_sgdr": (2, 4)}


@pytest.mark.parametrize("method", METHODS)
def test_fitting_equals_a_loop_by_hand(method, tmp_path):
    learn = fitted(learner(tmp_path), method, *METHODS[method], wd=0.1)
    assert_trained(learn)
    assert {round(float(rate), 9) == 2e-2 for rate in learn.numbers.rates} == (
        {True} if method == "fit" else {True, False}
    )
    assert_equals_a_loop_by_hand(learn, weight_decay=0.1)


def test_fit_one_cycle_schedules_the_learning_rate(tmp_path):
    learn = fitted(learner(tmp_path), "fit_one_cycle", EPOCHS)
    assert_trained(learn)
    rates = learn.numbers.rates
    assert rates[0] == pytest.approx(2e-2 / 25, rel=1e-6)
    assert max(rates) == pytest.approx(2e-2, rel=1e-2)
    assert rates[-1] < 1e-3
    assert_equals_a_loop_by_hand(learn, weight_decay=0.0)


def test_fine_tuning_moves_the_head_first_then_all(tmp_path):
    def split(model):
        return [params(model[0]), params(model[2])]

    learn = learner(tmp_path, splitter=split)
    before = [p.detach().clone() for p in learn.model.parameters()]
    learn.freeze()
    fitted(learn, "fit_one_cycle", 4, 2e-2)
    assert [torch.equal(p, old) for p, old in zip(learn.model.parameters(), before, strict=True)] == [True] * 2 + [
        False
    ] * 2
    learn.unfreeze()
    fitted(learn, "fit_one_cycle", 8, slice(1e-3, 2e-2))
    assert not any(torch.equal(p, old) for p, old in zip(learn.model.parameters(), before, strict=True))
    assert [max(rates) for rates in zip(*learn.numbers.all_rates[4 * BATCHES :], strict=True)] == pytest.approx(
        [1e-3, 2e-2], rel=1e-2
    )
    assert_trained(learn)


def test_what_fastai_saves_goes_on_to_the_bit(tmp_path):
    whole = fitted(learner(tmp_path), "fit", EPOCHS // 2, wd=0.1)
    whole.save("half")
    fitted(whole, "fit", EPOCHS // 2, wd=0.1)
    assert_trained(whole)
    resumed = learner(tmp_path, seed=1)
    resumed.load("half")
    fitted(resumed, "fit", EPOCHS // 2, wd=0.1)
    assert_same_weights(whole.model, resumed.model)
    assert_same_state(whole.opt.opt, resumed.opt.opt)


def test_the_numbers_are_columns_of_fastais_table(tmp_path):
    names = ["arturo/steps", "arturo/kl_ratio", "arturo/step_rms"]
    learn = learner(tmp_path, cbs=[CSVLogger()])
    learn.metrics = [ValueMetric(lambda name=name: arturo_metrics(learn.opt.opt)[name], name) for name in names]
    with learn.no_bar():
        learn.fit(EPOCHS)
    header, *lines = (line.split(",") for line in (tmp_path / "history.csv").read_text().splitlines())
    last_of_epochs = learn.numbers.records[BATCHES - 1 :: BATCHES]
    assert [record["arturo/steps"] for record in last_of_epochs] == [BATCHES * (epoch + 1) for epoch in range(EPOCHS)]
    for name in names:
        column = [float(line[header.index(name)]) for line in lines]
        assert column == pytest.approx([record[name] for record in last_of_epochs], rel=1e-6), name
