"""Reading what has been learned of the weights: relative curvature and precision, without changing anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from arturo_core.algorithm.compact import CompactBelief, Kept, unpacked
from arturo_core.algorithm.forms import form_of
from arturo_core.distributed import sharding
from arturo_core.options import Options
from arturo_core.state import holds, table
from arturo_core.step import learning_rate
from arturo_core.storage import keeping
from arturo_core.storage.kinds import Kind, entries, kind_of

#: Elements looked at for the quantiles, evenly spaced through all parameters.
SAMPLE = 1 << 18


def precision(held: Mapping[str, Tensor], group: Mapping[str, Any], options: Options) -> Tensor:
    """λ of the weights whose state is given, in whatever storage (1/weight²; a new tensor)."""
    held = keeping.values(held)
    return form_of(options).precision(held, float(learning_rate.length(group, options)), options)


def relative_curvature(held: Mapping[str, Tensor], options: Options) -> Tensor:
    """The curvature of the weights whose state is given, relative to its prior."""
    return form_of(options).curvature(keeping.values(held), options)


def belief(held: Mapping[str, Tensor]) -> CompactBelief:
    """ĝ, R, s and D of weights whose state of the default form is given, at the current mean (new tensors)."""
    wide = keeping.values(held)
    kept = Kept(*(wide[name] for name in Kept._fields))
    return unpacked(kept, float(held["pending"]), float(held["moved"]))


def statistics(held: Mapping[str, Tensor], param: Tensor, options: Options) -> dict[str, Tensor]:
    """The rows of the table that are not scalars, as numbers that are wide enough to count with: this rank's part."""
    names = tuple(row.name for row in table(options) if not row.scalar)
    kept = {entry.name: sharding.shard(held[entry.name]) for entry in entries(names, kind_of(held))}
    return keeping.values(kept)


def widened(held: Mapping[str, Tensor], param: Tensor, options: Options) -> Mapping[str, Tensor]:
    """A parameter's state as if it were kept in float32, laid out as the parameter is."""
    if kind_of(held) is Kind.WIDE:
        return held
    found = statistics(held, param, options)
    scalars = {row.name: held[row.name] for row in table(options) if row.scalar}
    return scalars | {name: sharding.shard_like(param, value) for name, value in found.items()}


def half_spacing(groups: Sequence[Mapping[str, Any]]) -> float:
    """Half the distance between a weight and its neighbour in its dtype, the median (weight units).

    A shorter change of the weight is rounded away. Of an evenly spaced sample of this rank's weights that move; 0 if
    there are none, or most are 0.
    """
    params = trained(groups)
    stride = max(1, sum(param.numel() for param in params) // SAMPLE)
    gaps: list[Tensor] = []
    for param in params:
        for run in sharding.runs(param, param):
            weights = run.reshape(-1)[::stride].float()
            gap = 0.5 * torch.finfo(run.dtype).eps * torch.exp2(torch.frexp(weights).exponent.float() - 1.0)
            gaps.append(torch.where(weights == 0.0, 0.0, gap).to(gaps[0].device if gaps else gap.device))
    found = torch.cat(gaps) if gaps else torch.zeros(0, dtype=torch.float32, device="cpu")
    return float(found.median()) if found.numel() else 0.0


def trained(groups: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    """Parameters that are trained now: not frozen, in groups that do not stand still."""
    moving = [group for group in groups if not learning_rate.stands_still(group["lr"])]
    return [param for group in moving for param in group["params"] if param.requires_grad]


def sample(
    groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, Mapping[str, Any]], options: Options
) -> list[tuple[Tensor, Tensor]]:
    """Relative curvature and precision of an evenly spaced sample of this rank's weights that have been updated."""
    group_of = {param: group for group in groups for param in group["params"]}
    held = [(param, one) for param, one in state.items() if holds(one, options) and param in group_of]
    if not held:
        return []
    updated = torch.stack([one["step"].cpu() for _, one in held]).tolist()
    held = [pair for pair, steps in zip(held, updated, strict=True) if steps > 0]
    stride = max(1, sum(param.numel() for param, _ in held) // SAMPLE)
    found = []
    for param, one in held:
        part = {}
        for name, value in statistics(one, param, options).items():
            runs = sharding.runs(value, param) or [value[:0]]
            part[name] = torch.cat([run.reshape(-1)[::stride] for run in runs])
        relative = relative_curvature(part, options)
        if relative.numel():
            found.append((relative, precision(part, group_of[param], options)))
    return found
