"""What a step is about to work on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from arturo_core.distributed.reductions import Reduction
from arturo_core.step.chunks import Chunk, Source
from arturo_core.step.roster import Roster


class Found(NamedTuple):
    """What of the parameters is here, before anything of it has changed.

    Attributes:
        chunks: everything that has a gradient, cut up; none if this rank refuses the step.
        empty: parameters of which this rank holds no elements.
        moving: indices of the groups that move.
        reduction: over the ranks.
        home: where the step's scalars live.
        sizes: of the weights, see :func:`arturo_core.step.gathering.sizes`.
        refusal: why this rank cannot take the step.
        roster: that has answered for all parameters.
    """

    chunks: list[Chunk]
    empty: list[Source]
    moving: list[int]
    reduction: Reduction
    home: torch.device
    sizes: Tensor
    refusal: Exception | None = None
    roster: Roster | None = None
