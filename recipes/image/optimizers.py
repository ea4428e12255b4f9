"""The optimizers compared and their schedules: arTuRO as published or by default, its peers at common defaults.

=========  ===========================================  ==============================================================
setting    arTuRO                                       the others
=========  ===========================================  ==============================================================
default    `Arturo` at lr 1e-3, warm-up and cosine      AdamW and Adam at 1e-3, SGD at 0.1 with momentum 0.9; the same
                                                        schedule
published  `Arturo.paper` with the task's values, ε     the same, since no published values of theirs are known to us;
           × 0.006 at the milestones                    lr × 0.1 at the same milestones
=========  ===========================================  ==============================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from arturo_core import Arturo
from recipes.image import published

NAMES = ("arturo", "adamw", "adam", "sgd")
SETTINGS = ("default", "published")
#: Adam's and AdamW's is torch's default; SGD's is that of He et al. 2015, torch's own 1e-3 being no recommendation.
LEARNING_RATES = {"arturo": 1e-3, "adamw": 1e-3, "adam": 1e-3, "sgd": 0.1}
MOMENTUM = 0.9
#: What the lr of all but arTuRO is multiplied by at the published milestones, as in He et al. 2015.
STEP_FACTOR = 0.1

_CLASSES: dict[str, Callable[..., Optimizer]] = {"arturo": Arturo, "adamw": AdamW, "adam": Adam, "sgd": SGD}


def starting_rate(optimizer: str, setting: str, dataset: str, network: str) -> float:
    """The learning rate before any schedule; of arTuRO as published its bound ε, in nats."""
    if (optimizer, setting) == ("arturo", "published"):
        return published.values(dataset, network).kl_bound
    return LEARNING_RATES[optimizer]


def build(
    params: Iterable[nn.Parameter],
    optimizer: str,
    *,
    setting: str,
    dataset: str,
    network: str,
    lr: float,
    weight_decay: float | None,
) -> Optimizer:
    """An optimizer of a model's parameters.

    Args:
        params: all that is trained.
        optimizer: one of NAMES.
        setting: one of SETTINGS.
        dataset, network: the task, whose published values arTuRO takes with setting "published".
        lr: learning rate; the bound ε in nats of arTuRO as published.
        weight_decay: decoupled for arTuRO and AdamW, added to the gradient for Adam and SGD; None for the optimizer's
            own default (AdamW 0.01, the others 0), or the published value.
    """
    options: dict[str, Any] = {} if weight_decay is None else {"weight_decay": weight_decay}
    if (optimizer, setting) == ("arturo", "published"):
        values = published.values(dataset, network)
        return Arturo.paper(
            params,
            lr,
            temperature=values.temperature,
            measurement_noise=values.measurement_noise,
            process_noise=values.process_noise,
            **({"weight_decay": values.weight_decay} | options),
        )
    if optimizer == "sgd":
        options["momentum"] = MOMENTUM
    return _CLASSES[optimizer](params, lr=lr, **options)


def schedule(optimizer: Optimizer, setting: str, *, steps: int, warmup: float) -> LambdaLR:
    """The schedule of a run, to be stepped after every optimizer step.

    Args:
        optimizer: whose lr it sets.
        setting: one of SETTINGS.
        steps: of the whole run.
        warmup: share of the steps over which the lr rises, setting "default".
    """
    if setting == "published":
        factor = published.BOUND_FACTOR if isinstance(optimizer, Arturo) else STEP_FACTOR
        return LambdaLR(optimizer, lambda step: factor ** milestones_passed(step, steps))
    return LambdaLR(optimizer, lambda step: cosine(step, steps, math.ceil(warmup * steps)))


def milestones_passed(step: int, steps: int) -> int:
    """How many of the published milestones lie at or before a step."""
    return sum(step >= share * steps for share in published.MILESTONES)


def cosine(step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate at a step, counted from 0: a line up to the peak, then half a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
