"""What the ranks of a process group have to agree on before sums over them mean anything.

Parameters that say themselves how they are split need none of this: their frameworks give every rank the same groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from arturo_core import learning_rate
from arturo_core.options import Options

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


#: Options that say how a rank computes, not what; as weight decay and the direction, each may choose its own.
_LOCAL = ("compile", "state_dtype")


@dataclass(frozen=True)
class Claim:
    """What one rank's optimizer was built with.

    Attributes:
        options: those that the sums depend on, by name.
        rates: learning rates of its parameter groups; None where only a device knows.
        device: type of the device where it would keep the scalars of a step.
    """

    options: dict[str, str]
    rates: list[float | None]
    device: str

    @classmethod
    def of(cls, groups: Sequence[Mapping[str, Any]], options: Options, home: torch.device) -> Claim:
        return cls(
            options={name: str(value) for name, value in asdict(options).items() if name not in _LOCAL},
            rates=[float(group["lr"]) if learning_rate.known(group["lr"]) else None for group in groups],
            device=home.type,
        )


def agree(
    ranks: Sequence[ProcessGroup], groups: Sequence[Mapping[str, Any]], options: Options, home: torch.device
) -> torch.device:
    """Compare the optimizers of all ranks; one exchange of Python objects for each of the process groups.

    Args:
        ranks: the process groups whose product the parameters are split over.
        groups: this rank's parameter groups.
        options: this rank's.
        home: where this rank would keep the scalars of a step.

    Returns:
        Where it has to keep them: a rank without parameters of its own follows those whose are on an accelerator, for
        a collective on another device would be another collective.

    Raises:
        ValueError: on every rank, if they differ in options, parameter groups or rates; the message says in which.
    """
    claims = [Claim.of(groups, options, home)]
    for over in ranks:
        gathered: list[Any] = [None] * torch.distributed.get_world_size(over)
        with _current(home):
            torch.distributed.all_gather_object(gathered, claims, group=over)
        claims = [claim for part in gathered for claim in part]
    differing = _differing(claims)
    if differing:
        raise ValueError(
            f"Arturo: the optimizers of the ranks of the process group differ in {differing}. Give every rank the same "
            "parameter groups (an empty tensor stands for a group without parameters), options and learning rates."
        )
    away = sorted({claim.device for claim in claims} - {"cpu"})
    return home if home.type in away or not away else torch.empty(0, device=away[0]).device


def _current(home: torch.device) -> AbstractContextManager[Any]:
    """Objects travel through the current device, which a script may have left at the first one on all ranks."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or home.type != accelerator.type or home.index is None:
        return nullcontext()
    return torch.accelerator.device_index(home.index)


def _differing(claims: Sequence[Claim]) -> str:
    """In what, with two of the values; nothing if all agree."""
    first = claims[0]
    for claim in claims:
        if len(claim.rates) != len(first.rates):
            return f"the number of parameter groups ({len(first.rates)} and {len(claim.rates)})"
        for name, value in claim.options.items():
            if value != first.options[name]:
                return f"{name} ({first.options[name]} and {value})"
    for index, rates in enumerate(zip(*(claim.rates for claim in claims), strict=True)):
        known = [rate for rate in rates if rate is not None]
        if len(set(known)) > 1:
            return f"lr of parameter group {index} ({min(known)} and {max(known)})"
    return ""
