"""How far a step may move the weights in proportion to their own size: the relative part of the trust radius.

A learning rate says nothing of the weights it moves. Where it asks for steps that are long beside the weights
themselves, as early in training from scratch, networks are damaged and do not recover when the rate falls. The radius
is therefore at most

    α √(mean over the elements of all matrices of (θ²/min(m, n) + φ/(m n)))

for matrices of m × n: α times the weights' RMS, divided by √min(m, n) because an update whose entries agree changes a
matrix by up to that factor more, relative to its spectral norm, than its entries say (after the spectral condition of
Yang, Simon and Bernstein 2023, arXiv 2310.17813). The term φ/(m n) is a share of what matrices are initialised
with; weights that start at zero could not move without it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from arturo_core.kernels.chunks import Source
from arturo_core.trust_region import wide_dtype

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


def squared_radius(total: Tensor) -> Tensor:
    """Square of the relative radius (weight units²) from :func:`sums`; infinite where there are no matrices.

    So it is where a weight is not finite: such a step is for the check of the gradients to refuse.
    """
    squared = RADIUS_PER_WEIGHT**2 * total[0] / total[1]
    return torch.where(torch.isfinite(squared) & (total[1] > 0.0), squared, torch.inf)
