"""Steps of a real optimizer under FakeTensorMode, as memory estimators take them: on a stand-in without numbers.

What such a step makes has shapes and no values, so nothing of it may reach the real weights and statistics. A model and
an optimizer that are themselves built under FakeTensorMode need none of this.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor

from arturo_core.contexts import fake_mode_is_active, is_fake

if TYPE_CHECKING:
    from arturo_core.persistence import Persistent


def is_due(params: Iterable[Tensor]) -> bool:
    """Whether a FakeTensorMode is active around real parameters."""
    return fake_mode_is_active() and any(not is_fake(param) for param in params)


def aside(params: Iterable[Tensor]) -> AbstractContextManager[Any]:
    """A context in which a FakeTensorMode around real parameters is left alone: for what reads or replaces numbers."""
    if not is_due(params):
        return nullcontext()
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    return unset_fake_temporarily()


def stand_in(optimizer: Persistent) -> Any:
    """A copy of an optimizer whose parameters, gradients and statistics are fake."""
    from torch._guards import active_fake_mode

    mode = active_fake_mode()

    def fake(value: Any) -> Any:
        if not isinstance(value, Tensor) or is_fake(value):
            return value
        return mode.from_tensor(value)  # type: ignore[union-attr]  # there is one: see is_due

    params = {param: fake(param) for group in optimizer.param_groups for param in group["params"]}
    for param, twin in params.items():
        twin.grad = None if param.grad is None else fake(param.grad)
    groups = [
        {key: fake(value) for key, value in group.items()} | {"params": [params[param] for param in group["params"]]}
        for group in optimizer.param_groups
    ]
    state = {
        params[param]: {name: fake(value) for name, value in held.items()}
        for param, held in optimizer.state.items()
        if param in params
    }
    copied = type(optimizer).__new__(type(optimizer))
    copied.__setstate__({**optimizer.__getstate__(), "param_groups": groups, "state": state})
    copied._process_group, copied._lost_process_group = optimizer._process_group, optimizer._lost_process_group
    return copied
