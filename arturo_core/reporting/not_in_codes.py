"""Statistics that are wanted in 8 bits and cannot be: told once of an optimizer, before its first step."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from arturo_core.distributed import flat, fsdp1
from arturo_core.distributed.sharding import takes_part
from arturo_core.storage.choices import EIGHT_BITS
from arturo_core.storage.codes import BLOCK
from arturo_core.storage.kinds import divides

if TYPE_CHECKING:
    from arturo_core.optimizer import Arturo

#: Share of a model's weights from which on it is worth a line.
MOST = 0.5

_looked_at: weakref.WeakSet[Arturo] = weakref.WeakSet()


def notice(optimizer: Arturo) -> str | None:
    """What to say if most of a model's statistics are kept in bfloat16 although 8 bits were asked for."""
    if optimizer.options.state_dtype != EIGHT_BITS or optimizer in _looked_at:
        return None
    params = [param for group in optimizer.param_groups for param in group["params"] if takes_part(param)]
    others = [param for param in params if not divides(param)]
    total = sum(param.numel() for param in params)
    if not total:
        return None
    _looked_at.add(optimizer)
    share = sum(param.numel() for param in others) / total
    if share <= MOST:
        return None
    if any(fsdp1.is_shard(param) or flat.is_declared(param) for param in others):
        why = "the flat shards of FSDP1 and ZeRO have no rows. FSDP2 (fully_shard) keeps them"
    else:
        why = f"{BLOCK} elements of a row share a scale; most rows do not hold whole runs of them, or shards cut them"
    return (
        f'state_dtype="8bit" keeps the statistics of {share:.0%} of the weights in bfloat16 instead, 8 bytes a weight: '
        f'{why}. state_dtype="bfloat16" keeps this quiet.'
    )
