"""Trainer under torchrun: DDP with save and resume, FSDP2 by ``DistributedConfig``, against one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from limits import HANGS

pytest.importorskip("transformers.distributed")
pytest.importorskip("accelerate")

import torch
from tiny_trainer import assert_identical, tiny_model
from trainer_ranks import STEPS, result, train

HERE = Path(__file__).parent
RUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every rank found."""
    folder = tmp_path_factory.mktemp("torchrun")
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE}", "HF_HUB_OFFLINE": "1"}
    command = [*RUN, os.fspath(HERE / "trainer_ranks.py"), os.fspath(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr[-5000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same training in one process."""
    return result(train(tmp_path_factory.mktemp("single"), tiny_model(0, dropout=0.0), 1))


@pytest.mark.parametrize("layout", ["DDP", "FSDP2"])
def test_training_is_that_of_one_process(layout, ranks, single):
    for rank in ranks:
        for name, weight in single["weights"].items():
            if name.endswith("key.bias"):
                continue  # attention does not depend on it: its gradient is rounding, other sums have another
            torch.testing.assert_close(rank[layout]["weights"][name], weight, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(ranks[0][layout]["records"], single["records"], strict=True):
        for key in set(theirs) - {
            key for key in theirs if "_q" in key or "resolution" in key
        }:  # these are of a rank's own shard
            assert ours[key] == pytest.approx(theirs[key], rel=1e-2), key  # that bias counts in the means
    assert len(single["records"]) == STEPS
    assert_identical(ranks[0][layout]["weights"], ranks[1][layout]["weights"])


def test_a_resumed_ddp_run_continues_bit_for_bit(ranks):
    for rank in ranks:
        assert_identical(rank["DDP resumed"]["weights"], rank["DDP"]["weights"])
    assert ranks[0]["DDP resumed"]["records"] == ranks[0]["DDP"]["records"]


def test_fsdp2_shards_every_weight_and_the_trainer_refuses_to_save_its_optimizer(ranks):
    assert ranks[0]["sharded"] == len(list(tiny_model().parameters()))
    assert "save_only_model=True" in ranks[0]["FSDP2 saving"]
