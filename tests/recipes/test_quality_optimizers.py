"""The optimizers of the quality benchmark, and how each is used."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from quality_toy import Toy, toy_task
from torch import nn

from arturo_core.options import PAPER_KL_BOUND
from recipes.benchmarks.quality.environment import installed
from recipes.benchmarks.quality.muon import MuonWithAdamW, hidden_matrices
from recipes.benchmarks.quality.optimizers import FAMILIES, OPTIMIZERS, grid_lr, state_bytes, trainable
from recipes.benchmarks.quality.training import run


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_what_is_to_be_trained_goes_in(name):
    if not installed(OPTIMIZERS[name]):
        pytest.skip(f"{OPTIMIZERS[name].package} is not installed")
    model = Toy(0).model
    optimizer = OPTIMIZERS[name].build(model, 0.1, 10)
    held = [param for group in optimizer.param_groups for param in group["params"]]
    assert {id(param) for param in held} == {id(param) for param in trainable(model)}
    assert len(held) == len(trainable(model))
    assert len(optimizer.param_groups) == (2 if name == "muon" else 1)


def test_defaults_of_adamw_and_arturo_are_the_same():
    for name in ("adamw", "arturo"):
        assert OPTIMIZERS[name].default == {"fine-tuning": 5e-5, "lora": 5e-4, "from scratch": 1e-3}


def test_every_default_has_a_source_and_every_family():
    for entry in OPTIMIZERS.values():
        assert set(entry.default) == set(FAMILIES)
        assert len(entry.why) > 20


def test_grid_is_logarithmic():
    assert grid_lr(OPTIMIZERS["adamw"], "from scratch", 2) == 1e-2
    assert grid_lr(OPTIMIZERS["adamw"], "from scratch", 1) == pytest.approx(1e-3 * math.sqrt(10), rel=1e-5)
    assert grid_lr(OPTIMIZERS["arturo-paper"], "lora", 1) == pytest.approx(10 * PAPER_KL_BOUND, rel=1e-5)


class Language(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.convolution = nn.Conv2d(1, 2, 3)
        self.hidden = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.positions = nn.Parameter(torch.zeros(5, 4))
        self.head = nn.Linear(4, 7)
        if tied:
            self.head.weight = self.embedding.weight


@pytest.mark.parametrize("tied", [False, True])
def test_muon_gets_hidden_matrices_only(tied):
    model = Language(tied)
    names = {id(param): name for name, param in model.named_parameters()}
    chosen = {names[id(param)] for param in hidden_matrices(model)}
    assert chosen == {"hidden.weight", "attention.in_proj_weight", "attention.out_proj.weight"}


def test_muon_moves_matrices_by_adamws_rms():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 3))
    before = [param.detach().clone() for param in model.parameters()]
    optimizer = MuonWithAdamW(model, 1e-3)
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    optimizer.step()
    moved = [(param - old).square().mean().sqrt().item() for param, old in zip(model.parameters(), before, strict=True)]
    assert moved[0] == pytest.approx(0.2e-3, rel=0.3)  # Muon with match_rms_adamw
    assert moved[1:] == [pytest.approx(1e-3, rel=0.05)] * 3  # AdamW's first step is its sign
    optimizer.zero_grad()
    assert all(param.grad is None for param in model.parameters())


@pytest.mark.parametrize(("name", "per_weight"), [("adamw", 8), ("sgd", 4), ("ivon", 8), ("schedule-free", 8)])
def test_state_bytes_finds_what_a_package_keeps(name, per_weight):
    pytest.importorskip({"ivon": "ivon", "schedule-free": "schedulefree"}.get(name, "torch"))
    model = nn.Linear(50, 40)
    entry = OPTIMIZERS[name]
    optimizer = entry.build(model, 0.1, 10)
    entry.switch(optimizer, True)
    with entry.sampling(optimizer):
        model(torch.ones(1, 50)).sum().backward()
    optimizer.step()
    assert state_bytes(optimizer) == pytest.approx(per_weight * 2040, abs=16)  # and a step count a tensor


def test_soap_takes_vectors_matrices_and_convolutions():
    pytest.importorskip("pytorch_optimizer")
    model = Toy(0).model
    optimizer = OPTIMIZERS["soap"].build(model, 0.1, 10)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 9)).square().sum().backward()
        optimizer.step()
    moved = {name for name, param in model.named_parameters() if not torch.equal(param, before[name])}
    assert {"1.weight", "1.bias", "3.weight", "4.weight", "7.weight"} <= moved


def test_ivon_takes_gradients_at_samples_and_is_evaluated_at_its_mean():
    pytest.importorskip("ivon")
    seen, evaluated = [], []

    class Watching(Toy):
        def loss(self, batch):
            seen.append(self.model[4].weight.detach().clone())
            return super().loss(batch)

        def evaluate(self, part):
            evaluated.append(self.model[4].weight.detach().clone())
            return super().evaluate(part)

    entry = OPTIMIZERS["ivon"]
    record = run(toy_task(Watching), "ivon", 1e-12, 1, "seed")  # which all but stands still
    assert record["failed"] is None
    torch.manual_seed(1)
    start = Toy(1).model[4].weight
    for weight in evaluated:
        torch.testing.assert_close(weight, start, rtol=0, atol=1e-6)
    spread = torch.stack([weight - start for weight in seen]).std().item()
    assert spread == pytest.approx((Toy.examples * (1 + 1e-4)) ** -0.5, rel=0.1)  # 1/sqrt(ess (h + weight decay))
    assert entry.build(Toy(0).model, 0.1, 77).param_groups[0]["ess"] == 77


def test_schedule_free_trains_and_evaluates_at_different_weights():
    pytest.importorskip("schedulefree")
    modes = []
    entry = OPTIMIZERS["schedule-free"]

    def build(model, lr, examples):
        modes.append(entry.build(model, lr, examples))
        return modes[0]

    class Watching(Toy):
        def loss(self, batch):
            assert modes[0].param_groups[0]["train_mode"]
            return super().loss(batch)

        def evaluate(self, part):
            assert not modes[0].param_groups[0]["train_mode"]
            return super().evaluate(part)

    record = run(toy_task(Watching), "schedule-free", 1e-2, 1, "seed", dataclasses.replace(entry, build=build))
    assert record["failed"] is None
