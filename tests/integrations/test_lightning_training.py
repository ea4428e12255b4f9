"""Under Lightning's Trainer on one process, Arturo takes the steps of a loop written by hand, to the bit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning_problem import BATCHES, OPTIONS, Module, differences, fit, loader, network, squares
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from arturo_core import Arturo
from arturo_integrations.lightning import optimizer_for

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*", "ignore:.*precision='16-mixed'.*")

EPOCHS = 2


def decay(step: int) -> float:
    return 1.0 / (1 + step)


def arturo(module: Any) -> Arturo:
    return Arturo(module.parameters(), **OPTIONS)


def with_schedule(module: Any, interval: str) -> dict[str, Any]:
    optimizer = arturo(module)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": LambdaLR(optimizer, decay), "interval": interval},
    }


def with_plateau(module: Any) -> dict[str, Any]:
    optimizer = arturo(module)
    plateau = ReduceLROnPlateau(optimizer, patience=0, factor=0.5, threshold=1e9, threshold_mode="abs")
    return {"optimizer": optimizer, "lr_scheduler": plateau, "monitor": "loss_epoch"}


def in_lists(module: Any) -> tuple[list[Any], list[Any]]:
    optimizer = arturo(module)
    return [optimizer], [LambdaLR(optimizer, decay)]


#: What ``configure_optimizers`` may return, and after what the learning rate falls: never, a step, or an epoch.
FORMATS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "optimizer": (arturo, ""),
    "ours": (lambda module: optimizer_for(module, **OPTIONS), ""),
    "list": (lambda module: [arturo(module)], ""),
    "lists": (in_lists, "epoch"),
    "dict": (lambda module: {"optimizer": arturo(module)}, ""),
    "dict, schedule of steps": (functools.partial(with_schedule, interval="step"), "step"),
    "dict, plateau": (with_plateau, "plateau"),
    "tuple of dicts": (lambda module: (with_schedule(module, "epoch"),), "epoch"),
}


def by_hand(
    falls: str = "",
    accumulate: int = 1,
    clip: Callable[[Any], Any] | None = None,
    dtype: torch.dtype = torch.float32,
    context: Callable[[], Any] = nullcontext,
    scaler: torch.amp.GradScaler | None = None,
) -> tuple[nn.Module, Arturo]:
    """The loop that Lightning is to be."""
    model = network(dtype)
    optimizer = arturo(model)
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    steps = 0
    for epoch in range(EPOCHS):
        for index, rows in enumerate(loader(dtype)):
            with context():
                loss = squares(model, rows)
            scaler.scale(loss / accumulate).backward()
            if (index + 1) % accumulate == 0 or index + 1 == BATCHES:
                scaler.unscale_(optimizer)
                if clip is not None:
                    clip(model.parameters())
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                steps += 1
                if falls == "step":
                    optimizer.param_groups[0]["lr"] = OPTIONS["lr"] * decay(steps)
        if falls == "epoch":
            optimizer.param_groups[0]["lr"] = OPTIONS["lr"] * decay(epoch + 1)
        elif falls == "plateau" and epoch > 0:
            optimizer.param_groups[0]["lr"] *= 0.5
    return model, optimizer


def assert_same(module: Module, trained: Any, hand: tuple[nn.Module, Arturo]) -> None:
    model, optimizer = hand
    assert int(optimizer.diagnostics()["steps"]) > 1
    assert not list(differences(module.network.state_dict(), model.state_dict()))
    theirs, mine = trained.optimizers[0].state_dict(), optimizer.state_dict()
    for state in (theirs, mine):
        state["param_groups"][0].pop("initial_lr", None)  # a scheduler's own
    assert not list(differences(theirs, mine))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_configure_optimizers(name):
    configure, falls = FORMATS[name]
    module = Module(configure)
    assert_same(module, fit(module), by_hand(falls))


def manually(module: Any, rows: Any, index: int, accumulate: int = 1, closure: bool = False) -> None:
    """A training step that does it all itself."""
    optimizer = module.optimizers()
    optimizer = optimizer[0] if isinstance(optimizer, list) else optimizer
    assert isinstance(optimizer, Arturo)

    def backward() -> None:
        module.manual_backward(squares(module.network, rows) / accumulate)

    if closure:
        optimizer.step(backward)
        optimizer.zero_grad()
        return
    backward()
    if (index + 1) % accumulate == 0 or index + 1 == BATCHES:
        optimizer.step()
        optimizer.zero_grad()
        schedules = module.lr_schedulers()
        if isinstance(schedules, LambdaLR) and module.trainer.lr_scheduler_configs[0].interval == "step":
            schedules.step()


@pytest.mark.parametrize("name", [name for name, (_, falls) in FORMATS.items() if falls in ("", "step")])
def test_every_format_under_manual_optimization(name):
    configure, falls = FORMATS[name]
    module = Module(configure, manually)
    assert_same(module, fit(module), by_hand(falls))


@pytest.mark.parametrize("variant", [{"accumulate": 3}, {"closure": True}], ids=str)
def test_manual_optimization_by_accumulation_and_by_closure(variant):
    module = Module(arturo, functools.partial(manually, **variant))
    assert_same(module, fit(module), by_hand(accumulate=variant.get("accumulate", 1)))


def autocast(dtype: torch.dtype) -> Callable[[], Any]:
    return lambda: torch.autocast("cpu", dtype)


def overflowing() -> torch.amp.GradScaler:
    """Its first scale is too large for fp16's gradients, so that the first steps are left out."""
    return torch.amp.GradScaler("cpu", init_scale=2.0**21, growth_interval=1000)


#: Settings of the Trainer, and what they are in a loop by hand.
SETTINGS: dict[str, tuple[Callable[[], dict[str, Any]], dict[str, Any]]] = {
    "accumulation": (lambda: {"accumulate_grad_batches": 3}, {"accumulate": 3}),
    "clipped norm": (
        lambda: {"gradient_clip_val": 0.3},
        {"clip": lambda params: nn.utils.clip_grad_norm_(params, 0.3)},
    ),
    "clipped values": (
        lambda: {"gradient_clip_val": 0.02, "gradient_clip_algorithm": "value"},
        {"clip": lambda params: nn.utils.clip_grad_value_(params, 0.02)},
    ),
    "bf16-mixed": (lambda: {"precision": "bf16-mixed"}, {"context": autocast(torch.bfloat16)}),
    "bf16-true": (lambda: {"precision": "bf16-true"}, {"dtype": torch.bfloat16}),
    # On CPUs Lightning itself takes bf16 instead.
    "16-mixed": (lambda: {"precision": "16-mixed"}, {"context": autocast(torch.bfloat16)}),
    "fp16 with a scaler": (
        lambda: {"plugins": MixedPrecision("16-mixed", "cpu", overflowing()), "gradient_clip_val": 0.3},
        {
            "context": autocast(torch.float16),
            "scaler": overflowing,
            "clip": lambda params: nn.utils.clip_grad_norm_(params, 0.3),
        },
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_trainer(name):
    settings, hand = SETTINGS[name]
    if "scaler" in hand:
        hand = {**hand, "scaler": hand["scaler"]()}
    module = Module(arturo)
    trained = fit(module, **settings())
    assert_same(module, trained, by_hand(**hand))
    steps = trained.optimizers[0].diagnostics()["steps"]
    assert steps < EPOCHS * BATCHES if name in ("accumulation", "fp16 with a scaler") else steps == EPOCHS * BATCHES
    held = [value for state in trained.optimizers[0].state.values() for value in state.values() if value.dim()]
    assert {value.dtype for value in held} == {torch.float32}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_a_checkpoint_goes_on_bit_for_bit(manual, precision, tmp_path):
    configure = functools.partial(with_schedule, interval="step")
    hand = manually if manual else None
    settings = {"precision": precision}
    whole = Module(configure, hand)
    expected = fit(whole, **settings, max_epochs=2 * EPOCHS)
    fit(Module(configure, hand), **settings, max_epochs=EPOCHS).save_checkpoint(tmp_path / "half.ckpt")
    resumed = Module(configure, hand, seed=1)
    found = fit(resumed, **settings, ckpt_path=tmp_path / "half.ckpt", max_epochs=2 * EPOCHS)
    assert found.optimizers[0].diagnostics()["steps"] == 2 * EPOCHS * BATCHES
    assert not list(differences(resumed.network.state_dict(), whole.network.state_dict()))
    assert not list(differences(found.optimizers[0].state_dict(), expected.optimizers[0].state_dict()))


def test_a_checkpoint_holds_nothing_but_weights_to_torch(tmp_path: Path):
    fit(Module()).save_checkpoint(tmp_path / "one.ckpt")
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["state"]
    assert not saved["callbacks"]
