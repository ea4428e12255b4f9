"""Arturo in torch's own description of an optimizer (an ``OptimizerInfo``), and the regression it is tried on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim import lr_scheduler
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerInfo,
    OptimizerInput,
    _get_optim_inputs_including_global_cliquey_kwargs,
    get_error_inputs_for_all_optims,
)

from arturo_core import Arturo

#: What a parameter group may set for itself; everything else holds for the whole optimizer.
GROUP_OPTIONS = {"lr", "weight_decay", "maximize"}


def optim_inputs(device: str, dtype: torch.dtype | None = None) -> list[OptimizerInput]:
    settings = {
        "default": {},
        "non-default lr": {"lr": 0.01},
        "tensor lr": {"lr": torch.tensor(0.01)},
        "weight_decay": {"weight_decay": 0.1},
        "maximize": {"maximize": True},
        "maximize, weight_decay": {"maximize": True, "weight_decay": 0.1},
        "kl": {"trust_region": "kl", "lr": 0.01},
        "fixed": {"noise": "fixed", "lr": 0.01},
        "fixed, weight_decay": {"noise": "fixed", "lr": 0.01, "weight_decay": 0.1},
        "fixed, kl": {"noise": "fixed", "trust_region": "kl", "lr": 0.01},
        "fixed, maximize": {"noise": "fixed", "lr": 0.01, "maximize": True},
        "no compile": {"compile": False},
        "wide state": {"state_dtype": torch.float64},
    }
    return [OptimizerInput(params=None, kwargs=kwargs, desc=desc) for desc, kwargs in settings.items()]


def optim_error_inputs(device: str, dtype: torch.dtype) -> list[ErrorOptimizerInput]:
    ours = [
        ({"lr": -1}, "Invalid learning rate: -1"),
        ({"weight_decay": -1}, "Invalid weight_decay value: -1"),
        ({"kl_rtol": 0.0}, "kl_rtol=0"),
        ({"noise": "white"}, "noise='white'"),
    ]
    return [
        *get_error_inputs_for_all_optims(device, dtype),
        *(
            ErrorOptimizerInput(
                OptimizerInput(params=None, kwargs=kwargs, desc=str(kwargs)), error_type=ValueError, error_regex=regex
            )
            for kwargs, regex in ours
        ),
    ]


INFO = OptimizerInfo(
    Arturo,
    optim_inputs_func=optim_inputs,
    optim_error_inputs_func=optim_error_inputs,
    scheduler_inputs=(
        [lambda opt: lr_scheduler.StepLR(opt, gamma=0.9, step_size=10)],
        [lambda opt: lr_scheduler.LinearLR(opt, start_factor=0.4, total_iters=4)],
        [
            lambda opt: lr_scheduler.StepLR(opt, gamma=0.9, step_size=10),
            lambda opt: lr_scheduler.ReduceLROnPlateau(opt),
        ],
        [
            lambda opt: lr_scheduler.ConstantLR(opt, factor=0.4, total_iters=4),
            lambda opt: lr_scheduler.ExponentialLR(opt, gamma=0.99),
            lambda opt: lr_scheduler.PolynomialLR(opt, power=0.9, total_iters=200),
        ],
    ),
    supported_impls=(),
    not_og_supported_flags=("maximize",),
    supports_sparse=False,
    supports_complex=True,
)

INPUTS = {
    entry.desc: entry.kwargs for entry in _get_optim_inputs_including_global_cliquey_kwargs("cpu", torch.float32, INFO)
}
#: Those that are also run with every scheduler.
SCHEDULED = ["default", "tensor lr", "maximize, weight_decay", "kl", "fixed, kl"]


def inputs_that(fit: Callable[[dict[str, Any]], bool]) -> pytest.MarkDecorator:
    """A test with each of the inputs that fit it."""
    chosen = {name: kwargs for name, kwargs in INPUTS.items() if fit(kwargs)}
    return pytest.mark.parametrize("kwargs", chosen.values(), ids=chosen.keys())


every_input = inputs_that(lambda kwargs: True)
ERRORS = {error.optimizer_error_input.desc: error for error in optim_error_inputs("cpu", torch.float32)}


def regression(contiguous: bool = True) -> tuple[Parameter, Parameter, torch.Tensor]:
    weight, bias = torch.randn(10, 5, 2), torch.randn(10, 2)
    weight, bias = weight[..., 0], bias[..., 0]
    if contiguous:
        weight, bias = weight.contiguous(), bias.contiguous()
    return Parameter(weight), Parameter(bias), torch.randn(5)


def squares(weight: Parameter, bias: Parameter, data: torch.Tensor, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    optimizer.zero_grad()
    loss = (weight.mv(data) + bias).pow(2).sum()
    loss.backward()
    return loss


def went_right(start: float, end: float, kwargs: dict[str, Any]) -> bool:
    return end > start if kwargs.get("maximize", False) else end < start
