"""Small training problems, the four modes of the optimizer, and exact comparison of everything it can change."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from arturo_core import Arturo
from arturo_core.kernels import select
from arturo_core.reporting import readings

#: Every combination of noise and trust region, each with a learning rate (or a bound in nats) that trains.
MODES: dict[str, dict[str, Any]] = {
    "adaptive-rms": {"noise": "adaptive", "trust_region": "rms", "lr": 1e-2},
    "adaptive-kl": {"noise": "adaptive", "trust_region": "kl", "lr": 1e-2},
    "fixed-rms": {"noise": "fixed", "trust_region": "rms", "lr": 1e-2},
    "fixed-kl": {"noise": "fixed", "trust_region": "kl", "lr": 1e-2},
}

#: What takes another way through the passes.
PASSES: dict[str, dict[str, Any]] = {
    "adaptive": {"lr": 1e-2},
    "adaptive, prior and decay": {"lr": 1e-2, "prior_precision": 0.3, "weight_decay": 0.1},
    "adaptive, maximize": {"lr": 1e-2, "maximize": True},
    "adaptive, kl": {"lr": 1e-1, "trust_region": "kl"},
    "fixed, rms": {"lr": 1e-1, "noise": "fixed"},
    "fixed, kl": {"lr": 3e-3, "noise": "fixed", "trust_region": "kl", "measurement_noise": 0.05},
    "fixed, decay": {"lr": 3e-2, "noise": "fixed", "weight_decay": 0.1, "maximize": True},
}

#: One mode for each kind of state.
NOISES = {"adaptive": MODES["adaptive-rms"], "fixed": MODES["fixed-kl"]}

every_mode = pytest.mark.parametrize("options", MODES.values(), ids=MODES.keys())
every_noise = pytest.mark.parametrize("options", NOISES.values(), ids=NOISES.keys())

#: Keys of a parameter group that an Arturo adds to those of its user.
GROUP_KEYS = {"params", "lr", "weight_decay", "maximize", "peak_lr", "length", "calls", "skipped", "level"} | {
    "adaptive_noise",
    "lr_in_nats",
    "momentum",
}

SCALARS = {"step", "variance", "pending", "moved"}

#: Scalars that follow from sums over all weights, and have their dtype.
WIDE = {"pending", "moved"}

#: The statistic that holds the expected gradient.
EXPECTED = {"adaptive": "direction", "fixed": "gradient"}

STATE_KEYS = {
    "adaptive": {"step", "variance", "pending", "moved", "direction", "deviation", "curvature", "displacement"},
    "fixed": {"step", "precision", "gradient", "hessian", "cov_gg", "cov_gh", "cov_hh"},
}


def parameters(dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> list[Parameter]:
    """A matrix, a vector and a scalar."""
    source = torch.Generator().manual_seed(seed)
    shapes: list[tuple[int, ...]] = [(5, 4), (4,), ()]
    return [
        Parameter((scale * torch.randn(shape, generator=source, dtype=torch.float64)).to(dtype)) for shape in shapes
    ]


def gradients(params: Sequence[Tensor], step: int, scale: float = 1.0) -> list[Tensor]:
    """Noisy gradients of ½|θ|², a function of the weights and the number of the step alone."""
    source = torch.Generator().manual_seed(1000 + step)
    noise = [torch.randn(param.shape, generator=source, dtype=torch.float64) for param in params]
    return [
        (scale * (param.detach().double() + 0.3 * extra)).to(param.dtype)
        for param, extra in zip(params, noise, strict=True)
    ]


def train(
    optimizer: torch.optim.Optimizer, params: Sequence[Parameter], steps: Iterable[int], scale: float = 1.0
) -> None:
    for step in steps:
        for param, grad in zip(params, gradients(params, step, scale), strict=True):
            param.grad = grad
        optimizer.step()


def build(options: dict[str, Any], dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[list[Parameter], Arturo]:
    params = parameters(dtype, seed)
    return params, Arturo(params, **options)


def trained(
    options: dict[str, Any], steps: int = 5, dtype: torch.dtype = torch.float32
) -> tuple[list[Parameter], Arturo]:
    params, optimizer = build(options, dtype)
    train(optimizer, params, range(steps))
    return params, optimizer


def through(passes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every step go through these passes, and through no kernel that takes many tensors at once."""
    monkeypatch.setattr(select, "eager", passes)
    monkeypatch.setattr(select, "kernel", lambda options, home: None)


def weights(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [param.detach().clone() for group in optimizer.param_groups for param in group["params"]]


def snapshot(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A copy of everything a step can change: weights, state, and the groups without their parameters."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return copy.deepcopy(
        {
            "weights": [param.detach() for param in params],
            "state": [dict(optimizer.state.get(param, {})) for param in params],
            "groups": groups,
        }
    )


def assert_identical(actual: Any, expected: Any, where: str = "") -> None:
    """Bitwise equality of nested containers of tensors and plain values: dtype, shape, layout and every bit."""
    assert type(actual) is type(expected), f"{where}: {type(actual)} is not {type(expected)}"
    if isinstance(expected, dict):
        assert list(actual) == list(expected) or set(actual) == set(expected), f"{where}: {set(actual) ^ set(expected)}"
        for key, value in expected.items():
            assert_identical(actual[key], value, f"{where}[{key!r}]")
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), f"{where}: {len(actual)} entries, not {len(expected)}"
        for index, value in enumerate(expected):
            assert_identical(actual[index], value, f"{where}[{index}]")
    elif isinstance(expected, Tensor):
        assert (actual.dtype, actual.shape, actual.stride()) == (expected.dtype, expected.shape, expected.stride()), (
            f"{where}: {actual.dtype} {tuple(actual.shape)} {actual.stride()}, "
            f"not {expected.dtype} {tuple(expected.shape)} {expected.stride()}"
        )
        assert torch.equal(actual, expected), f"{where}: differs by {(actual - expected).abs().max()}"
    else:
        assert actual == expected, f"{where}: {actual!r} is not {expected!r}"


def without_counters(snap: dict[str, Any]) -> dict[str, Any]:
    """A snapshot less the number of steps asked for, which a skipped step is allowed to change."""
    groups = [
        {key: value for key, value in group.items() if key not in ("calls", "skipped")} for group in snap["groups"]
    ]
    return {**snap, "groups": groups}


def classifier(dtype: torch.dtype = torch.float32) -> tuple[torch.nn.Module, Callable[[int], Tensor]]:
    """A small network on ten Gaussian clusters in 64 dimensions (a third of the labels is wrong, so the gradients stay
    noisy), and the loss of its n-th mini-batch."""
    source = torch.Generator().manual_seed(7)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = torch.nn.Sequential(torch.nn.Linear(64, 24), torch.nn.Tanh(), torch.nn.Linear(24, 10)).to(dtype)
    centres = torch.randn(10, 64, generator=source)
    labels = torch.randint(0, 10, (3200,), generator=source)
    data = (centres[labels] + 1.5 * torch.randn(3200, 64, generator=source)).to(dtype)
    labels[::3] = torch.randint(0, 10, (1067,), generator=source)

    def loss(step: int) -> Tensor:
        batch = slice(32 * (step % 100), 32 * (step % 100) + 32)
        return torch.nn.functional.cross_entropy(model(data[batch]), labels[batch])

    return model, loss


def adaptive_bound(optimizer: Arturo, before: list[Tensor], moved: list[Tensor]) -> float:
    """ε of the last step of the self-calibrating form (κ = 1, no prior), written out from the state it left.

    Args:
        optimizer: after the step, all of whose parameters had gradients.
        before: the weights before it, in the order of the groups.
        moved: how the step moved them, decay left out.
    """
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    size = count = 0.0
    starts = iter(before)
    for lr, group in zip(rates, optimizer.param_groups, strict=True):
        for _ in group["params"]:
            start = next(starts).double()
            if start.dim() > 1:
                size += lr**2 * float(start.square().sum()) / min(start.shape[0], start.numel() // start.shape[0])
                size += lr**2 * 0.1  # n elements, each 0.1/n
                count += lr**2 * start.numel()
    relative = 0.16 * math.sqrt(size / count) if count else math.inf
    signal, groups = 0.0, []
    steps = iter(moved)
    for nominal, group in zip(rates, optimizer.param_groups, strict=True):
        peak = float(group["peak_lr"])
        lr = nominal * min(1.0, relative / (0.35 * peak))
        length = optimizer.options.length_scale or float(group["length"]) or 8.0 * peak
        precision = 0.0
        for param in group["params"]:
            stiffness = optimizer.precision(param).double()  # h, and λ
            gradient = readings.belief(optimizer.state[param]).gradient.double()
            gradient -= stiffness * next(steps).double()  # not re-centred
            signal += (lr / length) ** 2 * float((gradient**2 / stiffness).sum())
            precision += float(stiffness.sum())
        groups.append((lr, relative * nominal / peak, precision))
    agreement = math.sqrt(signal / sum(lr**2 * precision for lr, _, precision in groups))
    return 0.5 * sum(precision * min(lr * max(0.35, agreement), most) ** 2 for lr, most, precision in groups)
