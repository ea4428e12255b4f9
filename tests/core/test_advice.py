"""Advice comes when a setting is wrong, once, and not when all is well; real runs wherever one can bring it about."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from arturo_core import Arturo
from arturo_core.reporting import memory
from arturo_core.reporting.advice import Advisor, ArturoAdvice, advise


def run(
    options: dict[str, Any],
    steps: int = 60,
    dtype: torch.dtype = torch.float32,
    scale: Any = lambda step: 1.0,
    clipped: bool | None = None,
    every: int = 5,
    patience: int = 20,
) -> list[str]:
    """Advice over a small run whose loss is scaled step by step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)).to(dtype)
    optimizer = Arturo(model.parameters(), **options)
    advisor = Advisor(optimizer, patience)
    found: list[str] = []
    for step in range(steps):
        inputs = torch.randn(16, 6, dtype=dtype)
        model.zero_grad()
        loss = (model(inputs) - inputs[:, :2].sin() - 0.5 * torch.randn(16, 2, dtype=dtype)).square().mean()
        (loss * scale(step)).backward()
        optimizer.step()
        if step % every == 0:
            found += advisor.check(optimizer.diagnostics(), clipped)
    return found


#: Made-up diagnostics that nothing speaks against.
WELL_ENOUGH = {
    "kl": 1.0,
    "eta": 1.0,
    "bound_active": True,
    "innovation_ratio": 1.0,
    "step_scale": 1.0,
    "skipped_steps": 0,
}

WELL: list[dict[str, Any]] = [
    {"lr": 1e-3},
    {"lr": 1e-2},
    {"lr": 2e-3, "trust_region": "kl", "noise": "fixed", "measurement_noise": 2e-3},
]


@pytest.mark.parametrize("options", WELL)
def test_nothing_is_said_of_a_run_that_is_well(options: dict[str, Any]) -> None:
    assert run(options, clipped=False) == []


def test_a_rate_for_adamw_as_a_bound_in_nats() -> None:
    found = run({"lr": 3e-4, "trust_region": "kl"})
    assert len(found) == 1
    assert "lr=0.0003" in found[0]
    assert 'Use trust_region="rms"' in found[0]


def test_a_bound_in_nats_as_a_rate_for_adamw() -> None:
    found = run({"lr": 0.0856746}, steps=8)
    assert len(found) == 1
    assert 'For a bound in nats use trust_region="kl"' in found[0]


def test_schedules_are_not_taken_for_settings() -> None:
    """A bound that decays to a hundredth, and a warm-up from nearly nothing."""
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = Arturo([weight], lr=2.8e-3, trust_region="kl")
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 10 if step < 10 else 0.006)
    advisor = Advisor(optimizer)
    for _ in range(20):
        weight.grad = torch.randn(4, 4)
        optimizer.step()
        scheduler.step()
        assert advisor.check(optimizer.diagnostics()) == []


def test_many_skipped_steps() -> None:
    found = run({"lr": 1e-3}, scale=lambda step: float("inf") if step % 10 == 9 else 1.0)
    assert len(found) == 1
    assert "steps were skipped because a gradient was not finite" in found[0]
    assert run({"lr": 1e-3}, scale=lambda step: float("inf") if step == 30 else 1.0) == []


def test_a_bound_that_limits_nothing() -> None:
    """What a larger lr does then depends on whether the length ℓ follows it; which lr is better nobody knows yet."""
    (found,) = [text for text in run({"lr": 1e4, "trust_region": "kl"}) if "has limited none of the steps" in text]
    assert "A larger lr lengthens the bound alone" in found
    vectors = [text for text in inactive({"lr": 1e-2}) if "has limited none of the steps" in text]
    fixed = [text for text in inactive({"lr": 1e-2, "length_scale": 1e-3}) if "has limited none of the steps" in text]
    assert "A larger lr still lengthens them" in vectors[0]
    assert "A larger lr lengthens the bound alone" in fixed[0]
    for text in (found, *vectors, *fixed):
        assert "no reason to change lr" in text
        assert "compare the validation loss" in text
        assert "ower it" not in text
        assert "changes nothing" not in text


def inactive(options: dict[str, Any]) -> list[str]:
    """Advice over made-up steps whose bound was not active; real ones need a model without matrices."""
    optimizer = Arturo([nn.Parameter(torch.ones(2))], **options)
    advisor = Advisor(optimizer, patience=10)
    numbers = {**WELL_ENOUGH, "bound_active": False}
    return [text for step in range(5, 30, 5) for text in advisor.check({**numbers, "steps": step})]


@pytest.mark.parametrize(("options", "longer"), [({}, True), ({"length_scale": 3e-3}, False)])
def test_what_is_said_of_larger_rates_is_so(options: dict[str, Any], longer: bool) -> None:
    """The same step with an inactive bound, at lr and at three times as much."""
    weight = nn.Parameter(torch.randn(64))
    optimizer = Arturo([weight], lr=1e-2, **options)
    for _ in range(100):
        weight.grad = weight.detach().clone()
        optimizer.step()
    weight.grad = weight.detach().clone()
    lengths = []
    for lr in (1e-2, 3e-2):
        moved, copied = copy.deepcopy((weight, optimizer))
        moved.grad = weight.grad
        copied.param_groups[0]["lr"] = lr
        copied.step()
        assert not copied.diagnostics()["bound_active"]
        lengths.append(float((moved - weight).detach().norm()))
    assert (lengths[1] > 2.0 * lengths[0]) == longer
    assert (lengths[1] == lengths[0]) != longer


def test_convergence_is_no_fault_of_the_noise() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(32, 4)
    layer = nn.Linear(4, 1)
    targets = inputs.sum(dim=1, keepdim=True)
    optimizer = Arturo(layer.parameters(), lr=1e-2)
    advisor = Advisor(optimizer, patience=20)
    found: list[str] = []
    for _ in range(400):
        layer.zero_grad()
        (layer(inputs) - targets).square().mean().backward()
        optimizer.step()
        found += advisor.check(optimizer.diagnostics())
    assert optimizer.diagnostics()["innovation_ratio"] < 0.1
    assert not [text for text in found if "innovation_ratio" in text]


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "at lr 0"])
def test_weights_that_do_not_move_are_not_rounded(frozen: bool) -> None:
    body, head = nn.Linear(64, 64).to(torch.bfloat16).requires_grad_(not frozen), nn.Linear(64, 2)
    optimizer = Arturo([{"params": body.parameters(), "lr": 0.0}, {"params": head.parameters()}], lr=1e-5)
    advisor = Advisor(optimizer, patience=10)
    for _ in range(30):
        head.zero_grad()
        head(torch.randn(8, 64)).square().mean().backward()
        optimizer.step()
        assert advisor.check(optimizer.diagnostics()) == []


def test_norms_do_not_hide_what_matrices_resolve() -> None:
    """Weights of one have neighbours fifty times as far apart as those of .02."""
    torch.manual_seed(0)
    matrix = nn.Parameter((0.02 * torch.randn(64, 64)).bfloat16())
    norm = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    optimizer = Arturo([matrix, norm], lr=2e-4)
    for _ in range(3):
        matrix.grad, norm.grad = torch.randn_like(matrix), torch.randn_like(norm)
        optimizer.step()
    assert optimizer.diagnostics()["step_resolution"] > 1.0


def test_one_cycle_says_its_rate_elsewhere() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = Arturo([weight], lr=0.02, trust_region="kl")
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=50, cycle_momentum=False)
    weight.grad = torch.randn(4, 4)
    optimizer.step()
    assert Advisor(optimizer).check(optimizer.diagnostics()) == []


def test_noise_that_does_not_fit() -> None:
    found = run(
        {
            "lr": 1e-2,
            "noise": "fixed",
            "trust_region": "kl",
            "measurement_noise": 1e-6,
            "init_covariance": 1e-8,
            "process_noise": 1e-9,
        }
    )
    (text,) = [text for text in found if "innovation_ratio" in text]
    assert "measurement_noise is too small: multiply it by about" in text
    growing = run({"lr": 1e-3}, scale=lambda step: 1.2**step)
    assert [text for text in growing if "changes faster than the noise estimate" in text]


def test_clipping_at_every_step() -> None:
    found = run({"lr": 1e-3}, clipped=True)
    assert len(found) == 1
    assert "max_grad_norm=0" in found[0]
    assert "depends on the task" in found[0]
    assert "made no difference" not in found[0]


def test_steps_that_bfloat16_rounds_away() -> None:
    (found,) = run({"lr": 1e-5}, dtype=torch.bfloat16)
    assert "rounded away" in found
    assert run({"lr": 1e-5}) == []
    assert run({"lr": 3e-2}, dtype=torch.bfloat16) == []


def test_the_end_of_a_schedule_is_no_fault_of_bfloat16() -> None:
    weight = nn.Parameter(torch.ones(8, 8, dtype=torch.bfloat16))
    optimizer = Arturo([weight], lr=3e-2)
    advisor = Advisor(optimizer, patience=10)
    for step in range(40):
        optimizer.param_groups[0]["lr"] = 3e-2 if step < 10 else 1e-6
        weight.grad = torch.randn(8, 8, dtype=torch.bfloat16)
        optimizer.step()
        assert advisor.check(optimizer.diagnostics()) == []


def test_a_search_that_ended_early() -> None:
    """Cannot be brought about by a run on purpose: the numbers are made up."""
    optimizer = Arturo([nn.Parameter(torch.ones(2))], lr=1e-2)
    advisor = Advisor(optimizer, patience=10)
    numbers = {**WELL_ENOUGH, "eta": 1e9, "step_scale": 0.5}
    found = [advisor.check({**numbers, "steps": step}) for step in range(5, 30, 5)]
    assert [len(one) for one in found] == [0, 0, 1, 0, 0]
    assert "1e+09" in found[2][0]


def test_what_holds_has_to_hold_at_every_logged_step() -> None:
    optimizer = Arturo([nn.Parameter(torch.ones(2))], lr=1e-2)
    advisor = Advisor(optimizer, patience=10)
    for step in range(0, 100, 5):
        assert advisor.check({**WELL_ENOUGH, "steps": step, "bound_active": step % 10 == 0}) == []


def test_before_the_first_step_there_is_none() -> None:
    optimizer = Arturo([nn.Parameter(torch.ones(2))], lr=1.0)
    assert Advisor(optimizer).check(optimizer.diagnostics()) == []
    with pytest.raises(ValueError, match="at least 1"):
        Advisor(optimizer, patience=0)


def test_advice_is_a_warning_of_its_own_that_can_be_silenced() -> None:
    with pytest.warns(ArturoAdvice, match="Arturo: lower it"):
        advise(["lower it"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ArturoAdvice)
        advise(["lower it"])


@pytest.mark.parametrize(
    ("storage", "left", "said"), [("float32", 1, True), ("float32", 1 << 40, False), ("8bit", 1, False)]
)
def test_memory_that_is_scarce(storage: str, left: int, said: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free", lambda device: left)
    found = [advice for advice in run({"lr": 1e-3, "state_dtype": storage}) if "state_dtype" in advice]
    assert len(found) == said
    if said:
        assert 'state_dtype="bfloat16" halves it' in found[0]


def test_the_share_of_memory_is_counted_from_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = nn.Parameter(torch.ones(64, 32))
    optimizer = Arturo([weights])
    assert memory.share_of_free(optimizer) == 0.0
    weights.grad = torch.ones(64, 32)
    optimizer.step()
    monkeypatch.setattr(memory, "free", lambda device: 1 << 14)
    assert memory.share_of_free(optimizer) == pytest.approx(4 * 4 * 64 * 32 / (1 << 14), rel=0.01)
    monkeypatch.setattr(memory, "free", lambda device: None)
    assert memory.share_of_free(optimizer) == 0.0
    monkeypatch.undo()
    left = memory.free(torch.device("cpu"))
    assert left is None or left > 1 << 20
