"""Bytes of memory that an eager step reads and writes, for each parameter element.

Every operation that touches the parameters counts what it reads and what it writes, as a GPU would move them if nothing
stayed in a cache between two operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from arturo_core import Arturo

#: Beyond the models whose steps are undone after an exception (arturo_core.step.transaction), which costs copies.
SIDE = 1100
#: Write without reading what was there.
OVERWRITES = ("aten::copy_", "aten::fill_", "aten::zero_")
#: Said to be written, but only when a gradient scaler hands over its scale.
NOT_WRITTEN = ("aten::_fused_adamw_", "grads")
#: Touch no memory, whatever their schema says.
NOTHING = ("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::detach")

BUILDERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "adamw": lambda params: AdamW(params, lr=1e-3, weight_decay=0.1, fused=True),
    "adamw foreach": lambda params: AdamW(params, lr=1e-3, weight_decay=0.1, foreach=True),
    "arturo": lambda params: Arturo(params, lr=1e-3, weight_decay=0.1, fused=False),
    "arturo paper": lambda params: Arturo.paper(params, weight_decay=0.1),
}


def bytes_per_parameter(name: str) -> float:
    """Of an ordinary step on one float32 matrix."""
    generator = torch.Generator().manual_seed(0)
    param = nn.Parameter(0.02 * torch.randn(SIDE, SIDE, generator=generator))
    optimizer = BUILDERS[name]([param])
    for _ in range(2):  # the first step allocates
        param.grad = 1e-3 * torch.randn(SIDE, SIDE, generator=generator)
        with Traffic() as traffic:
            optimizer.step()
    return float(traffic.bytes) / param.numel()


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        schema = func._schema
        if func.is_view or schema.name in NOTHING:
            return out
        for place, argument in enumerate(schema.arguments):
            value = args[place] if place < len(args) else (kwargs or {}).get(argument.name)
            written = argument.alias_info is not None and argument.alias_info.is_write
            written = written and (schema.name, argument.name) != NOT_WRITTEN
            read = not argument.is_out and not (written and schema.name in OVERWRITES)
            for tensor in tensors(value):
                self.bytes += (read + written) * tensor.numel() * tensor.element_size()
        for returned, value in zip(schema.returns, out if isinstance(out, tuple) else (out,), strict=False):
            if returned.alias_info is None:
                self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors(value))
        return out


def tensors(value: Any) -> Iterator[Tensor]:
    """A tensor, or those in a list."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)
