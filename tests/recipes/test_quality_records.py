"""The quality benchmark's records on disk, and the grid that writes them."""

from __future__ import annotations

import json
import math
from concurrent.futures import Future

import pytest
from rich.console import Console

from recipes.benchmarks.quality import records
from recipes.benchmarks.quality.plan import Plan
from recipes.benchmarks.quality.progress import Progress
from recipes.benchmarks.quality.runner import Grid
from recipes.benchmarks.quality.tasks.base import Task


def record(lr=1e-3, seed=0, loss=1.0, **more):
    return {
        "task": "t",
        "optimizer": "adamw",
        "lr": lr,
        "seed": seed,
        "digest": "d",
        "validation": {"loss": loss, "accuracy": 0.5},
        "total_s": 1.0,
        **more,
    }


def test_what_is_appended_is_read(tmp_path):
    path = tmp_path / "deep" / "records.jsonl"
    records.append(path, record(seed=1))
    records.append(path, record(seed=2))
    assert records.read([path]) == [record(seed=1), record(seed=2)]
    assert records.read([tmp_path / "missing.jsonl"]) == []


def test_torn_last_line_is_passed_over_and_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "records.jsonl"
    records.append(path, record(seed=1))
    torn = json.dumps(record(seed=2))[:30]
    with path.open("a") as file:
        file.write(torn)
    assert [one["seed"] for one in records.read([path])] == [1]
    records.append(path, record(seed=3))
    assert [one["seed"] for one in records.read([path])] == [1, 3]


def test_last_record_of_a_key_counts(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    records.append(first, record(lr=1e-3, loss=1.0, purpose="tune"))
    records.append(first, record(lr=1e-2, loss=3.0))
    records.append(second, record(lr=1.0000001e-3, loss=2.0, purpose="seed"))  # the same to six digits
    assert [one["validation"]["loss"] for one in records.read([first, second])] == [3.0, 2.0]


def test_numbers_json_lacks_become_null_and_count_as_infinite(tmp_path):
    path = tmp_path / "records.jsonl"
    records.append(path, record(loss=math.nan))
    (one,) = records.read([path])
    assert "NaN" not in path.read_text()
    assert records.score(one, "validation", "loss") == math.inf
    assert math.isnan(records.score(one, "test", "accuracy"))


def test_scores_of_a_failed_run_do_not_count(tmp_path):
    assert records.score(record(loss=0.1, diverged="training loss inf at step 2"), "validation", "loss") == math.inf
    assert records.score(record(loss=0.1), "validation", "loss") == 0.1


class Inline:
    """An executor without processes."""

    def __init__(self, jobs):
        pass

    def submit(self, work, planned):
        future = Future()
        try:
            future.set_result(work(planned))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, **_):
        pass


class Worker:
    """Writes down what it is given; can be told to fail."""

    def __init__(self, interrupt_at=None, broken=(), failing=(), data="d1"):
        self.seen, self.interrupt_at, self.broken, self.failing, self.data = [], interrupt_at, broken, failing, data

    def __call__(self, planned):
        if len(self.seen) == self.interrupt_at:
            raise KeyboardInterrupt
        if planned.task in self.broken:
            raise FileNotFoundError("no data of this task")
        self.seen.append(planned.key)
        done = record(lr=planned.lr, seed=planned.seed, loss=planned.lr, test={"loss": 1.0, "accuracy": 0.5})
        done |= {"task": planned.task, "optimizer": planned.optimizer, "digest": planned.digest, "data": self.data}
        return done | {"purpose": planned.purpose, "failed": "ValueError: no" if planned.key in self.failing else None}


def grid(path, worker, **more):
    tasks = [Task(name, "from scratch", 9, 1, "cosine", None, lambda seed: None, name) for name in ("one", "two")]
    return Grid(Plan(tasks, ["adamw", "sgd"], seeds=[1]), path, jobs=2, executor=Inline, work=worker, **more)


@pytest.fixture
def progress():
    return Progress(Console(width=200))


def test_interrupted_grid_goes_on_without_repeating(tmp_path, progress):
    whole, path = Worker(), tmp_path / "whole.jsonl"
    assert grid(path, whole).carry_out(progress)
    assert len(records.read([path])) == len(set(whole.seen)) == len(whole.seen)

    path = tmp_path / "records.jsonl"
    first, second = Worker(interrupt_at=7), Worker()
    assert not grid(path, first).carry_out(progress)
    kept = {records.key(one) for one in records.read([path])}
    assert kept
    assert grid(path, second).carry_out(progress)
    assert not kept & set(second.seen)
    assert kept | set(second.seen) == set(whole.seen)


def test_task_without_data_is_skipped_and_said_so(tmp_path, progress, capsys):
    worker = Worker(broken=("one",))
    run = grid(tmp_path / "records.jsonl", worker)
    assert run.carry_out(progress)
    assert {task for task, *_ in worker.seen} == {"two"}
    assert run.unavailable == {"one": "FileNotFoundError: no data of this task"}
    assert "no data of this task" in capsys.readouterr().out


def test_runs_on_other_data_do_not_join_the_records(tmp_path, progress, capsys):
    """lm-python reads the library of the Python that runs it: another one is another corpus."""
    path = tmp_path / "records.jsonl"
    grid(path, Worker(interrupt_at=3)).carry_out(progress)
    before = path.read_bytes()
    run = grid(path, Worker(data="d2"))
    assert run.carry_out(progress)
    assert path.read_bytes().startswith(before)
    added = records.read([path])[len(before.splitlines()) :]
    assert {one["task"] for one in added} == {"two"}  # of which there were none
    assert "give --results another file" in run.unavailable["one"]
    assert "give --results another file" in capsys.readouterr().out


def test_time_limit_hands_out_nothing_more(tmp_path, progress):
    worker = Worker()
    assert not grid(tmp_path / "records.jsonl", worker, max_minutes=-1).carry_out(progress)
    assert worker.seen == []


def test_failed_runs_are_done_again_only_when_asked(tmp_path, progress):
    path = tmp_path / "records.jsonl"
    probe = Worker()
    grid(tmp_path / "probe.jsonl", probe).carry_out(progress)
    bad = probe.seen[0]
    grid(path, Worker(failing=[bad])).carry_out(progress)
    idle = Worker()
    assert grid(path, idle).carry_out(progress)
    assert idle.seen == []
    again = Worker()
    assert grid(path, again, rerun_failed=True).carry_out(progress)
    assert bad in again.seen
    assert not any(one["failed"] for one in records.read([path]) if records.key(one) == bad)
