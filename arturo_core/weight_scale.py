"""How far a step may move the weights in proportion to their own size: the relative part of the trust radius.

A learning rate says nothing of the weights it moves. Where it asks for steps that are long beside the weights
themselves, as early in training from scratch, networks are damaged and do not recover when the rate falls. At the peak
of its schedule the radius is therefore at most

    ρ = α √(mean over the elements of all matrices of (θ²/min(m, n) + φ/(m n)))

for matrices of m × n: α times the weights' RMS, divided by √min(m, n) because an update whose entries agree changes a
matrix by up to that factor more, relative to its spectral norm, than its entries say (after the spectral condition of
Yang, Simon and Bernstein 2023, arXiv 2310.17813). The term φ/(m n) is a share of what matrices are initialised
with; weights that start at zero could not move without it. The mean is over the matrices of the groups that move,
weighted by lr², and leaves out those with an element that is not finite (or whose square overflows).

As the learning rate falls below its peak, so does the bound, to ρ·lr/peak. A schedule whose peak asks for more than ρ
thus ends as the largest does that asks for no more. Its warm-up ends sooner, and weight decay still follows the lr.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from arturo_core import reductions
from arturo_core.state import real_view
from arturo_core.trust_region import wide_dtype

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: α, trust radius in units of what is above.
RADIUS_PER_WEIGHT = 0.16

#: φ, share of the variance 1/max(m, n) of a matrix's initial weights.
INITIAL_SHARE = 0.1


def matrix_shape(param: Tensor) -> tuple[int, int] | None:
    """Rows and columns of a weight of two or more dimensions (all but the first are columns), None for others."""
    if param.dim() < 2 or param.numel() == 0:
        return None
    return param.shape[0], param.numel() // param.shape[0]


#: Elements of a norm: float32 sums of more lose digits, and differ with how weights are split.
SLICE = 1 << 16


def radius(
    groups: Mapping[int, Sequence[Tensor]],
    rates: Mapping[int, Tensor],
    home: torch.device,
    process_group: ProcessGroup | None,
) -> Tensor:
    """ρ (weight units), 0-dimensional, wide, on ``home``; infinite where no matrices move.

    Args:
        groups: the parameters of every group that moves, with or without a gradient in this step.
        rates: their learning rates, 0-dimensional, wide, on ``home``.
        home: device of the scalars.
        process_group: ranks that share the sum, or None.
    """
    lr = torch.stack(list(rates.values()))
    moves = torch.isfinite(lr) & (lr > 0.0)
    lr = torch.where(moves, lr, 0.0)
    weight = torch.where(moves, (lr / lr.amax()) ** 2, 0.0)
    found = torch.stack([sums(groups.get(group, ()), home) for group in rates])
    scale, count = reductions.across((weight[:, None] * found).sum(dim=0), process_group).unbind()
    relative = RADIUS_PER_WEIGHT * torch.sqrt(scale / count)
    return torch.where(torch.isfinite(relative) & (count > 0.0), relative, torch.inf)


def sums(params: Sequence[Tensor], home: torch.device) -> Tensor:
    """Σ(θ²/min(m, n) + φ/(m n)) and the number of elements over the matrices; shape (2,), wide, on ``home``."""
    alike: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, int, int]]] = {}
    for param in params:
        shape = matrix_shape(param)
        if shape is not None:
            weight = real_view(param.detach())
            alike.setdefault((weight.device, weight.dtype), []).extend((part, *shape) for part in _slices(weight))
    total = torch.zeros(2, dtype=wide_dtype(home), device=home)
    for (_, dtype), parts in alike.items():
        norms = torch._foreach_norm(
            [part for part, _, _ in parts], 2, dtype=torch.float64 if dtype == torch.float64 else torch.float32
        )
        finite = [torch.isfinite(norm) for norm in norms]
        # Shapes enter as numbers of the host: a tensor of them would have to be copied to the device at every step.
        scaled = torch._foreach_mul(norms, [min(rows, columns) ** -0.5 for _, rows, columns in parts])
        squares = torch.stack(scaled).to(home, total.dtype).square()
        kept = torch.stack(finite).to(home)
        initial = torch.stack(
            torch._foreach_mul(
                list(kept.to(total.dtype).unbind()),
                [INITIAL_SHARE * part.numel() / (rows * columns) for part, rows, columns in parts],
            )
        )
        count = torch.stack(
            torch._foreach_mul(list(kept.to(total.dtype).unbind()), [float(part.numel()) for part, _, _ in parts])
        )
        total = total + torch.stack([torch.where(kept, squares, 0.0).sum() + initial.sum(), count.sum()])
    return total


def _slices(weight: Tensor) -> Sequence[Tensor]:
    return weight.view(-1).split(SLICE) if weight.is_contiguous() else (weight,)
