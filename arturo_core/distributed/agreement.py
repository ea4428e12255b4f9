"""What the ranks that hold parts of one model have to agree on before sums over them mean anything.

The ranks of a process group, and those of a DTensor's mesh, replicas too, decide together. At the first step that
moves, and after a group was added, they compare the number of parameter groups, options and learning rates; those of a
mesh also weight decay and ``maximize``. In every step they compare learning rates in their survey
(:mod:`arturo_core.step.gathering`), and a gradient that is not finite, or an option or gradient that is refused, counts
for all.

What leaves the others waiting, as in every collective: an exception outside the optimizer on one rank alone, and
learning rates of 0 on one alone, of a process group or on accelerators always, of a mesh until there is state. Of
replicated plain parameters (DDP) nothing is asked, and FSDP1's hybrid strategies replicate as DDP does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from arturo_core.options import Options
from arturo_core.step import learning_rate

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


#: Options that say how a rank computes, not what. The ranks of a process group may choose their own, as they may choose
#: weight decay and the direction; those of a mesh hold the same parameters and may not.
_LOCAL = ("compile", "state_dtype")


@dataclass(frozen=True)
class Claim:
    """What one rank's optimizer was built with.

    Attributes:
        options: those that the sums depend on, by name.
        own: what only ranks that hold parts of the same parameters must share, by name.
        rates: learning rates of its parameter groups; None where only a device knows, and where there is none.
        device: type of the device where it would keep the scalars of a step.
    """

    options: dict[str, str]
    own: dict[str, str]
    rates: list[float | None]
    device: str

    @classmethod
    def of(cls, groups: Sequence[Mapping[str, Any]], options: Options, home: torch.device) -> Claim:
        # Whichever kernel a rank has, its sums are the same.
        given = {name: str(value) for name, value in asdict(options).items() if name != "fused"}
        own = {name: given.pop(name) for name in _LOCAL}
        for index, group in enumerate(groups):
            for name in ("weight_decay", "maximize"):
                own[f"{name} of parameter group {index}"] = str(group[name])
        return cls(given, own, [_rate(group["lr"]) for group in groups], home.type)


def _rate(lr: Any) -> float | None:
    return float(lr) if learning_rate.known(lr) and not learning_rate.is_none(lr) else None


def agree(
    ranks: Sequence[ProcessGroup],
    groups: Sequence[Mapping[str, Any]],
    options: Options,
    home: torch.device,
    meshes: Sequence[ProcessGroup] = (),
) -> torch.device:
    """Compare the optimizers of all ranks; one exchange of Python objects for each dimension of a mesh or group.

    Args:
        ranks: the process groups whose product the parameters are split over.
        groups: this rank's parameter groups.
        options: this rank's.
        home: where this rank would keep the scalars of a step.
        meshes: the groups of the dimensions of the parameters' own meshes.

    Returns:
        Where it has to keep them: a rank without parameters of its own follows those whose are on an accelerator, for
        a collective on another device would be another collective.

    Raises:
        ValueError: on every rank, if they differ in options, parameter groups or rates; the message says in which.
    """
    claims = [Claim.of(groups, options, home)]
    for over in meshes:
        claims = _distinct(claim for part in _exchange(claims, over, home) for claim in part)
    differing = _differing(claims, alike=True)
    for over in ranks:
        parts = _exchange((claims, differing), over, home)
        claims = _distinct(claim for part, _ in parts for claim in part)
        differing = next(filter(None, (found for _, found in parts)), "")
    differing = differing or _differing(claims)
    if differing:
        raise ValueError(
            f"Arturo: the optimizers of ranks that hold parts of one model differ in {differing}. Give every rank the "
            "same parameter groups (an empty tensor stands for a group without parameters), options and learning rates."
        )
    away = sorted({claim.device for claim in claims} - {"cpu"})
    return home if home.type in away or not away else torch.empty(0, device=away[0]).device


def refusal(check: Callable[[], Any], together: bool) -> Exception | None:
    """What a check of this rank's own raises: at once, or where other ranks wait for this one to be raised by all.

    Args:
        check: raises if the step cannot be taken here.
        together: whether other ranks take part (:attr:`~arturo_core.distributed.reductions.Reduction.distributed`).
            Then the error is returned; the survey tells the other ranks of it.
    """
    if not together:
        check()
        return None
    try:
        check()
    except Exception as error:
        return error
    return None


def asking_nothing(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Groups with which a rank that refuses goes through a step that all ranks skip, without reading its own values."""
    return [{**group, "lr": math.nan, "weight_decay": 0.0} for group in groups]


def _exchange(mine: Any, over: ProcessGroup, home: torch.device) -> list[Any]:
    """The objects of all ranks of a group; of this one alone where its backend only pretends to send."""
    if torch.distributed.get_backend(over) == "fake":
        return [mine]
    gathered: list[Any] = [None] * torch.distributed.get_world_size(over)
    with _current(home):
        torch.distributed.all_gather_object(gathered, mine, group=over)
    return gathered


def _current(home: torch.device) -> AbstractContextManager[Any]:
    """Objects travel through the current device, which a script may have left at the first one on all ranks."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or home.type != accelerator.type or home.index is None:
        return nullcontext()
    return torch.accelerator.device_index(home.index)


def _distinct(claims: Iterable[Claim]) -> list[Claim]:
    """Each once, in their order: thousands of ranks mostly claim the same."""
    found: list[Claim] = []
    for claim in claims:
        if claim not in found:
            found.append(claim)
    return found


def _differing(claims: Sequence[Claim], alike: bool = False) -> str:
    """In what, with two of the values; nothing if all agree.

    Args:
        claims: of the ranks.
        alike: whether they hold parts of the same parameters.
    """
    first = claims[0]
    for claim in claims:
        if len(claim.rates) != len(first.rates):
            return f"the number of parameter groups ({len(first.rates)} and {len(claim.rates)})"
        for name, value in (claim.options | (claim.own if alike else {})).items():
            if value != (before := (first.options | first.own)[name]):
                return f"{name} ({before} and {value})"
    for index, rates in enumerate(zip(*(claim.rates for claim in claims), strict=True)):
        known = [rate for rate in rates if rate is not None]
        if len(set(known)) > 1:
            return f"lr of parameter group {index} ({min(known)} and {max(known)})"
    return ""
