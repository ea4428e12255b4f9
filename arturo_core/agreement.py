"""What the ranks of a process group have to agree on before sums over them mean anything.

Parameters that say themselves how they are split need none of this: their frameworks give every rank the same groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from arturo_core import learning_rate
from arturo_core.options import Options

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Claim:
    """What one rank's optimizer was built with; values that only a device knows are left out (None)."""

    options: dict[str, str]
    groups: list[dict[str, float | bool | None]]
    device: str

    @classmethod
    def of(cls, groups: Sequence[Mapping[str, Any]], options: Options, home: torch.device) -> Claim:
        return cls(
            options={name: str(value) for name, value in asdict(options).items()},
            groups=[
                {
                    "lr": float(group["lr"]) if learning_rate.known(group["lr"]) else None,
                    "weight_decay": float(group["weight_decay"]),
                    "maximize": bool(group["maximize"]),
                }
                for group in groups
            ],
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
        ValueError: on every rank, if they differ in options or parameter groups; the message says in which.
    """
    claims = [Claim.of(groups, options, home)]
    for over in ranks:
        gathered: list[Any] = [None] * torch.distributed.get_world_size(over)
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


def _differing(claims: Sequence[Claim]) -> str:
    """In what, with two of the values; nothing if all agree."""
    first = claims[0]
    for claim in claims:
        if len(claim.groups) != len(first.groups):
            return f"the number of parameter groups ({len(first.groups)} and {len(claim.groups)})"
        pairs: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = [("options", first.options, claim.options)]
        pairs += [
            (f"parameter group {index}", one, other)
            for index, (one, other) in enumerate(zip(first.groups, claim.groups, strict=True))
        ]
        for where, one, other in pairs:
            for name in one:
                if one[name] != other[name]:
                    return f"{where}: {name} ({one[name]} and {other[name]})"
    return ""
