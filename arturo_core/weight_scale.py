"""How far a step may move the weights in proportion to their own size: the relative part of the trust radius.

A learning rate says nothing of the weights it moves. Where it asks for steps that are long beside the weights
themselves, as early in training from scratch, networks are damaged and do not recover when the rate falls. The radius
is therefore at most

    α √(mean over the elements of all matrices of (θ²/min(m, n) + φ/(m n)))

for matrices of m × n: α times the weights' RMS, divided by √min(m, n) because an update whose entries agree changes a
matrix by up to that factor more, relative to its spectral norm, than its entries say (after the spectral condition of
Yang, Simon and Bernstein 2023, arXiv 2310.17813). The term φ/(m n) is a share of what matrices are initialised
with; weights that start at zero could not move without it.

The bound falls with the schedule as the learning rate does: a learning rate whose peak asks for more is replaced, over
the whole run, by the largest that does not. Learning rates above that train alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from arturo_core import reductions
from arturo_core.kernels.chunks import Source
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


def sums(sources: Sequence[Source], group: int, home: torch.device) -> Tensor:
    """Σ(θ²/min(m, n) + φ/(m n)) and the number of elements, over a group's matrices; shape (2,), wide, on ``home``."""
    alike: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, tuple[int, int]]]] = {}
    for source in sources:
        if source.group == group and source.matrix is not None:
            key = (source.theta.device, source.theta.dtype)
            alike.setdefault(key, []).append((source.theta, source.matrix))
    wide = wide_dtype(home)
    scale, count = torch.zeros((), dtype=wide, device=home), 0
    for (_, dtype), found in alike.items():
        norms = torch._foreach_norm(
            [theta for theta, _ in found], 2, dtype=torch.float64 if dtype == torch.float64 else torch.float32
        )
        # Shapes enter as numbers of the host: a tensor of them would have to be copied to the device at every step.
        norms = torch._foreach_mul(norms, [min(matrix) ** -0.5 for _, matrix in found])
        scale = scale + torch.stack(norms).to(home, wide).square().sum()
        scale = scale + INITIAL_SHARE * sum(theta.numel() / (rows * columns) for theta, (rows, columns) in found)
        count += sum(theta.numel() for theta, _ in found)
    return torch.stack([scale, torch.full_like(scale, count)])


def radius(
    sources: Sequence[Source], rates: Mapping[int, Tensor], home: torch.device, process_group: ProcessGroup | None
) -> Tensor:
    """The relative radius (weight units), 0-dimensional, wide, on ``home``; infinite where no matrices move.

    So it is where a weight is not finite: such a step is for the check of the gradients to refuse.

    Args:
        sources: the parameters of the step.
        rates: learning rates of the groups that take part, 0-dimensional, wide, on ``home``. One of 0 lends no size.
        home: device of the scalars.
        process_group: ranks that share the sum, or None.
    """
    found = [torch.where(lr > 0.0, sums(sources, group, home), 0.0) for group, lr in rates.items()]
    scale, count = reductions.across(torch.stack(found).sum(dim=0), process_group).unbind()
    relative = RADIUS_PER_WEIGHT * torch.sqrt(scale / count)
    return torch.where(torch.isfinite(relative) & (count > 0.0), relative, torch.inf)
