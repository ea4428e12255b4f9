"""A step seen layer by layer: who spends the KL divergence, where curvature has been learned, and where it has not.

One multiplier couples all layers, so no layer has a multiplier of its own; what it has is a share of the divergence. A
layer is a parameter here. Nothing of this is computed in a step: the weights are copied before it, and compared after.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from arturo_core.algorithm.forms import form_of
from arturo_core.distributed import sharding
from arturo_core.distributed.reductions import Reduction
from arturo_core.distributed.sharding import takes_part
from arturo_core.numerics import wide_dtype
from arturo_core.optimizer import Arturo
from arturo_core.reporting import readings
from arturo_core.state import holds
from arturo_core.step import bookkeeping, learning_rate

#: A weight's curvature has been learned where it is more than this away from its prior, relatively.
LEARNED = 0.1

#: What wrappers put into the names of parameters.
_WRAPPERS = ("_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module.")


class _Weights(NamedTuple):
    """The Gaussian over a parameter before a step: its runs on this rank; precisions where they are kept as state."""

    theta: list[Tensor]
    precision: list[Tensor] | None


class LayerWatch:
    """Looks at the layers in those steps of an optimizer that it is armed for.

    A watched step costs one more copy of the weights (their dtype), a pass over weights and state, and, where
    parameters are split over ranks, one small all-reduce for each sharded mesh dimension: then every rank has to arm
    the same steps.

    Args:
        optimizer: whose steps. Torch's own step hooks are used, so wrappers around it do not matter.
        names: ``model.named_parameters()``; by default the names that the optimizer was given with its parameters, else
            ``param 0`` and so on. Wrappers' parts of names (FSDP's, ``torch.compile``'s) are left out.
    """

    def __init__(self, optimizer: Arturo, names: Iterable[tuple[str, Tensor]] | None = None) -> None:
        self._optimizer = optimizer
        self._given = {} if names is None else {id(param): _clean(name) for name, param in names}
        self._armed = False
        self._before: dict[Tensor, _Weights] | None = None
        self._found: tuple[list[str], Tensor, int] | None = None
        self._hooks = [
            optimizer.register_step_pre_hook(self._copy),
            optimizer.register_step_post_hook(self._compare),
        ]

    def arm(self) -> None:
        """Watch the next step."""
        self._armed = True

    def close(self) -> None:
        """Watch no step any more; what has been found stays readable."""
        for hook in self._hooks:
            hook.remove()
        self._before = None

    def numbers(self) -> dict[str, dict[str, float]]:
        """The last watched step by layer, in the order of the parameters; empty before the first.

        * ``kl``: divergence spent, in nats. Of the step as the weights have taken it, after rounding to their dtype; in
          float32 and float64 the layers' sum is ``kl`` of :meth:`Arturo.diagnostics`.
        * ``kl_share``: its share of all layers'; 0 where none has moved.
        * ``step_rms``: RMS of the step without weight decay (weight units), and ``weight_rms``: of the weights.
        * ``curvature``: mean relative to its prior.
        * ``curvature_learned``: share of weights whose curvature is more than a tenth away from its prior.
        * ``curvature_floored``: share of weights whose curvature is at its floor (0.1 of the prior with "adaptive"
          noise), or not positive ("fixed").
        """
        if self._found is None:
            return {}
        names, sums, _ = self._found
        total = float(sums[:, 0].sum())
        found = {}
        for name, (kl, step, weight, curvature, learned, floored, count) in zip(names, sums.tolist(), strict=True):
            if count:
                found[name] = {
                    "kl": kl,
                    "kl_share": kl / total if total > 0.0 else 0.0,
                    "step_rms": (step / count) ** 0.5,
                    "weight_rms": (weight / count) ** 0.5,
                    "curvature": curvature / count,
                    "curvature_learned": learned / count,
                    "curvature_floored": floored / count,
                }
        return found

    @property
    def is_current(self) -> bool:
        """Whether the last watched step is the optimizer's last."""
        return self._found is not None and self._found[2] == self._calls()

    def _calls(self) -> int:
        return int(bookkeeping.first(self._optimizer.param_groups)["calls"])

    # -- the hooks ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _copy(self, *_: Any) -> None:
        if self._armed:
            params = (param for group in self._optimizer.param_groups for param in group["params"])
            self._before = {param: self._weights(param) for param in params if takes_part(param)}

    def _weights(self, param: Tensor) -> _Weights:
        theta = [run.clone() for run in sharding.runs(param, param)]
        if form_of(self._optimizer.options).tied:
            return _Weights(theta, None)  # λ is tied to the curvature, and the same after the step
        held = self._optimizer.state.get(param)
        if held is not None and holds(held, self._optimizer.options):
            return _Weights(theta, [run.clone() for run in sharding.runs(held["precision"], param)])
        return _Weights(theta, [torch.full_like(run, 1.0 / self._optimizer.options.init_variance) for run in theta])

    @torch.no_grad()
    def _compare(self, *_: Any) -> None:
        if self._before is None:
            return
        before, self._before, self._armed = self._before, None, False
        groups = [group for group in self._optimizer.param_groups if group["params"]]
        params = [param for group in groups for param in group["params"]]
        if not params:
            return
        ranks = sharding.process_groups(self._optimizer.process_group)
        reduction = Reduction.over(params, ranks)
        home = self._optimizer._home(reduction)
        own = self._names(groups)
        names = _union([*own.values()], ranks)
        row = {name: index for index, name in enumerate(names)}
        dtype = wide_dtype(home)
        sums = torch.zeros((len(reduction.layouts), len(names), 7), dtype=dtype, device=home)
        for group in groups:
            for param in group["params"]:
                if param in before and holds(self._optimizer.state.get(param), self._optimizer.options):
                    here = self._sums(param, before[param], group).to(home, dtype)
                    sums[reduction.number[id(param)], row[own[id(param)]]] += here
        self._found = (names, reduction.sum(sums), self._calls())

    def _sums(self, param: Tensor, before: _Weights, group: Mapping[str, Any]) -> Tensor:
        """Of the elements on this rank: ½Σλδ², Σδ², Σθ², Σs, how many s were learned, are floored, and all of them."""
        options, held = self._optimizer.options, self._optimizer.state[param]
        # Neither a skipped step nor one without a gradient has decayed the weights.
        report = self._optimizer.last_report
        decayed = report.ok.to(param.device) if report is not None and param.grad is not None else 0.0
        decay = learning_rate.scalar(group["lr"], param.device) * group["weight_decay"]
        kept = 1.0 - decay.clamp(max=1.0) * decayed
        shaped = {
            name: sharding.runs(value, param) for name, value in readings.statistics(held, param, options).items()
        }
        total = torch.zeros(7, dtype=wide_dtype(param.device), device=param.device)
        for index, (theta, old) in enumerate(zip(sharding.runs(param, param), before.theta, strict=True)):
            run = {name: runs[index] for name, runs in shaped.items()}
            relative = readings.relative_curvature(run, options)
            floor = form_of(options).least_curvature
            precision = readings.precision(run, group, options) if before.precision is None else before.precision[index]
            wide = torch.promote_types(theta.dtype, relative.dtype)
            theta = theta.to(wide)
            moved = theta - old.to(wide) * kept.to(wide)
            columns = [
                0.5 * precision * moved.square(),
                moved.square(),
                theta.square(),
                relative,
                (relative - 1.0).abs() > LEARNED,
                relative <= floor,
            ]
            sums = [column.sum(dtype=total.dtype) for column in columns]
            total += torch.stack([*sums, total.new_tensor(theta.numel())])
        return total

    def _names(self, groups: list[dict[str, Any]]) -> dict[int, str]:
        found = {}
        params = list(chain.from_iterable(group["params"] for group in groups))
        own = list(chain.from_iterable(group.get("param_names") or [None] * len(group["params"]) for group in groups))
        for index, (param, name) in enumerate(zip(params, own, strict=True)):
            found[id(param)] = self._given.get(id(param)) or (_clean(name) if name else f"param {index}")
        return found


def _clean(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _union(names: list[str], ranks: Iterable[Any]) -> list[str]:
    """All ranks' names, each once, in the same order on all of them."""
    for over in ranks:
        gathered: list[Any] = [None] * torch.distributed.get_world_size(over)
        torch.distributed.all_gather_object(gathered, names, group=over)
        names = list(dict.fromkeys(chain.from_iterable(gathered)))
    return list(dict.fromkeys(names))
