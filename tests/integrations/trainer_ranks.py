"""What ``torchrun`` starts on every rank for ``test_transformers_distributed``: Trainer runs, DDP and FSDP2, on gloo.

torchrun --nproc_per_node 2 trainer_ranks.py FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from tiny_trainer import tiny_model, tiny_trainer
from torch import distributed
from torch.distributed.tensor import DTensor
from transformers import BertForSequenceClassification, Trainer
from transformers.distributed import DistributedConfig

STEPS = 6
SAVED = 3
BATCH = 4  # of all ranks together


def train(folder: Path, model: Any, ranks: int, resume: Path | None = None, **settings: Any) -> Trainer:
    trainer = tiny_trainer(
        folder,
        model,
        max_steps=STEPS,
        warmup_steps=1,
        weight_decay=0.1,
        per_device_train_batch_size=BATCH // ranks,
        ddp_find_unused_parameters=False,
        **settings,
    )
    # Else the Trainer takes BERT's mean over a batch for a sum that is normalised already.
    trainer.model_accepts_loss_kwargs = False
    trainer.train(resume_from_checkpoint=None if resume is None else os.fspath(resume))
    return trainer


def result(trainer: Trainer) -> dict[str, Any]:
    """Whole weights, and what was logged."""
    weights = {
        name: (param.full_tensor() if isinstance(param, DTensor) else param).detach().clone()
        for name, param in trainer.model.named_parameters()
    }
    records = [
        {key: value for key, value in record.items() if key.startswith(("arturo/", "step", "loss"))}
        for record in trainer.state.log_history
        if "loss" in record
    ]
    return {"weights": weights, "records": records}


def ranks_do(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    saving = {"save_strategy": "steps", "save_steps": SAVED}
    found["DDP"] = result(train(folder / "ddp", tiny_model(0, dropout=0.0), 2, **saving))
    resume = folder / "ddp" / f"checkpoint-{SAVED}"
    found["DDP resumed"] = result(train(folder / "resumed", tiny_model(1, dropout=0.0), 2, resume=resume))
    if distributed.get_rank() == 0:
        tiny_model(0, dropout=0.0).save_pretrained(folder / "model")
    distributed.barrier()
    sharding = {"distributed_config": DistributedConfig(fsdp_size=2)}
    model = BertForSequenceClassification.from_pretrained(folder / "model", **sharding)
    found["sharded"] = sum(isinstance(param, DTensor) for param in model.parameters())
    trainer = train(folder / "fsdp2", model, 2)
    found["FSDP2"] = result(trainer)
    try:
        train(folder / "refused", model, 2, **saving)
    except ValueError as error:
        found["FSDP2 saving"] = str(error)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[1])
    everything = ranks_do(where)
    torch.save(everything, where / f"rank{distributed.get_rank()}.pt")
    distributed.destroy_process_group()
