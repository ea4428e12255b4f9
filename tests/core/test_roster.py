"""The roster: a step that looks at nothing anew is the step that looks at everything, to the bit."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from arturo_core import Arturo
from arturo_core.kernels import cpu
from arturo_core.step import roster

pytestmark = pytest.mark.skipif(not cpu.available(), reason="no compiled CPU kernel")

STEPS = 12


def parameters() -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 6), (6,), (4, 3, 2), (5, 5), (7,)]
    return [Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def optimizer(params: list[Parameter]) -> Arturo:
    groups = [{"params": params[:2], "weight_decay": 0.1}, {"params": params[2:], "lr": 3e-4}]
    return Arturo(groups, lr=1e-3)


def train(event: Callable[[Arturo, list[Parameter]], None], at: int = 6) -> tuple[list[Tensor], int]:
    """Weights and statistics after some steps, with something happening before one, and how often all was looked at."""
    params = parameters()
    ours = optimizer(params)
    looked = 0
    anew = ours._anew

    def count() -> object:
        nonlocal looked
        looked += 1
        return anew()

    ours._anew = count  # type: ignore[method-assign,assignment]
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        for param in (one for group in ours.param_groups for one in group["params"]):
            noise = torch.randn(param.shape, generator=generator)
            param.grad = noise.to(param.dtype) if param.requires_grad else None
        if step == at:
            event(ours, params)
        ours.step()
    members = [param for group in ours.param_groups for param in group["params"]]
    held = [value for param in members for value in ours.state.get(param, {}).values()]
    return [*(param.detach().clone() for param in members), *(value.clone() for value in held)], looked


def nothing(ours: Arturo, params: list[Parameter]) -> None:
    pass


def no_gradient(ours: Arturo, params: list[Parameter]) -> None:
    params[1].grad = None


def not_finite(ours: Arturo, params: list[Parameter]) -> None:
    params[0].grad[0, 0] = torch.nan  # type: ignore[index]


def another_lr(ours: Arturo, params: list[Parameter]) -> None:
    ours.param_groups[0]["lr"] = 2e-3


def stands_still(ours: Arturo, params: list[Parameter]) -> None:
    ours.param_groups[1]["lr"] = 0.0


def frozen(ours: Arturo, params: list[Parameter]) -> None:
    params[3].requires_grad_(False)
    params[3].grad = None


def weights_changed(ours: Arturo, params: list[Parameter]) -> None:
    with torch.no_grad():
        params[0].mul_(3.0)


def weights_exchanged(ours: Arturo, params: list[Parameter]) -> None:
    params[0].data = 2.0 * params[0].detach()


def weights_transposed(ours: Arturo, params: list[Parameter]) -> None:
    params[0].data = params[0].data.t()


def gradient_transposed(ours: Arturo, params: list[Parameter]) -> None:
    params[0].grad = torch.arange(36.0).view(6, 6).t()


def gradient_of_one_number(ours: Arturo, params: list[Parameter]) -> None:
    params[0].grad = torch.full((), 0.5).expand(6, 6)


def statistics_replaced(ours: Arturo, params: list[Parameter]) -> None:
    held = ours.state[params[0]]
    held["deviation"] = 2.0 * held["deviation"]


def statistics_in_other_memory(ours: Arturo, params: list[Parameter]) -> None:
    held = ours.state[params[0]]
    held["direction"].data = -held["direction"]


def statistics_transposed(ours: Arturo, params: list[Parameter]) -> None:
    ours.state[params[0]]["direction"].t_()


def statistics_under_two_names(ours: Arturo, params: list[Parameter]) -> None:
    held = ours.state[params[0]]
    held["mine"] = held["deviation"]
    held["deviation"] = 3.0 * held["deviation"]


def statistics_forgotten(ours: Arturo, params: list[Parameter]) -> None:
    del ours.state[params[0]]


def scalar_replaced(ours: Arturo, params: list[Parameter]) -> None:
    ours.state[params[0]]["variance"] = torch.tensor(0.5)


def scalar_written(ours: Arturo, params: list[Parameter]) -> None:
    ours.state[params[0]]["variance"].fill_(0.5)


def loaded(ours: Arturo, params: list[Parameter]) -> None:
    memory = io.BytesIO()
    torch.save(ours.state_dict(), memory)
    memory.seek(0)
    ours.load_state_dict(torch.load(memory, weights_only=True))


def new_group(ours: Arturo, params: list[Parameter]) -> None:
    added = Parameter(torch.ones(3, 3))
    added.grad = torch.ones(3, 3)
    ours.add_param_group({"params": [added], "lr": 1e-4})


def group_gone(ours: Arturo, params: list[Parameter]) -> None:
    del ours.param_groups[1]["params"][0]


def order_changed(ours: Arturo, params: list[Parameter]) -> None:
    ours.param_groups[1]["params"].reverse()


def forgotten(ours: Arturo, params: list[Parameter]) -> None:
    ours.restart_schedule(keep_statistics=False)


EVENTS = [
    (nothing, 1),
    (no_gradient, 3),
    (not_finite, 1),
    (another_lr, 1),
    (stands_still, 7),
    (frozen, 7),
    (weights_changed, 1),
    (weights_exchanged, 2),
    (weights_transposed, 7),
    (gradient_transposed, 3),
    (gradient_of_one_number, 3),
    (statistics_replaced, 2),
    (statistics_in_other_memory, 2),
    (statistics_transposed, 7),
    (statistics_under_two_names, 2),
    (statistics_forgotten, 2),
    (scalar_replaced, 2),
    (scalar_written, 1),
    (loaded, 2),
    (new_group, 2),
    (group_gone, 2),
    (order_changed, 2),
    (forgotten, 2),
]


@pytest.mark.parametrize(("event", "looked"), EVENTS, ids=[event.__name__ for event, _ in EVENTS])
def test_what_happens_between_steps_is_seen(
    event: Callable[[Arturo, list[Parameter]], None], looked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, times = train(event)
    assert times == looked
    monkeypatch.setattr(roster, "suits", lambda *arguments: False)
    expected, times = train(event)
    assert times == STEPS
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def steady() -> tuple[list[Parameter], Arturo]:
    params = parameters()
    ours = optimizer(params)
    for _ in range(3):
        for param in params:
            param.grad = torch.ones_like(param)
        ours.step()
    assert ours._roster is not None
    return params, ours


def test_nothing_is_kept_alive() -> None:
    params, ours = steady()
    gradients = [weakref.ref(param.grad) for param in params]
    statistics = [weakref.ref(ours.state[param]["direction"]) for param in params]
    ours.zero_grad(set_to_none=True)
    gc.collect()
    assert [one() for one in gradients] == [None] * len(params)
    ours.state.clear()
    gc.collect()
    assert [one() for one in statistics] == [None] * len(params)


def test_a_name_that_others_give_a_statistic_is_theirs() -> None:
    params = parameters()
    ours = optimizer(params)
    ours.allocate_state()
    ours.state[params[0]]["mine"] = ours.state[params[0]]["deviation"]
    for step in range(4):
        for param in params:
            param.grad = torch.ones_like(param)
        if step == 3:
            ours.state[params[0]]["deviation"] = torch.full((6, 6), 100.0)
        ours.step()
    assert float(ours.state[params[0]]["deviation"].min()) > 90.0


def test_weights_that_are_a_negative_view_are_refused() -> None:
    params, ours = steady()
    before = params[0].detach().clone()
    params[0].data = torch._neg_view(-params[0].data)
    with pytest.raises(RuntimeError, match=r"resolve_neg\(\)"):
        ours.step()
    assert torch.equal(params[0], before)
    params[0].data = params[0].data.resolve_neg()
    ours.step()


def test_removed_parameters_are_let_go() -> None:
    params, ours = steady()
    gone = weakref.ref(params[0])
    del ours.param_groups[0]["params"][0], ours.state[params[0]]
    params.pop(0)
    for param in params:
        param.grad = torch.ones_like(param)
    ours.step()
    gc.collect()
    assert gone() is None


def test_ranks_that_are_told_of_later_count() -> None:
    params, ours = steady()
    ours.split_over(None)
    assert ours._roster is None
    for param in params:
        param.grad = torch.ones_like(param)
    ours.step()
    assert ours._roster is not None
    ours.add_param_group({"params": [Parameter(torch.ones(2, 2))]})
    assert ours._roster is None


def test_one_parameter_is_saved_without_the_others_scalars() -> None:
    params, ours = steady()

    def size(held: dict[str, Tensor]) -> int:
        memory = io.BytesIO()
        torch.save(held, memory)
        return len(memory.getvalue())

    alone = {name: value.clone() for name, value in ours.state[params[1]].items()}
    assert size(ours.state_dict()["state"][1]) <= size(alone) + 64


@pytest.mark.parametrize("change", ["bfloat16", "float16", "one entry", "counter"])
def test_statistics_of_another_dtype_are_refused(change: str) -> None:
    params, ours = steady()
    held = ours.state[params[0]]
    names = {"one entry": ["direction"], "counter": ["step"]}.get(change, list(held))
    for name in names:
        held[name] = held[name].to(torch.float16 if change == "float16" else torch.bfloat16)
    before = [param.detach().clone() for param in params]
    for param in params:
        param.grad = torch.ones_like(param)
    with pytest.raises(ValueError, match=r"its statistics of torch\.b?float16"):
        ours.step()
    assert all(torch.equal(param, old) for param, old in zip(params, before, strict=True))
    ours.load_state_dict(ours.state_dict())  # the way out that the error names
    ours.step()
    assert ours.state[params[0]]["direction"].dtype == torch.float32


def test_errors_are_those_of_a_step_that_looks_at_everything() -> None:
    params, ours = steady()
    before = [param.detach().clone() for param in params]
    params[0].grad = torch.ones(6, 6).to_sparse()
    with pytest.raises(RuntimeError, match="sparse gradients"):
        ours.step()
    params[0].grad = torch.ones(6, 6)
    ours.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr"):
        ours.step()
    ours.param_groups[0]["lr"] = 1e-3
    ours.state[params[0]].pop("deviation")
    with pytest.raises(ValueError, match=r"'deviation' in the state of parameter .* is missing"):
        ours.step()
    assert all(torch.equal(param, old) for param, old in zip(params, before, strict=True))


def test_scalars_are_saved_and_copied_each_for_itself() -> None:
    params, ours = steady()
    other = copy.deepcopy(ours)
    expected = [float(ours.state[param]["step"]) for param in params]
    for param in params:
        param.grad = torch.ones_like(param)
    ours.step()
    held = [other.state[param] for group in other.param_groups for param in group["params"]]
    assert [float(one["step"]) for one in held] == expected
    assert all(one["step"].shape == () for one in held)
    memory = io.BytesIO()
    torch.save(ours.state_dict(), memory)
    memory.seek(0)
    saved = torch.load(memory, weights_only=True)["state"]
    assert [float(one["step"]) for one in saved.values()] == [count + 1.0 for count in expected]
