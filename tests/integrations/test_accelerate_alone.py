"""``arturo_integrations.accelerate`` in one process: what is returned, what is refused, what trackers get."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("accelerate")

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import GeneralTracker
from accelerate.utils import DistributedType
from torch.utils.data import DataLoader, TensorDataset

from arturo_core import Arturo
from arturo_integrations.accelerate import arturo_metrics, find_arturo, prepare


@pytest.fixture(autouse=True)
def _own_accelerator():
    """Accelerate keeps one state a process; other tests have theirs."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def make(seed: int = 0) -> tuple[torch.nn.Module, DataLoader]:
    torch.manual_seed(seed)
    inputs = torch.randn(24, 3)
    return torch.nn.Linear(3, 2), DataLoader(TensorDataset(inputs, inputs[:, :2]), batch_size=4)


def epoch(accelerator: Accelerator, model: Any, optimizer: Any, batches: Any) -> list[dict[str, float]]:
    found = []
    for inputs, targets in batches:
        with accelerator.accumulate(model):
            accelerator.backward((model(inputs) - targets).square().mean())
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            found.append(arturo_metrics(optimizer))
    return found


def test_one_call_prepares_everything_in_order():
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, batches = make()
    model, optimizer, batches = prepare(accelerator, model, batches, lr=1e-2, weight_decay=0.1, noise="fixed")
    arturo = find_arturo(optimizer)
    assert arturo is not None
    assert [group["weight_decay"] for group in arturo.param_groups] == [0.1]
    assert arturo.options.noise == "fixed"
    assert [step["arturo/steps"] for step in epoch(accelerator, model, optimizer, batches)] == [1, 2, 3]


def test_groups_are_those_of_the_user():
    model, _ = make()
    model.bias.requires_grad_(False)
    groups = lambda module: [{"params": [module.weight], "lr": 1e-3}]  # noqa: E731
    _, optimizer = prepare(Accelerator(cpu=True), model, params=groups, lr=1.0)
    assert [(len(group["params"]), group["lr"]) for group in optimizer.param_groups] == [(1, 1e-3)]


def test_frozen_weights_are_left_out():
    model, _ = make()
    model.bias.requires_grad_(False)
    _, optimizer = prepare(Accelerator(cpu=True), model, lr=1.0)
    assert [param is model.weight for group in optimizer.param_groups for param in group["params"]] == [True]


def test_trained_weights_that_the_optimizer_does_not_hold_are_refused():
    model, _ = make()
    with pytest.raises(ValueError, match="Arturo: parameters bias of the model are trainable and not in"):
        prepare(Accelerator(cpu=True), model, params=lambda module: [module.weight], lr=1e-3)


def test_a_framework_with_an_optimizer_of_its_own_is_refused():
    configured = SimpleNamespace(distributed_type=DistributedType.MEGATRON_LM, is_fsdp2=False)
    with pytest.raises(ValueError, match="Arturo: with Megatron"):
        prepare(configured, torch.nn.Linear(2, 2), lr=1e-3)


class Kept(GeneralTracker):
    """A tracker that keeps what it is given."""

    name = "kept"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.records: list[tuple[int | None, dict[str, Any]]] = []

    @property
    def tracker(self) -> list[tuple[int | None, dict[str, Any]]]:
        return self.records

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        pass

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self.records.append((step, values))


def test_trackers_get_the_diagnostics_by_one_call(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    kept = Kept()
    accelerator = Accelerator(cpu=True, log_with=[kept, "tensorboard"], project_dir=str(tmp_path))
    accelerator.init_trackers("run")
    model, batches = make()
    model, optimizer, batches = prepare(accelerator, model, batches, lr=1e-2)
    numbers = epoch(accelerator, model, optimizer, batches)
    accelerator.log(arturo_metrics(optimizer), step=6)
    accelerator.end_training()
    assert kept.records == [(6, numbers[-1])]
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    events = accumulator.EventAccumulator(str(file))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(numbers[-1])
    (eta,) = events.Scalars("arturo/eta")
    assert (eta.step, eta.value) == (6, pytest.approx(numbers[-1]["arturo/eta"], rel=1e-6))


def test_a_checkpoint_goes_on_bit_for_bit(tmp_path):
    def start(seed: int) -> tuple[Accelerator, Any, Any, Any]:
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True)
        return accelerator, *prepare(accelerator, *make(seed), lr=1e-2)

    whole = start(0)
    epoch(*whole)
    whole[0].save_state(str(tmp_path))
    resumed = start(1)
    resumed[0].load_state(str(tmp_path))
    assert isinstance(find_arturo(resumed[2]), Arturo)
    assert epoch(*resumed[:3], whole[3]) == epoch(*whole)
    assert torch.equal(resumed[1].weight, whole[1].weight)


def test_a_schedule_that_cycles_momentum_is_built_on_the_prepared_optimizer():
    """Its rates and momenta are those of a loop without Accelerate, and so are the weights."""
    accelerator = Accelerator(cpu=True)
    model, batches = make()
    model, optimizer, batches = prepare(accelerator, model, batches, lr=1e-2)
    scheduler = accelerator.prepare(torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=7))
    other, rows = make()
    by_hand = Arturo(other.parameters(), lr=1e-2)
    by_hand_scheduler = torch.optim.lr_scheduler.OneCycleLR(by_hand, 1e-2, total_steps=7)
    seen = set()
    for (inputs, targets), (same, wanted) in zip(batches, rows, strict=True):
        seen.add(by_hand.param_groups[0]["momentum"])
        for key in ("lr", "momentum"):
            assert optimizer.param_groups[0][key] == by_hand.param_groups[0][key]
        accelerator.backward((model(inputs) - targets).square().mean())
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        (other(same) - wanted).square().mean().backward()
        by_hand.step()
        by_hand_scheduler.step()
        by_hand.zero_grad()
    assert len(seen) > 3, "it has moved"
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
