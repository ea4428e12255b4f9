"""Before a step: what takes part, everything that can be wrong with it, and the state that is missing."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from arturo_core.distributed.refusals import check_gradient, check_layout, check_parameter
from arturo_core.distributed.sharding import takes_part
from arturo_core.kernels import select
from arturo_core.names import name_of
from arturo_core.options import Options, check_group, check_tensor_lr, check_tolerance
from arturo_core.state import allocate, check_free, check_held, holds
from arturo_core.step import bookkeeping, learning_rate
from arturo_core.storage.kinds import arithmetic, check_storage

Groups = Sequence[dict[str, Any]]
State = MutableMapping[Tensor, Any]


def taking_part(groups: Groups, state: State, options: Options) -> list[Tensor]:
    """The parameters that are trained or have been: frozen ones never matter, whatever they are."""
    params = [param for group in groups for param in group["params"]]
    return [param for param in params if takes_part(param) or holds(state.get(param), options)]


def prepare(params: Sequence[Tensor], groups: Groups, state: State, options: Options, process_group: Any) -> None:
    """Check everything, and then allocate what is missing.

    Args:
        params: those that take part.
        groups: of the optimizer.
        state: of the optimizer.
        options: of the optimizer.
        process_group: ranks over which the parameters are split, or None.

    Raises:
        RuntimeError, ValueError, TypeError: a group, a gradient or a statistic cannot be used; nothing has changed.
    """
    check_groups(groups, options)
    for param in params:
        which = partial(name_of, groups, param)
        if param.grad is not None:
            check_gradient(param, which)
        held = state.get(param)
        if holds(held, options):
            check_held(held, param, options, which)
        else:
            check_new(groups, param, options, process_group)
            check_free(held, options, which)
    # With or without a gradient: checkpoints then never lack a key.
    for param in params:
        if not holds(state.get(param), options):
            # Others may keep entries of their own here.
            state.setdefault(param, {}).update(allocate(param, options))


def check_groups(groups: Groups, options: Options) -> None:
    """Refuse what a user may have set in a group; plain numbers that are kept as tensors become such.

    Raises:
        ValueError, TypeError: nothing has changed but for that.
    """
    for group in groups:
        bookkeeping.adopt(group, options)
        check_tensor_lr(group["lr"])
        if learning_rate.known(group["lr"]):
            check_group(group, options)


def check_new(groups: Groups, param: Tensor, options: Options, process_group: Any) -> None:
    """Refuse a parameter that cannot be trained as asked: its layout, a kernel demanded, the tolerance of sums."""
    check_parameter(param, name_of(groups, param))
    check_storage(param, name_of(groups, param), options)
    check_layout(param, process_group)
    if options.fused:
        select.check_fused([param], options)
    check_tolerance(options, arithmetic(param, options))
