"""The optimizer's state through ``torch.distributed.checkpoint``, which has its own idea of a state dict."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from problems import (
    assert_identical,
    classifier,
    every_mode,
    every_noise,
    snapshot,
)
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from arturo_core import Arturo


def _classifier_run(options: dict[str, Any], groups: bool):
    model, loss = classifier()
    if groups:
        optimizer = Arturo(
            [{"params": model[0].parameters(), "weight_decay": 0.01}, {"params": model[2].parameters()}], **options
        )
    else:
        optimizer = Arturo(model.parameters(), **{"weight_decay": 0.01, **options})
    return model, loss, optimizer


def _steps(run, steps) -> None:
    _, loss, optimizer = run
    for step in steps:
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
    optimizer.zero_grad()


def _reread(run, fresh):
    """Weights and optimizer state of a run, through the state dict into a fresh one."""
    saved = copy.deepcopy(get_optimizer_state_dict(run[0], run[-1]))
    fresh[0].load_state_dict(run[0].state_dict())
    set_optimizer_state_dict(fresh[0], fresh[-1], saved)
    return fresh


@pytest.mark.parametrize("flatten", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("groups", [False, True], ids=["one group", "two groups"])
@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float lr", "tensor lr"])
@every_mode
def test_torch_distributed_checkpointing(options, flatten, groups, tensor_lr):
    """It takes a phantom step with zero gradients and lr 0, both to read and to write a fresh optimizer's state."""
    how = StateDictOptions(flatten_optimizer_state_dict=flatten)
    if tensor_lr:
        options = {**options, "lr": torch.tensor(options["lr"])}
    reference = _classifier_run(options, groups)
    model, _, optimizer = run = _classifier_run(options, groups)
    weights = copy.deepcopy(model.state_dict())
    get_optimizer_state_dict(model, optimizer, options=how)
    assert_identical(model.state_dict(), weights)
    assert set(optimizer.state) == set(model.parameters())
    assert optimizer.diagnostics()["steps"] == 0
    assert [group["calls"] for group in optimizer.param_groups] == [0] * len(optimizer.param_groups)
    _steps(reference, range(4))
    _steps(run, range(4))
    assert_identical(snapshot(optimizer), snapshot(reference[2]))

    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=how))
    saved_weights = copy.deepcopy(model.state_dict())
    fresh_model, _, fresh = resumed = _classifier_run(options, groups)
    fresh_model.load_state_dict(saved_weights)
    set_optimizer_state_dict(fresh_model, fresh, copy.deepcopy(saved), options=how)
    assert_identical(fresh_model.state_dict(), saved_weights)
    assert_identical(snapshot(fresh)["state"], snapshot(optimizer)["state"])
    _steps(resumed, range(4, 8))
    _steps(reference, range(4, 8))
    ours, theirs = snapshot(fresh), snapshot(reference[2])
    assert_identical(ours["weights"], theirs["weights"])
    assert_identical(ours["state"], theirs["state"])
    for mine, expected in zip(ours["groups"], theirs["groups"], strict=True):
        assert {key: mine[key] for key in expected} == expected
        assert set(mine) == set(expected)


@every_noise
def test_distributed_checkpointing_with_an_empty_group(options):
    """Frameworks that split weights by decay leave a group empty where nothing decays, or everything does."""

    def make():
        model, loss = classifier()
        return model, loss, Arturo([{"params": []}, {"params": model.parameters()}], **options)

    _, _, optimizer = run = make()
    _steps(run, range(3))
    _, _, fresh = resumed = _reread(run, make())
    _steps(run, range(3, 5))
    _steps(resumed, range(3, 5))
    assert_identical(snapshot(fresh)["weights"], snapshot(optimizer)["weights"])
    assert_identical(snapshot(fresh)["state"], snapshot(optimizer)["state"])
    assert fresh.diagnostics()["skipped_steps"] == 0


@every_noise
def test_distributed_checkpointing_of_bfloat16_weights(options):
    def make():
        model, loss = classifier(torch.bfloat16)
        return model, loss, Arturo(model.parameters(), **options)

    _, _, optimizer = run = make()
    _steps(run, range(3))
    _, _, fresh = resumed = _reread(run, make())
    assert_identical(snapshot(fresh)["state"], snapshot(optimizer)["state"])
    _steps(run, range(3, 5))
    _steps(resumed, range(3, 5))
    assert_identical(snapshot(fresh)["weights"], snapshot(optimizer)["weights"])


@every_noise
def test_distributed_checkpointing_with_frozen_and_unused_parameters(options):
    def make():
        model, _ = classifier()
        model[0].bias.requires_grad_(False)
        unused = torch.nn.ModuleDict({"used": model, "unused": torch.nn.Linear(2, 2)})
        groups = [{"params": [p for p in unused.parameters() if p.requires_grad]}]
        return unused, Arturo(groups, **options)

    def steps(model, optimizer, count):
        for step in range(count):
            optimizer.zero_grad()
            model["used"](torch.ones(2, 64) * (step + 1)).square().sum().backward()
            optimizer.step()
        optimizer.zero_grad()

    model, optimizer = make()
    steps(model, optimizer, 3)
    fresh_model, fresh = _reread((model, optimizer), make())
    assert_identical(snapshot(fresh)["state"], snapshot(optimizer)["state"])
    steps(model, optimizer, 2)
    steps(fresh_model, fresh, 2)
    assert_identical(snapshot(fresh)["weights"], snapshot(optimizer)["weights"])
