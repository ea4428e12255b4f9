"""timm: its registry, parameter groups, layer decay, schedulers, scaler and checkpoints, as its train.py uses them."""

from __future__ import annotations

import argparse
import importlib
import logging
import math

import pytest

pytest.importorskip("timm")

import timm
import torch
from timm.models import resume_checkpoint
from timm.optim import create_optimizer, create_optimizer_v2, get_optimizer_class, list_optimizers, optimizer_kwargs
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, NativeScaler, ParseKwargs
from training_records import assert_falls, assert_holds_arturo, assert_within_trust_region

import arturo_integrations.timm
from arturo_core import Arturo
from arturo_integrations.metrics import arturo_metrics

pytestmark = pytest.mark.ecosystem

EPOCHS, UPDATES = 6, 4


def tiny_vit(seed=0):
    torch.manual_seed(seed)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=4
    )


def pictures():
    """Sixty-four pictures whose class is the quarter that is bright."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 4
    images = torch.randn(64, 3, 16, 16, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        top, left = 8 * (label // 2), 8 * (label % 2)
        image[:, top : top + 8, left : left + 8] += 1
    return list(zip(images.split(16), labels.split(16), strict=True))


def arguments(command_line):
    """The part of train.py's command line that concerns the optimizer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--opt", default="sgd")
    parser.add_argument("--opt-eps", type=float)
    parser.add_argument("--opt-betas", type=float, nargs="+")
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--weight-decay", type=float, default=2e-5)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--layer-decay", type=float)
    parser.add_argument("--opt-kwargs", nargs="*", default={}, action=ParseKwargs)
    return parser.parse_args(command_line.split())


def train(model, optimizer, epochs, start=0, folder=None):
    """The loop of train.py: scaler, schedule by updates, a checkpoint an epoch; returns losses and numbers."""
    schedule, _ = create_scheduler_v2(
        optimizer, "cosine", EPOCHS, warmup_epochs=1, warmup_lr=1e-4, updates_per_epoch=UPDATES, step_on_epochs=False
    )
    scaler = NativeScaler(device="cpu")
    scaler._scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    args = argparse.Namespace(model="vit")
    saver = folder and CheckpointSaver(model, optimizer, args, amp_scaler=scaler, checkpoint_dir=str(folder))
    if start:
        resume_checkpoint(model, str(folder / "last.pth.tar"), optimizer, scaler, log_info=False)
        schedule.step_update(start * UPDATES)
    losses, numbers = [], []
    for epoch in range(start, epochs):
        for update, (images, labels) in enumerate(pictures()):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            scaler(loss, optimizer, parameters=model.parameters())
            schedule.step_update(epoch * UPDATES + update + 1)
            losses.append(loss.item())
            numbers.append(arturo_metrics(optimizer))
        if saver:
            saver.save_checkpoint(epoch)
    return losses, numbers


def test_the_registry_knows_arturo_and_registration_can_be_repeated(caplog):
    assert list_optimizers("arturo") == ["arturo"]
    assert get_optimizer_class("arturo") is Arturo
    with caplog.at_level(logging.WARNING):
        importlib.reload(arturo_integrations.timm)
    assert not caplog.records


def test_the_command_line_of_train_py_builds_the_same_optimizer_as_by_hand():
    model = tiny_vit()
    habits = "--opt-eps 1e-8 --opt-betas 0.9 0.95"
    args = arguments(f"--opt arturo --lr 1e-2 --weight-decay 0.05 {habits}")
    ours = create_optimizer_v2(model, **optimizer_kwargs(args), **args.opt_kwargs)
    assert_trains(model, ours)
    twin = tiny_vit()
    flat = [p for p in twin.parameters() if p.ndim <= 1]
    square = [p for name, p in twin.named_parameters() if p.ndim > 1 and name not in twin.no_weight_decay()]
    positions = [p for name, p in twin.named_parameters() if name in twin.no_weight_decay()]
    assert {group["weight_decay"]: len(group["params"]) for group in ours.param_groups} == {
        0.0: len(flat) + len(positions),
        0.05: len(square),
    }
    undecayed = [p for p in twin.parameters() if not any(p is other for other in square)]
    by_hand = Arturo([{"params": undecayed, "weight_decay": 0.0}, {"params": square, "weight_decay": 0.05}], lr=1e-2)
    assert_trains(twin, by_hand)
    for (name, weight), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(weight, other), name


def assert_trains(model, optimizer):
    losses, numbers = train(model, optimizer, EPOCHS)
    assert_falls(losses, to=0.7)
    for record in numbers:
        assert_within_trust_region(record)
    assert_holds_arturo(optimizer, EPOCHS * UPDATES, model)


def test_options_go_through_opt_kwargs_and_the_default_lr_is_arturos():
    assert {group["lr"] for group in create_optimizer_v2(tiny_vit(), opt="arturo").param_groups} == {
        Arturo(tiny_vit().parameters()).defaults["lr"]
    }
    args = arguments("--opt arturo --lr 3e-3 --opt-kwargs trust_region=kl noise=fixed kl_rtol=1e-4")
    model = tiny_vit()
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(args), **args.opt_kwargs)
    images, labels = pictures()[0]
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
    numbers = optimizer.diagnostics()
    assert numbers["kl_bound"] == pytest.approx(3e-3, rel=1e-6)  # nats
    assert numbers["kl_ratio"] == pytest.approx(1, abs=1e-4)


def test_layer_decay_scales_the_learning_rates_of_layers():
    model = tiny_vit()
    optimizer = create_optimizer(arguments("--opt arturo --lr 1e-2 --layer-decay 0.5"), model)
    scales = sorted({group["lr_scale"] for group in optimizer.param_groups})
    assert scales == [0.125, 0.25, 0.5, 1.0]
    losses, _ = train(model, optimizer, 3)
    assert_falls(losses, to=0.9)
    rates = {group["lr"] / group["lr_scale"] for group in optimizer.param_groups}
    assert max(rates) == pytest.approx(min(rates), rel=1e-12)
    # The largest of the schedule: the cosine's value at the end of the warm-up, a sixth of the way.
    peaks = [float(group["peak_lr"]) / group["lr_scale"] for group in optimizer.param_groups]
    assert peaks == pytest.approx([1e-2 * (1 + math.cos(math.pi / 6)) / 2] * len(peaks), rel=1e-6)


def test_a_checkpoint_of_timm_resumes_to_the_bit(tmp_path):
    whole, half, resumed = tiny_vit(), tiny_vit(), tiny_vit(seed=1)
    options = {"opt": "arturo", "lr": 3e-3, "weight_decay": 0.05}
    whole_optimizer, resumed_optimizer = create_optimizer_v2(whole, **options), create_optimizer_v2(resumed, **options)
    losses, numbers = train(whole, whole_optimizer, EPOCHS)
    train(half, create_optimizer_v2(half, **options), 3, folder=tmp_path)
    later_losses, later_numbers = train(resumed, resumed_optimizer, EPOCHS, start=3, folder=tmp_path)
    assert later_losses == losses[3 * UPDATES :]
    assert later_numbers == numbers[3 * UPDATES :]
    for (name, weight), other in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(weight, other), name
    for before, after in zip(whole.parameters(), resumed.parameters(), strict=True):
        state, other = whole_optimizer.state[before], resumed_optimizer.state[after]
        assert state.keys() == other.keys()
        assert all(torch.equal(state[key], other[key]) for key in state)
