"""Kernels that take all tensors of a parameter group at once, and what a step asks of them.

They work on the tensors where they are: nothing is packed, cut or copied. A kernel runs the default form without a
prior; everything else stays with the passes over chunks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from arturo_core.kernels.passes import CompactObserved, GroupTerms

if TYPE_CHECKING:
    from arturo_core.algorithm.compact import Gains
    from arturo_core.step.chunks import Source


class Kernel(Protocol):
    """Passes over many tensors at once; they take a table of sources. Sums are of each, shape (sources, …), float64.

    An exception comes before the first write. Scalars and sums are on the sources' device, and nothing waits for it.
    ``seeds`` round a narrow state: a key, and the place of the first element in its whole parameter, of each source;
    int64.

    Attributes:
        KINDS: dtypes of weights that it takes.
    """

    KINDS: Mapping[torch.dtype, Any]

    def eligible(self, source: Source) -> bool:
        """Whether the kernel can work on it: dtypes, and one dense memory order for weights, gradient and state."""

    def table(self, sources: Sequence[Source]) -> Any:
        """What the kernel needs to know of the sources, for all passes of a step."""

    def outline(self, table: Any) -> Any:
        """What of a table may be kept for the next step; no tensor lives on in it."""

    def renewed(self, outline: Any, sources: Sequence[Source]) -> Any:
        """The table of the same sources; only their gradients may lie elsewhere."""

    def survey(self, sources: Any, squares: bool) -> tuple[Tensor, Tensor]:
        """1 if a gradient is not usable, else 0; and Σθ² of each source, if it is asked for."""

    def observe(
        self,
        sources: Any,
        gains: Tensor,
        ok: Tensor,
        decay: Tensor | None,
        length: Tensor,
        maximize: bool,
        seeds: Tensor | None = None,
    ) -> Tensor:
        """Σ a²/b, Σ sσ, Σ σ, Σ e²/S, Σ (a/b)². Columns of ``gains``: those of :class:`Gains`, one row a source."""

    def apply(self, sources: Any, factor: Tensor, length: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Σθ² after the step."""


def observe(
    kernel: Kernel,
    table: Any,
    count: int,
    gains: Gains,
    terms: GroupTerms,
    maximize: bool,
    seeds: Tensor | None = None,
) -> CompactObserved:
    """The first pass over a number of sources, of one parameter group."""
    columns = torch.stack([column.expand(count) for column in gains], dim=1)
    sums = kernel.observe(table, columns, terms.ok, terms.decay, terms.length, maximize, seeds).sum(dim=0)
    decrement, stiffness, deviation, surprise, squared = sums.unbind()
    return CompactObserved(decrement, stiffness, deviation, surprise, squared)
