"""LitGPT: its pretraining, with the optimizer named by a dotted path, as ``--optimizer arturo_core.Arturo`` is."""

from __future__ import annotations

import csv
import sys
from typing import Any

import pytest

pytest.importorskip("litgpt")

import torch
from litgpt import pretrain
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.data import DataModule
from tiny_regression import assert_same_state
from torch.utils.data import DataLoader
from training_records import assert_falls, assert_holds_arturo

from arturo_core import Arturo
from arturo_integrations.metrics import find_arturo

pytestmark = pytest.mark.ecosystem

BLOCK, BATCH, ROWS = 8, 4, 32
STEPS = 3 * ROWS // BATCH
CONFIG = Config(
    name="tiny", block_size=BLOCK, n_layer=1, n_embd=16, n_head=2, padded_vocab_size=32, intermediate_size=32
)


class Resumable(DataLoader):
    """What LitGPT expects of a loader that goes into a checkpoint; between two passes there is nothing to keep."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state == {}


class Counting(DataModule):
    """Rows that count upwards from a random number."""

    def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None) -> None:
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        starts = torch.randint(0, 16, (ROWS, 1), generator=torch.Generator().manual_seed(0))
        return Resumable(starts + torch.arange(BLOCK + 1), batch_size=self.batch_size)

    val_dataloader = train_dataloader


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs LitGPT's pretraining into a folder; returns the model, the optimizer and the logged losses."""
    made: list[tuple[Any, Any]] = []
    make = pretrain.instantiate_torch_optimizer

    def spy(optimizer: Any, parameters: Any, **kwargs: Any) -> Any:
        parameters = list(parameters)
        made.append((parameters, make(optimizer, parameters, **kwargs)))
        return made[-1][1]

    monkeypatch.setattr(pretrain, "instantiate_torch_optimizer", spy)
    # LitGPT parses its command line again, to store it with the model.
    monkeypatch.setattr(sys, "argv", ["litgpt", "pretrain", "pythia-14m", "--optimizer", "arturo_core.Arturo"])
    monkeypatch.setattr(torch, "compile", lambda model: model)  # minutes, for a model of this size

    def run(folder: str, optimizer: Any, **more: Any) -> tuple[torch.nn.Module, Any, list[float]]:
        pretrain.setup(
            model_name="tiny",
            model_config=CONFIG,
            out_dir=tmp_path / folder,
            precision="32-true",
            data=Counting(),
            train=TrainArgs(
                global_batch_size=BATCH,
                micro_batch_size=BATCH,
                max_tokens=STEPS * BATCH * BLOCK,
                lr_warmup_steps=2,
                min_lr=1e-3,
                max_norm=1e9,
                log_interval=1,
                save_interval=ROWS // BATCH,
                tie_embeddings=False,
            ),
            eval=EvalArgs(interval=1000, max_iters=1, final_validation=False),
            optimizer=optimizer,
            devices=1,
            logger_name="csv",
            **more,
        )
        parameters, arturo = made[-1]
        (log,) = (tmp_path / folder).rglob("metrics.csv")
        losses = [float(row["loss"]) for row in csv.DictReader(log.open()) if row["loss"]]
        return torch.nn.ParameterList(parameters), find_arturo(arturo), losses

    return run


CHOICES = {
    "by name": "arturo_core.Arturo",
    "with options": {"class_path": "arturo_core.Arturo", "init_args": {"lr": 1e-2, "weight_decay": 0.1}},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_pretraining_by_a_dotted_path(choice, run):
    parameters, arturo, losses = run("run", CHOICES[choice])
    assert len(losses) == STEPS
    assert_falls(losses, to=0.9 if choice == "by name" else 0.7)
    # LitGPT's warm-up begins at a learning rate of 0, which does not count.
    assert_holds_arturo(arturo, STEPS - 1, parameters)
    assert arturo.param_groups[0]["weight_decay"] == (0.0 if choice == "by name" else 0.1)
    default = Arturo([torch.nn.Parameter(torch.ones(1))]).defaults["lr"]
    peak = float(arturo.param_groups[0]["peak_lr"])
    assert peak == pytest.approx(default if choice == "by name" else 1e-2, rel=1e-6)


def test_pretraining_resumes_to_the_bit(run, tmp_path):
    whole, before, losses = run("whole", CHOICES["with options"])
    checkpoint = tmp_path / "whole" / f"step-{ROWS // BATCH:08d}" / "lit_model.pth"
    resumed, after, later = run("resumed", CHOICES["with options"], resume=checkpoint)
    assert later == losses[-len(later) :]
    assert len(later) == STEPS - ROWS // BATCH
    assert all(torch.equal(p, other) for p, other in zip(whole, resumed, strict=True))
    assert_same_state(before, after)
