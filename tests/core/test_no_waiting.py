"""A step on an accelerator never waits for it: counted on fake tensors of a CUDA device, which no machine needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from arturo_core import Arturo
from arturo_core.kernels import triton
from arturo_core.step.chunks import Source

SHAPES = [(30, 20), (20,), (), (4, 3, 5, 5), (300, 400)]

#: What needs a number, or a size that only the device knows.
READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique", "bincount")


class Refusing(TorchDispatchMode):
    """Notes what a host would wait for: numbers read, and copies between it and the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.operations += 1
        name = func._schema.name.removeprefix("aten::")
        given = [one for one in _flat((args, kwargs)) if isinstance(one, Tensor)]
        if name.startswith(READS) and any(one.device.type != "cpu" for one in given):
            self.found.append(name)
        if name == "index" and any(one.dtype in (torch.bool, torch.uint8) for one in given[1:]):
            self.found.append("index by a mask")
        if name == "repeat_interleave" and kwargs.get("output_size") is None and given[0].device.type != "cpu":
            self.found.append(name)
        result = func(*args, **kwargs)
        made = [one for one in _flat(result) if isinstance(one, Tensor)]
        if name in ("_to_copy", "copy_", "_foreach_copy_") and not kwargs.get("non_blocking"):
            kinds = {one.device.type for one in (*given, *made)}
            if len(kinds) > 1:
                self.found.append(f"{name} between {' and '.join(sorted(kinds))}")
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
    "decay": {"weight_decay": 0.1},
    "length": {"length_scale": 1e-3},
}


@pytest.fixture(params=["kernel", "eager"])
def takes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "kernel":
        kernel = Kernel()
        monkeypatch.setattr(triton, "available", lambda device: device.type == "cuda")
        for name in ("eligible", "table", "survey", "observe", "apply"):
            monkeypatch.setattr(triton, name, getattr(kernel, name))
    return bool(request.param == "kernel")


@pytest.mark.parametrize("rate", [lambda: 1e-2, lambda: torch.tensor(1e-2), lambda: torch.tensor(1e-2, device="cuda")])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_reads_nothing_from_the_device(
    takes: bool, dtype: torch.dtype, options: dict[str, Any], rate: Callable[[], Any]
) -> None:
    """Of the steps after the first, which brings state and constants there."""
    with FakeTensorMode():
        params = [Parameter(torch.empty(shape, dtype=dtype, device="cuda")) for shape in SHAPES]
        if not takes:
            params.append(Parameter(torch.empty(7, dtype=torch.float64, device="cuda")))
        lr = rate()
        other = lr if options.get("trust_region") == "kl" else 0.5 * lr
        optimizer = Arturo([{"params": params[:2]}, {"params": params[2:], "lr": other}], lr=lr, **options)
        counts = []
        for _ in range(3):
            for param in params:
                param.grad = torch.empty_like(param)
            with Refusing() as refusing:
                optimizer.step()
            counts.append(refusing.operations)
        assert refusing.found == []
        assert counts[2] > 20
