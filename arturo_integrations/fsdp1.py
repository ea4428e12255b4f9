"""Which ranks the parameters of a ``FullyShardedDataParallel`` (FSDP1) model are split over.

FSDP1's parameters do not say so themselves, so :class:`arturo_core.Arturo` has to be given the group. FSDP2's
(``fully_shard``) are DTensors, which do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim.optimizer import ParamsT

from arturo_core import Arturo

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def process_group(model: nn.Module) -> ProcessGroup | None:
    """The ranks among which the shards of one replica of the model are divided; None if no module is FSDP1's.

    Under the hybrid strategies that is the group within a node: replicas are not summed.

    Raises:
        ValueError: modules of the model are divided over different ranks.
    """
    import torch.distributed

    if not torch.distributed.is_available():
        return None
    from torch.distributed import get_process_group_ranks
    from torch.distributed.fsdp import FullyShardedDataParallel

    modules = FullyShardedDataParallel.fsdp_modules(model)
    groups = [module.process_group for module in modules if module.process_group is not None]
    if not groups:
        return None
    ranks = {tuple(get_process_group_ranks(group)) for group in groups}
    if len(ranks) > 1:
        raise ValueError(
            f"Arturo: FSDP1 modules of the model are divided over different ranks: {sorted(ranks)}. The sums over all "
            "parameters need one group: wrap all modules with the same process_group and sharding_strategy."
        )
    return groups[0]


class AllocatedArturo(Arturo):
    """An ``Arturo`` whose state exists from the beginning, for frameworks that build and load in one go.

    Accelerate reads a sharded checkpoint of FSDP1 into the state that there is: into none, without a word, if no step
    has been taken yet.
    """

    def __init__(self, params: ParamsT, **options: Any) -> None:
        super().__init__(params, **options)
        self.allocate_state()
