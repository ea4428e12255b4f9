"""The view by layers is the same however the layers are split, and on every rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import MATRIX
from problem import MODES, Parallel, batch, single
from ranks import run
from torch import distributed, nn

from arturo_core import Arturo
from arturo_core.reporting.layers import LayerWatch

SPLIT = ("DDP-2", "FSDP2-2", "TP-2", "FSDP1-2")
KINDS = ("rms", "fixed, rms")

Layers = dict[str, dict[str, float]]


def layers_of(parallel: Parallel, lr: float) -> Layers:
    watch = LayerWatch(parallel.optimizer, parallel.model.named_parameters())
    for group in parallel.optimizer.param_groups:
        group["lr"] = lr
    for step in range(3):
        inputs, targets = batch(step)
        parallel.optimizer.zero_grad()
        (parallel.model(inputs[parallel.share]) - targets[parallel.share]).square().mean().backward()
        if step == 2:
            watch.arm()
        parallel.optimizer.step()
    return watch.numbers()


def stages() -> tuple[Layers, dict[str, float]]:
    """Every rank has layers of its own."""
    torch.manual_seed(0)
    layers = {name: nn.Linear(4, 3).double() for name in ("first", "second", "third")}
    mine = (
        {"first": layers["first"]}
        if distributed.get_rank() == 0
        else {"second": layers["second"], "third": layers["third"]}
    )
    return watched(mine, distributed.group.WORLD)


def watched(layers: dict[str, nn.Linear], group: Any) -> tuple[Layers, dict[str, float]]:
    names = [(f"{name}.{part}", param) for name, layer in layers.items() for part, param in layer.named_parameters()]
    optimizer = Arturo(names, lr=1e-2, process_group=group)
    watch = LayerWatch(optimizer)
    for _, param in names:
        param.grad = torch.sin(param.detach() * 50.0)
    watch.arm()
    optimizer.step()
    return watch.numbers(), optimizer.diagnostics()


def work() -> tuple[dict[tuple[str, str], Layers], tuple[Layers, dict[str, float]]]:
    found = {}
    for name in SPLIT:
        for mode in KINDS:
            found[name, mode] = layers_of(MATRIX[name][0](MODES[mode], torch.float64), MODES[mode]["lr"])
    return found, stages()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run(work, 2, Path(tmp_path_factory.mktemp("ranks")))


@pytest.mark.parametrize("mode", KINDS)
@pytest.mark.parametrize("layout", SPLIT)
def test_layers_are_those_of_one_process(layout: str, mode: str, ranks: list[Any]) -> None:
    expected = layers_of(single(MODES[mode], unused_as_zero=layout.startswith("FSDP1")), MODES[mode]["lr"])
    assert len(expected) == 12
    for found, _ in ranks:
        named = {name.removeprefix("module."): numbers for name, numbers in found[layout, mode].items()}
        assert list(named) == list(expected)
        for name, numbers in expected.items():
            assert named[name] == pytest.approx(numbers, rel=1e-8, abs=1e-18), name


def test_stages_see_one_anothers_layers(ranks: list[Any]) -> None:
    torch.manual_seed(0)
    expected, numbers = watched({name: nn.Linear(4, 3).double() for name in ("first", "second", "third")}, None)
    for _, (found, diagnostics) in ranks:
        assert list(found) == list(expected)
        assert diagnostics["kl"] == pytest.approx(numbers["kl"])
        for name, layer in expected.items():
            assert found[name] == pytest.approx(layer, rel=1e-8)
