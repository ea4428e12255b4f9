"""The optimizers compared: each from its own published package, all but the learning rate at that package's defaults.

``Entry.default`` is the learning rate a reader of the authors' own text would try first, by family of task; ``why``
says where it comes from and is printed in the report. Tuning walks a grid around it, so it decides where the search
starts, not where it ends. Imports are inside the builders: a package that is not installed costs only its own rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from arturo_core import Arturo
from arturo_core.options import PAPER_KL_BOUND
from recipes.benchmarks.quality.muon import MuonWithAdamW

FAMILIES = ("fine-tuning", "lora", "from scratch")
#: Fine-tuning's learning rate over that of training from scratch where both are in AdamW's units: 5e-5 / 1e-3.
FINE_TUNING_SHARE = 0.05
#: LoRA's learning rate over that of fine-tuning in full.
LORA_SHARE = 10.0

Build = Callable[[nn.Module, float, int], Any]


def _no_context(optimizer: Any) -> AbstractContextManager[None]:
    return nullcontext()


def _no_switch(optimizer: Any, training: bool) -> None:
    pass


def by_family(fine_tuning: float, from_scratch: float) -> dict[str, float]:
    """Default learning rates; LoRA's is ten times that of fine-tuning in full, as AdamW's is in the LoRA paper."""
    return {"fine-tuning": fine_tuning, "lora": LORA_SHARE * fine_tuning, "from scratch": from_scratch}


def one_for_all(lr: float) -> dict[str, float]:
    """A default learning rate that does not depend on the family."""
    return dict.fromkeys(FAMILIES, lr)


@dataclass(frozen=True)
class Entry:
    """An optimizer, and how its authors say it is used.

    Args:
        build: the optimizer of a model's trainable parameters, from model, lr and number of training examples.
        package: the distribution it comes from.
        default: learning rate by family of task.
        why: source of the defaults.
        factor: step of the tuning grid.
        constant: lr stays constant after the warm-up (schedule-free methods).
        sampling: what surrounds forward, backward and clipping.
        switch: called with True before training and with False before an evaluation.
        own_code: whether its source is in this repository, so that its records are told apart by a digest.
    """

    build: Build
    package: str
    default: dict[str, float]
    why: str
    factor: float = math.sqrt(10)
    constant: bool = False
    sampling: Callable[[Any], AbstractContextManager[None]] = field(default=_no_context)
    switch: Callable[[Any, bool], None] = field(default=_no_switch)
    own_code: bool = False


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [param for param in model.parameters() if param.requires_grad]


def _arturo(model: nn.Module, lr: float, examples: int) -> Any:
    return Arturo(trainable(model), lr=lr)


def _arturo_paper(model: nn.Module, lr: float, examples: int) -> Any:
    return Arturo.paper(trainable(model), lr)


def _adamw(model: nn.Module, lr: float, examples: int) -> Any:
    return torch.optim.AdamW(trainable(model), lr=lr, fused=True)


def _sgd(model: nn.Module, lr: float, examples: int) -> Any:
    return torch.optim.SGD(trainable(model), lr=lr, momentum=0.9)


def _muon(model: nn.Module, lr: float, examples: int) -> Any:
    return MuonWithAdamW(model, lr)


def _soap(model: nn.Module, lr: float, examples: int) -> Any:
    from pytorch_optimizer import SOAP

    return SOAP(trainable(model), lr=lr)


def _schedule_free(model: nn.Module, lr: float, examples: int) -> Any:
    from schedulefree import AdamWScheduleFree

    return AdamWScheduleFree(trainable(model), lr=lr)


def _schedule_free_switch(optimizer: Any, training: bool) -> None:
    """Weights where gradients are taken, or the average that is to be evaluated."""
    optimizer.train() if training else optimizer.eval()


def _ivon(model: nn.Module, lr: float, examples: int) -> Any:
    from ivon import IVON

    return IVON(trainable(model), lr=lr, ess=examples)


@contextmanager
def _ivon_sample(optimizer: Any) -> Iterator[None]:
    """Forward and backward at weights drawn from IVON's posterior; outside, the model holds its mean."""
    with optimizer.sampled_params(train=True):
        yield
        for group in optimizer.param_groups:
            for param in group["params"]:
                if param.grad is None:  # IVON reads every gradient, also of weights the loss does not use
                    param.grad = torch.zeros_like(param)


OPTIMIZERS: dict[str, Entry] = {
    "adamw": Entry(
        _adamw,
        "torch",
        by_family(5e-5, 1e-3),
        "5e-5: default of Hugging Face's Trainer, within BERT's 2e-5 to 5e-5; LoRA 5e-4: Hu et al. 2022 use 4e-4 and "
        "5e-4; 1e-3: torch's default. fused=True.",
    ),
    "arturo": Entry(
        _arturo,
        "arturo-optim",
        by_family(5e-5, 1e-3),
        "AdamW's own, untouched: its lr is in AdamW's units.",
        own_code=True,
    ),
    "arturo-paper": Entry(
        _arturo_paper,
        "arturo-optim",
        one_for_all(PAPER_KL_BOUND),
        "the published KL bound of the CIFAR task (nats; grid factor 10, which is √10 in step length).",
        factor=10.0,
        own_code=True,
    ),
    "muon": Entry(
        _muon,
        "torch",
        by_family(FINE_TUNING_SHARE * 1e-3, 1e-3),
        "torch.optim.Muon's default 1e-3, x 0.05 for fine-tuning, with adjust_lr_fn='match_rms_adamw': lr is in "
        "AdamW's units (Liu et al. 2025, arXiv 2502.16982). Embeddings, head, biases, norms and convolutions: AdamW at "
        "the same lr, which is AdamW's own default.",
    ),
    "soap": Entry(
        _soap,
        "pytorch-optimizer",
        by_family(FINE_TUNING_SHARE * 3e-3, 3e-3),
        "3e-3: the authors' default (Vyas et al. 2024, arXiv 2409.11321) and the package's; x 0.05 for fine-tuning.",
    ),
    "schedule-free": Entry(
        _schedule_free,
        "schedulefree",
        by_family(FINE_TUNING_SHARE * 2.5e-3, 2.5e-3),
        "2.5e-3: the package's default; x 0.05 for fine-tuning, which is 2.5 x AdamW's (README: 1x to 10x). "
        "AdamWScheduleFree: the task's warm-up, then constant; no decay.",
        constant=True,
        switch=_schedule_free_switch,
    ),
    "ivon": Entry(
        _ivon,
        "ivon-opt",
        one_for_all(0.1),
        "0.1: the package's README, for every family (its units are SGD's). ess = training examples, hess_init = 1 "
        "(package default), one weight sample a step; evaluated at the mean.",
        sampling=_ivon_sample,
    ),
    "sgd": Entry(
        _sgd,
        "torch",
        by_family(1e-2, 1e-1),
        "momentum 0.9; 0.1: He et al. 2015 and torchvision's reference scripts; fine-tuning 0.01: within ViT's 0.003 "
        "to 0.06 (Dosovitskiy et al. 2020, table 4). torch's own 1e-3 is no recommendation.",
    ),
}


def rounded(lr: float) -> float:
    """lr to the six digits that identify a run."""
    return float(f"{lr:.6g}")


def grid_lr(entry: Entry, family: str, k: int) -> float:
    """Point k of the tuning grid; k = 0 is the untouched default."""
    return rounded(entry.default[family] * entry.factor**k)


def state_bytes(optimizer: Any) -> int:
    """Bytes of every tensor the optimizer keeps, wherever it keeps it (IVON: in the parameter groups)."""
    content = optimizer.state_dict()
    return _tensor_bytes(content["state"]) + _tensor_bytes(content["param_groups"])


def _tensor_bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(_tensor_bytes(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_tensor_bytes(item) for item in value)
    return 0
