"""torchtune: its recipe for full fine-tuning, with the optimizer named in the config."""

from __future__ import annotations

import importlib.util
import re
import shutil
from importlib.metadata import distribution
from typing import Any

import pytest

pytest.importorskip("torchtune")

import torch
from omegaconf import OmegaConf
from tiny_regression import assert_same_state, assert_same_weights
from torchtune.models.llama2 import llama2
from torchtune_parts import BATCH, ROWS
from training_records import assert_falls, assert_holds_arturo

from arturo_core import Arturo

pytestmark = pytest.mark.ecosystem

RECIPE = distribution("torchtune").locate_file("recipes/full_finetune_single_device.py")
SIZES = {
    "vocab_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "embed_dim": 16, "max_seq_len": 16,
    "intermediate_dim": 32,
}  # fmt: skip
EPOCHS = 4
STEPS = EPOCHS * ROWS // BATCH

CONFIG = """
output_dir: {folder}
device: cpu
dtype: fp32
seed: 0
epochs: {epochs}
max_steps_per_epoch: null
gradient_accumulation_steps: 1
optimizer_in_bwd: false
enable_activation_checkpointing: false
compile: false
shuffle: true
batch_size: {batch}
resume_from_checkpoint: {resume}
model:
  _component_: torchtune.models.llama2.llama2
tokenizer:
  _component_: torchtune_parts.Tokenizer
dataset:
  _component_: torchtune_parts.Counting
optimizer:
  _component_: arturo_core.Arturo
  lr: 1e-2
  weight_decay: 0.01
lr_scheduler:
  _component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup
  num_warmup_steps: 2
loss:
  _component_: torchtune.modules.loss.CEWithChunkedOutputLoss
metric_logger:
  _component_: torchtune.training.metric_logging.DiskLogger
  log_dir: {folder}/log
checkpointer:
  _component_: torchtune.training.FullModelTorchTuneCheckpointer
  checkpoint_dir: {weights}
  checkpoint_files: [{file}]
  output_dir: {folder}
  model_type: LLAMA2
"""


def recipe(folder: Any, weights: Any, file: str, resume: bool = False) -> Any:
    """Trains with the recipe; returns it, and the losses that its logger wrote."""
    spec = importlib.util.spec_from_file_location("full_finetune_single_device", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = CONFIG.format(folder=folder, epochs=EPOCHS, batch=BATCH, resume=resume, weights=weights, file=file)
    config = OmegaConf.merge(OmegaConf.create(text), {"model": SIZES})
    trained = module.FullFinetuneRecipeSingleDevice(cfg=config)
    trained.setup(cfg=config)
    trained.train()
    trained.cleanup()
    (log,) = (folder / "log").iterdir()
    losses = [float(loss) for loss in re.findall(r"loss:(\S+)", log.read_text())]
    return trained, losses


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    torch.manual_seed(0)
    torch.save(llama2(**SIZES).state_dict(), folder / "model.pt")
    return folder


def test_the_recipe_trains_with_the_optimizer_of_its_config_and_resumes_to_the_bit(weights, tmp_path):
    whole, losses = recipe(tmp_path / "whole", weights, "model.pt")
    assert len(losses) == STEPS
    assert_falls(losses, to=0.8)
    # The first step of the warm-up has a learning rate of 0, and does not count.
    optimizer = assert_holds_arturo(whole._optimizer, STEPS - 1, whole._model)
    assert isinstance(optimizer, Arturo)
    assert optimizer.param_groups[0]["weight_decay"] == 0.01
    assert float(optimizer.param_groups[0]["peak_lr"]) == pytest.approx(1e-2, rel=1e-6)

    # As if the run had ended after the third pass of four.
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed", ignore=shutil.ignore_patterns("epoch_3", "log"))
    resumed, later = recipe(tmp_path / "resumed", weights, "epoch_2/model-00001-of-00001.bin", resume=True)
    assert later == losses[-ROWS // BATCH :]
    assert_same_weights(whole._model, resumed._model)
    assert_same_state(whole._optimizer, resumed._optimizer)
