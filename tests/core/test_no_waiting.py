"""A step on an accelerator never waits for it: told on the meta device, whose numbers nobody can read.

On CUDA itself ``test_triton_step.py`` has torch raise where the host waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from arturo_core import Arturo
from arturo_core.kernels import triton
from arturo_core.step import preparing
from arturo_core.step.chunks import Source

SHAPES = [(30, 20), (20,), (), (4, 3, 5, 5), (300, 400)]

#: What needs a number, or a size that only the device knows.
READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique", "bincount")

#: What launches nothing.
VIEWS = ("detach", "unbind", "view", "select", "slice", "expand", "alias", "unsqueeze", "permute")


class Refusing(TorchDispatchMode):
    """Notes what a host would wait for: numbers read, and copies between it and the device."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        self.operations[name] += 1
        given = [one for one in _flat((args, kwargs)) if isinstance(one, Tensor)]
        if name.startswith(READS) and any(one.device.type != "cpu" for one in given):
            self.waits.append(name)
        if name == "index" and any(one.dtype in (torch.bool, torch.uint8) for one in given[1:]):
            self.waits.append("index by a mask")
        if name == "repeat_interleave" and kwargs.get("output_size") is None and given[0].device.type != "cpu":
            self.waits.append(name)
        result = func(*args, **kwargs)
        made = [one for one in _flat(result) if isinstance(one, Tensor)]
        if name in ("_to_copy", "copy_", "_foreach_copy_") and not kwargs.get("non_blocking"):
            kinds = {one.device.type for one in (*given, *made)}
            if len(kinds) > 1:
                self.waits.append(f"{name} between {' and '.join(sorted(kinds))}")
        return result


def _flat(nested: Any) -> list[Any]:
    if isinstance(nested, (list, tuple)):
        return [one for part in nested for one in _flat(part)]
    if isinstance(nested, dict):
        return _flat(list(nested.values()))
    return [nested]


class Kernel:
    """Takes everything, and makes nothing but sums of the right shape."""

    def eligible(self, source: Source) -> bool:
        return True

    def table(self, sources: Sequence[Source]) -> Sequence[Source]:
        return sources

    outline = table

    def renewed(self, outline: Any, sources: Sequence[Source]) -> Sequence[Source]:
        return sources

    def survey(self, sources: Sequence[Source], squares: bool = True) -> tuple[Tensor, Tensor]:
        return self._sums(sources, 1)[0, 0], self._sums(sources, 1)[:, 0]

    def observe(self, sources: Sequence[Source], gains: Tensor, *rest: Any) -> Tensor:
        assert gains.shape == (len(sources), 7)
        return self._sums(sources, 5)

    def apply(self, sources: Sequence[Source], *rest: Any) -> Tensor:
        torch.autograd.graph.increment_version([source.theta for source in sources])
        return self._sums(sources, 1)[:, 0]

    @staticmethod
    def _sums(sources: Sequence[Source], columns: int) -> Tensor:
        return torch.zeros(len(sources), columns, dtype=torch.float64, device=sources[0].theta.device)


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "kl": {"trust_region": "kl"},
    "decay": {"weight_decay": 0.1, "length_scale": 1e-3},
}

RATES: dict[str, Callable[[float], Any]] = {
    "float": float,
    "tensor": torch.tensor,
    "tensor there": lambda rate: torch.tensor(rate, device="meta"),
}


@pytest.fixture(params=["kernel", "eager"])
def takes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "kernel":
        kernel = Kernel()
        monkeypatch.setattr(triton, "available", lambda device: device.type == "meta")
        for name in ("eligible", "table", "outline", "renewed", "survey", "observe", "apply"):
            monkeypatch.setattr(triton, name, getattr(kernel, name))
    return bool(request.param == "kernel")


def counted(optimizer: Arturo) -> Refusing:
    """A step after the first ones, which bring state and constants there."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for _ in range(3):
        for param in params:
            param.grad = torch.empty_like(param)
        with Refusing() as refusing:
            optimizer.step()
    return refusing


@pytest.mark.parametrize("rate", RATES.values(), ids=RATES.keys())
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_a_step_reads_nothing_from_the_device(
    takes: bool, options: dict[str, Any], rate: Callable[[float], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "check_tensor_lr", lambda lr: None)  # it refuses what has no number
    dtypes = (torch.float32, torch.bfloat16)
    params = [Parameter(torch.empty(shape, dtype=dtypes[at % 2], device="meta")) for at, shape in enumerate(SHAPES)]
    other = 1e-2 if options.get("trust_region") == "kl" else 5e-3
    optimizer = Arturo([{"params": params[:2]}, {"params": params[2:], "lr": other}], lr=1e-2, **options)
    for group in optimizer.param_groups:
        group["lr"] = rate(group["lr"])
    found = counted(optimizer)
    assert found.waits == []
    assert sum(found.operations.values()) > 100


@pytest.mark.parametrize("takes", ["kernel"], indirect=True)
@pytest.mark.parametrize("dtypes", [[torch.float32], [torch.bfloat16], [torch.float32, torch.bfloat16]], ids=str)
def test_launches_do_not_grow_with_the_number_of_tensors(takes: bool, dtypes: list[torch.dtype]) -> None:
    def launches(count: int) -> Counter[str]:
        kinds = [dtypes[at % len(dtypes)] for at in range(count)]
        params = [Parameter(torch.empty(30, 20, dtype=dtype, device="meta")) for dtype in kinds]
        operations = counted(Arturo(params, lr=1e-2, weight_decay=0.1)).operations
        return Counter({name: number for name, number in operations.items() if name not in VIEWS})

    few = launches(4)
    assert few == launches(40)
    assert few.total() < 400
