"""One run of the quality benchmark, with every optimizer."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from quality_toy import STEPS, Toy, toy_task

from recipes.benchmarks.quality import environment, training
from recipes.benchmarks.quality.environment import installed
from recipes.benchmarks.quality.optimizers import OPTIMIZERS
from recipes.benchmarks.quality.training import evaluation_steps, lr_factor, run

# Large enough for 24 steps to show: the toy is shorter than any real task.
LR = {"adamw": 1e-2, "arturo": 3e-2, "arturo-paper": 0.03, "muon": 1e-2, "soap": 1e-2, "schedule-free": 2e-2}
LR |= {"ivon": 0.5, "sgd": 0.1}
RESULTS = ("curve", "validation", "test", "train_loss", "state_bytes", "params", "digest", "diverged", "failed")


@pytest.fixture(params=OPTIMIZERS)
def name(request):
    if not installed(OPTIMIZERS[request.param]):
        pytest.skip(f"{OPTIMIZERS[request.param].package} is not installed")
    return request.param


def test_loss_falls_and_the_same_seed_gives_the_same_record(name):
    threads = torch.get_num_threads()
    first, again, other = (run(toy_task(), name, LR[name], seed, "seed") for seed in (1, 1, 2))
    assert (first["failed"], first["diverged"]) == (None, None)
    assert first["test"]["loss"] < 0.97 * math.log(3)
    assert first["curve"][-1][1] < first["curve"][0][1]
    assert first["curve"][-1][:2] == [STEPS, first["validation"]["loss"]]
    assert [point[0] for point in first["curve"]] == [3, 6, 9, 12, 15, 18, 21, 24]
    assert {key: first[key] for key in RESULTS} == {key: again[key] for key in RESULTS}
    assert first["test"] != other["test"]
    assert 0 < first["optimizer_s"] <= first["wall_s"] <= first["total_s"]
    assert torch.get_num_threads() == threads


def test_the_first_run_of_a_process_is_like_any_other(name):
    """What is computed once, such as the digest of an optimizer's behaviour, draws no random numbers of the run."""
    environment._behaviour.cache_clear()
    first, again = (run(toy_task(), name, LR[name], 1, "seed") for _ in range(2))
    assert {key: first[key] for key in RESULTS} == {key: again[key] for key in RESULTS}


def test_evaluating_does_not_change_the_training(name, monkeypatch):
    often = run(toy_task(), name, LR[name], 1, "seed")
    monkeypatch.setitem(training.POINTS, "from scratch", 1)
    once = run(toy_task(), name, LR[name], 1, "seed")
    assert len(once["curve"]) == 1
    # Schedule-free switches its weights to the average and back, which rounds.
    assert once["test"]["loss"] == pytest.approx(often["test"]["loss"], rel=1e-4 if name == "schedule-free" else 1e-12)


def test_loss_that_is_not_finite_ends_the_run(name):
    steps = []

    class Counting(Toy):
        def batches(self):
            for batch in super().batches():
                steps.append(1)
                yield batch

    record = run(toy_task(lambda seed: Counting(seed, poisoned_at=7)), name, LR[name], 1, "tune")
    assert record["diverged"] == "training loss nan at step 8"
    assert record["failed"] is None
    assert "test" not in record
    assert len(steps) == 8
    assert [point[0] for point in record["curve"]] == [3, 6]


def test_exception_of_an_optimizer_is_recorded():
    class Broken(torch.optim.SGD):
        def step(self):
            raise ValueError("no step today")

    entry = dataclasses.replace(OPTIMIZERS["sgd"], build=lambda model, lr, examples: Broken(model.parameters(), lr))
    record = run(toy_task(), "sgd", 0.1, 1, "seed", entry)
    assert record["failed"] == "ValueError: no step today"
    assert record["versions"]["torch"] == torch.__version__


def test_missing_data_is_the_callers():
    def make(seed):
        raise FileNotFoundError("no data")

    with pytest.raises(FileNotFoundError, match="no data"):
        run(toy_task(make), "sgd", 0.1, 1, "seed")


def test_ctrl_c_is_not_taken_for_a_failure():
    class Interrupted(Toy):
        def loss(self, batch):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(toy_task(Interrupted), "sgd", 0.1, 1, "seed")


def test_too_few_batches_are_no_result():
    class Short(Toy):
        def batches(self):
            yield next(super().batches())

    assert "gave 1 batches" in run(toy_task(Short), "sgd", 0.1, 1, "seed")["failed"]


class Spy(torch.optim.SGD):
    """SGD that writes down its learning rates and in which order it is called."""

    def __init__(self, params, lr):
        super().__init__([{"params": [param]} for param in params], lr=lr)
        self.param_groups[0]["lr"] = 2 * lr
        self.calls = []

    def step(self):
        self.calls.append(tuple(group["lr"] for group in self.param_groups[:2]))
        super().step()


@pytest.mark.parametrize("constant", [False, True])
def test_schedule_multiplies_each_groups_own_rate(constant):
    spies = []

    def build(model, lr, examples):
        spies.append(Spy(training.trainable(model), lr))
        return spies[0]

    entry = dataclasses.replace(OPTIMIZERS["sgd"], build=build, constant=constant)
    task = toy_task()
    assert run(task, "sgd", 0.1, 1, "seed", entry)["failed"] is None
    factors = [min(1.0, (step + 1) / 3) if constant else task.factor(step) for step in range(STEPS)]
    assert spies[0].calls == [pytest.approx((0.2 * factor, 0.1 * factor)) for factor in factors]
    assert lr_factor(task, entry, STEPS - 1) == (1.0 if constant else task.factor(STEPS - 1))


def test_evaluations_are_even_and_end_with_the_last_step():
    assert evaluation_steps(100, 5) == [20, 40, 60, 80, 100]
    assert evaluation_steps(250, 8)[-1] == 250
    assert evaluation_steps(3, 8) == [1, 2, 3]


def test_gradients_are_clipped_before_the_step():
    norms = []

    class Norms(torch.optim.SGD):
        def step(self):
            grads = [param.grad for group in self.param_groups for param in group["params"] if param.grad is not None]
            norms.append(torch.cat([grad.flatten() for grad in grads]).norm().item())

    entry = dataclasses.replace(
        OPTIMIZERS["sgd"], build=lambda model, lr, examples: Norms(training.trainable(model), lr)
    )
    run(dataclasses.replace(toy_task(), clip=1e-3), "sgd", 0.1, 1, "seed", entry)
    assert norms == [pytest.approx(1e-3, rel=1e-2)] * STEPS
