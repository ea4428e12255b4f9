"""The tuning walk and the plan of the quality benchmark."""

from __future__ import annotations

import math

import pytest

from arturo_core.algorithm import compact
from arturo_core.kernels import eager
from arturo_core.step import learning_rate, weight_scale
from recipes.benchmarks.quality import environment
from recipes.benchmarks.quality import plan as planning
from recipes.benchmarks.quality.optimizers import OPTIMIZERS, grid_lr
from recipes.benchmarks.quality.plan import Plan, best_point, next_points
from recipes.benchmarks.quality.tasks.base import Task


def no_problem(seed):
    raise AssertionError("planning makes no problem")


TASKS = [
    Task("cheap", "from scratch", 10, 1, "cosine", None, no_problem, "cheap one"),
    Task("dear", "fine-tuning", 10, 1, "linear", 1.0, no_problem, "dear one"),
]


def walk(loss, budget, known=(), extension=0):
    losses = {k: loss(k) for k in known}
    order = list(losses)
    while points := next_points(losses, budget, extension):
        assert not set(points) & set(losses)
        for k in points:
            losses[k] = loss(k)
            order.append(k)
    return order, losses


def record_of(planned, loss):
    scores = {"loss": loss, "accuracy": 0.5, "ece": 0.1}
    fields = {name: getattr(planned, name) for name in ("task", "optimizer", "lr", "seed", "purpose", "digest")}
    return fields | {"validation": scores, "test": scores, "diverged": None, "failed": None}


def drain(plan, landscape, records, limit=10**6):
    """Do the most wanted run again and again; the order of the keys done."""
    order = []
    while (todo := plan.todo(records)) and len(order) < limit:
        records.append(record_of(todo[0], landscape(todo[0])))
        order.append(todo[0].key)
    return order


def test_interior_best_looks_beyond_the_better_side_first():
    order, _ = walk(lambda k: (k - 0.2) ** 2, budget=5)
    assert order[:3] == [0, 1, -1]
    assert order[3:] == [2, -2]


def test_interior_best_below_goes_down_first():
    order, _ = walk(lambda k: (k + 0.2) ** 2, budget=5)
    assert order[3:] == [-2, 2]


@pytest.mark.parametrize(("slope", "expected"), [(1, [-2, -3]), (-1, [2, 3])])
def test_best_at_the_edge_walks_outward(slope, expected):
    order, losses = walk(lambda k: slope * k, budget=5)
    assert order[3:] == expected
    assert best_point(losses) == expected[-1]


def test_walk_turns_when_the_edge_was_passed():
    order, losses = walk(lambda k: abs(k - 2), budget=6)
    assert order == [0, 1, -1, 2, 3, 4]
    assert best_point(losses) == 2


def test_divergence_everywhere_walks_down():
    order, losses = walk(lambda k: math.inf, budget=5)
    assert order[3:] == [-2, -3]
    assert best_point(losses) == -3


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 8])
def test_budget_is_met_exactly(budget):
    for centre in (-9, -0.6, 0, 0.4, 3, 20):
        order, _ = walk(lambda k, centre=centre: abs(k - centre), budget)
        assert len(order) == budget


@pytest.mark.parametrize(
    ("centre", "beyond"),
    [(0.2, []), (1.6, []), (3, [4]), (4, [4, 5]), (5, [4, 5, 6]), (9, [4, 5, 6]), (-3.4, [-4]), (-9, [-4, -5, -6])],
)
def test_best_at_an_edge_earns_points_beyond_it_and_no_others(centre, beyond):
    """The whole budget first; then one point at a time, until the best is interior or the extension is spent."""
    plain, _ = walk(lambda k: abs(k - centre), budget=5)
    order, _ = walk(lambda k: abs(k - centre), budget=5, extension=3)
    assert order == [*plain, *beyond]


@pytest.mark.parametrize("known", range(6))
def test_walk_resumed_anywhere_is_the_same(known):
    def loss(k):
        return abs(k - 1.7)

    whole, _ = walk(loss, budget=6)
    resumed, _ = walk(loss, budget=6, known=whole[:known])
    assert resumed == whole


def landscape(planned):
    """Best at grid point 1 for adamw, -1 for arturo, 0 else."""
    entry = OPTIMIZERS[planned.optimizer]
    family = {task.name: task.family for task in TASKS}[planned.task]
    centre = {"adamw": 1, "arturo": -1}.get(planned.optimizer, 0)
    return abs(math.log(planned.lr / grid_lr(entry, family, centre)))


def test_whole_plan_runs_tuning_seeds_and_bars():
    plan = Plan(TASKS[:1], ["adamw", "arturo"])
    records = []
    drain(plan, landscape, records)
    for name, best in (("adamw", 1), ("arturo", -1)):
        lrs = [grid_lr(OPTIMIZERS[name], "from scratch", k) for k in range(-4, 5)]
        mine = [record for record in records if record["optimizer"] == name]
        assert len({record["lr"] for record in mine if record["seed"] == 0}) == 5
        for seed in (1, 2, 3, 4, 5, 6):
            at = {record["lr"] for record in mine if record["seed"] == seed}
            expected = {lrs[4], lrs[4 + best]}
            if name == "arturo" and seed == 1:  # a third of the best; three times the best is the default here
                expected |= {lrs[4 + best - 1]}
            assert at == expected
    assert plan.left(records) == 0


def test_fresh_seeds_are_of_the_two_that_the_bars_compare():
    records = []
    drain(Plan(TASKS[:1], ["adamw", "sgd"]), landscape, records)
    seeds = {name: {one["seed"] for one in records if one["optimizer"] == name} for name in ("adamw", "sgd")}
    assert seeds == {"adamw": {0, 1, 2, 3, 4, 5, 6}, "sgd": {0, 1, 2, 3}}
    assert Plan(TASKS[:1], ["adamw"], fresh=()).todo(records) == []
    assert all(one.purpose == "fresh" for one in Plan(TASKS[:1], ["adamw"], fresh=(7,)).todo(records))


def test_plan_is_the_same_after_an_interruption():
    plan = Plan(TASKS, ["adamw", "arturo", "sgd"])
    whole = drain(plan, landscape, [])
    for stop in (1, 4, 13, 30, len(whole) - 1):
        records = []
        begun = drain(plan, landscape, records, limit=stop)
        assert begun + drain(plan, landscape, records) == whole


def test_adamw_and_arturo_come_before_the_others_and_cheap_tasks_before_dear_ones():
    done = drain(Plan(TASKS, ["sgd", "adamw", "arturo"]), landscape, [])
    ranks = [(optimizer == "sgd", task == "dear") for task, optimizer, *_ in done]
    assert ranks == sorted(ranks)


def test_running_is_not_handed_out_again_nor_the_walk_ahead_of_it():
    plan = Plan(TASKS[:1], ["adamw"], stages=("tune",))
    first = plan.todo([])
    assert len(first) == 3
    assert plan.todo([], running=[planned.key for planned in first]) == []
    records = [record_of(planned, landscape(planned)) for planned in first]
    (fourth,) = plan.todo(records)
    assert plan.todo(records, running=[fourth.key]) == []


def test_diverged_counts_as_the_worst():
    plan = Plan(TASKS[:1], ["sgd"], budget=4, stages=("tune",))
    records = [record_of(planned, 1.0) for planned in plan.todo([])]
    records[0] |= {"diverged": "training loss nan at step 3", "validation": None}
    losses = planning.grid_losses(records, TASKS[0], "sgd", OPTIMIZERS["sgd"])
    assert losses == {0: math.inf, 1: 1.0, -1: 1.0}


def test_changed_code_does_not_inherit_records(monkeypatch):
    plan = Plan(TASKS[:1], ["arturo", "adamw"])
    records = []
    drain(plan, landscape, records)
    assert plan.todo(records) == []
    monkeypatch.setattr("recipes.benchmarks.quality.environment.behaviour_digest", lambda entry: "changed")
    again = plan.todo(records)
    assert again
    assert {planned.optimizer for planned in again} == {"arturo"}


def test_estimate_of_what_is_left_counts_down_to_zero():
    plan = Plan(TASKS, ["adamw", "arturo"])
    records = []
    counts = [plan.left(records)]
    while todo := plan.todo(records):
        records.append(record_of(todo[0], landscape(todo[0])))
        counts.append(plan.left(records))
    assert counts[-1] == 0
    assert abs(counts[0] - len(records)) <= 6


@pytest.mark.parametrize(
    ("module", "constant"),
    [
        (compact, "NOISE_GAIN"),
        (compact, "RADIUS_PER_LR"),
        (compact, "RADIUS_PER_SIGNAL"),
        (compact, "DAMPING"),
        (weight_scale, "RADIUS_PER_WEIGHT"),
        (eager, "CURVATURE_STEP"),
        (learning_rate, "LENGTH_PER_LR"),
    ],
)
def test_the_digest_of_our_code_follows_its_behaviour(monkeypatch, module, constant):
    entry = OPTIMIZERS["arturo"]
    before = environment.behaviour_digest(entry)
    environment._behaviour.cache_clear()
    monkeypatch.setattr(module, constant, 1.1 * getattr(module, constant))
    try:
        assert environment.behaviour_digest(entry) != before
    finally:
        environment._behaviour.cache_clear()


def test_the_digest_of_unchanged_code_stays(monkeypatch):
    entry = OPTIMIZERS["arturo"]
    before = environment.behaviour_digest(entry)
    environment._behaviour.cache_clear()
    assert environment.behaviour_digest(entry) == before
    assert before != environment.behaviour_digest(OPTIMIZERS["arturo-paper"])
