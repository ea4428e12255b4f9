"""A regression small enough to train by hand beside a framework, and the loop that does it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

ROWS, BATCH = 64, 16
BATCHES = ROWS // BATCH


def tiny_network(seed: int = 0) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0))
    return inputs, (0.5 * inputs.sum(dim=1, keepdim=True)).tanh()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    inputs, targets = rows()
    return list(zip(inputs.split(BATCH), targets.split(BATCH), strict=True))


def loop(model: torch.nn.Module, optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> list[float]:
    """Trains by hand, one learning rate a step; returns the losses."""
    losses = []
    for rate, (inputs, targets) in zip(rates, _again(batches()), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _again(sequence: Sequence[Any]) -> Iterator[Any]:
    while True:
        yield from sequence


def assert_same_weights(model: torch.nn.Module, other: torch.nn.Module) -> None:
    for (name, weight), twin in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, twin), name


def assert_same_state(optimizer: torch.optim.Optimizer, other: torch.optim.Optimizer) -> None:
    """Two optimizers know the same, bit for bit."""
    state, twin = optimizer.state_dict(), other.state_dict()
    assert state["param_groups"] == twin["param_groups"]
    assert state["state"].keys() == twin["state"].keys()
    for index, tensors in state["state"].items():
        assert tensors.keys() == twin["state"][index].keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, twin["state"][index][key]), (index, key)
