"""What torch asks of its own optimizers, after pytorch's ``test_optim.py``.

Every scheduler, and the gradient scaler.
"""

from __future__ import annotations

import pytest
import torch
from problems import (
    adaptive_bound,
    train,
)
from torch.nn import Parameter
from torch.optim import lr_scheduler

from arturo_core import Arturo

SCHEDULERS = {
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda step: min(1.0, step / 3)),
    "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda step: 0.9),
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, [2, 4]),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 6),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 3),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 1e-3, 1e-2, step_size_up=2),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 1e-2, total_steps=8),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.LinearLR(opt, 0.1, total_iters=2), lr_scheduler.ExponentialLR(opt, 0.9)], milestones=[2]
    ),
    "ChainedScheduler": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(opt, 0.5, 2), lr_scheduler.ExponentialLR(opt, 0.9)]
    ),
}


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS.keys())
@pytest.mark.parametrize("tensor", [False, True], ids=["float lr", "tensor lr"])
def test_schedulers_set_the_length_of_the_step(make, tensor):
    """The step's weighted RMS is the radius that lr asks for where the bound is active, whatever moved lr."""
    weight = Parameter(torch.linspace(1, 2, 20))
    optimizer = Arturo([weight], lr=torch.tensor(1e-2) if tensor else 1e-2)
    scheduler = make(optimizer)
    active = 0
    for step in range(7):
        lr = float(optimizer.param_groups[0]["lr"])
        before = weight.detach().clone()
        train(optimizer, [weight], [step])
        numbers = optimizer.diagnostics()
        if lr == 0.0:
            assert torch.equal(weight, before)
        elif numbers["bound_active"]:
            active += 1
            precision = optimizer.precision(weight)
            mean = (precision * (weight.detach() - before).square()).sum() / precision.sum()
            radius = 2.0 * adaptive_bound(optimizer, [before], [weight.detach() - before]) / precision.sum()
            assert mean.item() == pytest.approx(radius.item(), rel=2e-3)
            assert mean.sqrt().item() >= 0.35 * lr * 0.999
        scheduler.step()
    assert active >= 3
    assert optimizer.diagnostics()["skipped_steps"] == 0


def test_gradient_scaler_leaves_an_overflowed_step_out():
    weight = Parameter(torch.ones(3))
    optimizer = Arturo([weight], lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for loss in (weight.sum(), (weight * torch.tensor([1.0, torch.inf, 1.0])).sum(), (2.0 * weight).sum()):
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        before = weight.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(weight, before) == (not torch.isfinite(loss).item())
    assert optimizer.diagnostics()["steps"] == 2
    assert optimizer.diagnostics()["skipped_steps"] == 0
