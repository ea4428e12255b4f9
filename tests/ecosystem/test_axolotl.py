"""Axolotl: its plugin manager, its check of a config, and a Trainer of what it hands on.

Its builder of trainers cannot be imported here (it imports triton). What it does with the optimizer is
``optim=cfg.optimizer`` and ``optim_args`` as text.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("axolotl")
pytest.importorskip("addict")

from limits import HANGS
from tiny_trainer import arturo_of, tiny_model, tiny_trainer
from training_records import assert_falls, assert_holds_arturo, assert_records

pytestmark = pytest.mark.ecosystem

SETTINGS = {
    "base_model": "tiny",
    "datasets": [{"path": "tiny", "type": "alpaca"}],
    "micro_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "learning_rate": 3e-2,
    "max_grad_norm": 0.0,
    "optimizer": "arturo",
    "optim_args": {"trust_region": "kl", "noise": "fixed"},
    "plugins": ["arturo_integrations.axolotl.ArturoPlugin"],
}

#: In a process of its own, where nothing else has made the name known.
UNKNOWN_UNTIL_REGISTERED = f"""
import torchvision_operators
from axolotl.integrations.base import PluginManager
from axolotl.utils.dict import DictDefault
from transformers import TrainingArguments

config = DictDefault({SETTINGS!r})
try:
    TrainingArguments(output_dir="out", optim=config.optimizer)
except ValueError:
    print("unknown")
manager = PluginManager.get_instance()
for name in config.plugins:
    manager.register(name)
for plugin in manager.plugins.values():
    plugin.register(config)
print(TrainingArguments(output_dir="out", optim=config.optimizer).optim.value)
"""


def test_the_plugin_manager_makes_the_name_known(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", UNKNOWN_UNTIL_REGISTERED],
        env={**os.environ, "AXOLOTL_DO_NOT_TRACK": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["unknown", "arturo"]


def test_a_checked_config_trains(tmp_path):
    from axolotl.utils.schemas.config import AxolotlInputConfig

    config = AxolotlInputConfig(**SETTINGS)
    trainer = tiny_trainer(
        tmp_path,
        tiny_model(dropout=0.0),
        optim=config.optimizer,
        optim_args=",".join(f"{name}={value}" for name, value in config.optim_args.items()),
        learning_rate=config.learning_rate,
        max_grad_norm=config.max_grad_norm,
        per_device_train_batch_size=config.micro_batch_size,
        lr_scheduler_type="constant",
        max_steps=30,
    )
    trainer.train()
    records = [record for record in trainer.state.log_history if "loss" in record]
    assert_records(records, range(1, 31))
    assert_falls([record["loss"] for record in records], to=0.9)
    assert records[0]["arturo/kl_bound"] == pytest.approx(3e-2, rel=1e-6)  # nats
    assert_holds_arturo(arturo_of(trainer), 30, trainer.model)
