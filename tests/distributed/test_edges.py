"""What happens between ranks beside a step: files of their own, steps without gradients, pickles, other devices."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import fsdp2, stages
from problem import MODES, network, train
from ranks import run
from torch import distributed
from torch.distributed.tensor.debug import CommDebugMode

from arturo_core import Arturo
from arturo_core.distributed import agreement

OPTIONS = MODES["rms"]


def resumed_from_own_files() -> list[bool]:
    """``torch.save`` of a sharded optimizer's state dict as it is, read by a new one: the same weights to the bit?"""
    first = fsdp2(OPTIONS, torch.float64)
    train(first, range(4), OPTIONS["lr"])
    saved = io.BytesIO()
    torch.save({"model": first.model.state_dict(), "optimizer": first.optimizer.state_dict()}, saved)
    expected = train(first, range(4, 7), OPTIONS["lr"])
    saved.seek(0)
    loaded = torch.load(saved, weights_only=False)
    second = fsdp2(OPTIONS, torch.float64)
    second.model.load_state_dict(loaded["model"])
    second.optimizer.load_state_dict(loaded["optimizer"])
    found = train(second, range(4, 7), OPTIONS["lr"])
    return [torch.equal(found["weights"][name], weight) for name, weight in expected["weights"].items()]


def test_files_of_every_rank(tmp_path: Path) -> None:
    for same in run(resumed_from_own_files, 2, tmp_path):
        assert same
        assert all(same)


def steps_without_gradients() -> dict[str, Any]:
    found = {}
    for name, build in {"DTensors": fsdp2, "process group": stages}.items():
        parallel = build(OPTIONS, torch.float64)
        train(parallel, range(2), OPTIONS["lr"])
        optimizer = parallel.optimizer
        optimizer.zero_grad()
        before = parallel.whole(), _groups(optimizer)
        for group in optimizer.param_groups:
            group["lr"] = 1.0
        optimizer.step()
        weights = parallel.whole()
        same = all(torch.equal(weights[name], weight) for name, weight in before[0].items())
        counted = optimizer.diagnostics()
        found[name] = (same, before[1] == _groups(optimizer), counted["steps"], counted["skipped_steps"])
    return found


def _groups(optimizer: Arturo) -> list[tuple[float, float, float]]:
    return [
        (float(group["peak_lr"]), float(group["level"]), float(group["length"])) for group in optimizer.param_groups
    ]


def test_a_step_without_gradients_on_any_rank_changes_nothing(tmp_path: Path) -> None:
    for rank in run(steps_without_gradients, 2, tmp_path):
        assert rank == {"DTensors": (True, True, 1, 0), "process group": (True, True, 1, 0)}


def agreed_devices() -> list[str]:
    """One rank's parameters are on an accelerator; the other has none of its own, and thinks of the CPU."""
    group = distributed.group.WORLD
    assert group is not None
    options = Arturo([torch.zeros(1)])._options
    homes = [["cpu", "cpu"], ["cpu", "meta"], ["meta", "cpu"], ["meta", "meta"]]
    rank = distributed.get_rank()
    return [agreement.agree([group], [], options, torch.device(home[rank])).type for home in homes]


def test_ranks_agree_where_to_reduce(tmp_path: Path) -> None:
    assert run(agreed_devices, 2, tmp_path) == [["cpu", "meta", "meta", "meta"]] * 2


def steps_of_one_rank() -> dict[str, int]:
    """At lr 0 a rank can step alone: it asks the others for nothing."""
    found = {}
    for name, build in {"DTensors": fsdp2, "process group": stages}.items():
        parallel = build({**OPTIONS, "lr": 0.0}, torch.float64)
        if distributed.get_rank() == 0:
            for group in parallel.optimizer.param_groups:
                for param in group["params"]:
                    param.grad = torch.ones_like(param)
            with CommDebugMode() as sent:
                parallel.optimizer.step()
            found[name] = sent.get_total_counts()
    distributed.barrier()
    return found


def test_at_rest_there_are_no_collectives(tmp_path: Path) -> None:
    assert run(steps_of_one_rank, 2, tmp_path) == [{"DTensors": 0, "process group": 0}, {}]


def pickled_steps() -> tuple[str, bool]:
    model = network()
    optimizer = Arturo(model.parameters(), process_group=distributed.group.WORLD)
    assert copy.copy(optimizer).process_group is copy.deepcopy(optimizer).process_group is distributed.group.WORLD
    again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(optimizer))))
    message = ""
    try:
        again.step()
    except RuntimeError as error:
        message = str(error)
    again.split_over(distributed.group.WORLD)
    again.step()
    return message, again.process_group is distributed.group.WORLD


def test_a_pickled_optimizer_asks_for_its_process_group(tmp_path: Path) -> None:
    for message, grouped in run(pickled_steps, 2, tmp_path):
        assert "split_over(process_group)" in message
        assert grouped


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_without_a_process_group_pickles_step(options: dict[str, Any]) -> None:
    weight = torch.nn.Parameter(torch.ones(3, 2))
    again = pickle.loads(pickle.dumps(Arturo([weight], **options)))
    again.param_groups[0]["params"][0].grad = torch.ones(3, 2)
    again.step()
    assert again.diagnostics()["steps"] == 1
