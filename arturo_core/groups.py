"""What an optimizer's user changes between steps: parameter groups, the schedule, the ranks, missing state."""

from __future__ import annotations

from typing import Any

import torch

from arturo_core import habits
from arturo_core.distributed.refusals import check_layout
from arturo_core.distributed.sharding import takes_part
from arturo_core.distributed.types import DeviceMesh, ProcessGroup
from arturo_core.options import check_group, check_process_group
from arturo_core.reporting.readable import Readable
from arturo_core.state import forget
from arturo_core.step import bookkeeping, preparing, rehearsal


class Grouped(Readable):
    """An optimizer whose groups, schedule and ranks can be changed between steps."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; it may set ``lr``, ``weight_decay`` and ``maximize``.

        Raises:
            ValueError, TypeError: the group or a parameter in it cannot be optimised. Nothing is added then.
        """
        if (wrapped := self._wrapped()) is not None:
            return wrapped.add_param_group(param_group)
        given = frozenset(param_group)  # torch adds the defaults to it
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_group(group, self._options)
            habits.check_group(group, given, self.param_groups[:-1])
            for param in group["params"]:
                if takes_part(param):
                    preparing.check_new(self.param_groups, param, self._options, self._process_group)
            if len({id(param) for param in group["params"]}) != len(group["params"]):
                raise ValueError(
                    "Arturo: a parameter appears twice in one group. Pass each parameter once (tied weights are one "
                    "parameter: model.parameters() lists them once)."
                )
        except (ValueError, TypeError):
            self.param_groups.pop()
            raise
        bookkeeping.complete(group, bookkeeping.first(self.param_groups), self._options)
        self._agreed = self._roster = None

    def restart_schedule(self, *, keep_statistics: bool = True) -> None:
        """Begin a new learning-rate schedule: forget the largest learning rate so far, and the length ℓ with it.

        A learning rate below the largest so far counts as the end of a schedule: the trust radius shrinks with it, and
        the filter averages over more steps. Call this before a second schedule whose peak is lower: after a
        learning-rate sweep, between the stages of a training, or where lr was once far too large.

        Args:
            keep_statistics: keep what has been learned of gradients, noise and curvature. False forgets that too, as
                for other data or other weights; the counters of :meth:`diagnostics` go on.
        """
        if (wrapped := self._wrapped()) is not None:
            return wrapped.restart_schedule(keep_statistics=keep_statistics)
        for group in self.param_groups:
            bookkeeping.forget_schedule(group, not keep_statistics)
        if not keep_statistics:
            for held in self.state.values():
                forget(held, self._options)

    def split_over(self, process_group: ProcessGroup | DeviceMesh | None) -> None:
        """Take sums over the ranks of a group from the next step on.

        For frameworks that split the parameters of an optimizer after it was built; otherwise give ``process_group`` to
        the constructor.

        Raises:
            ValueError: the sums could not follow the parameters' layout. Nothing has changed then.
        """
        if (wrapped := self._wrapped()) is not None:
            return wrapped.split_over(process_group)
        check_process_group(process_group)
        for group in self.param_groups:
            for param in group["params"]:
                if takes_part(param):
                    check_layout(param, process_group)
        self._process_group = process_group
        self._agreed = self._roster = None
        self._lost_process_group = False

    @torch.no_grad()
    def allocate_state(self) -> None:
        """Give every parameter that is trained its state, as it is before the first gradient; nothing else changes.

        For what reads a checkpoint into the state that there is, or wants to know its size. No rank waits for another.

        Raises:
            RuntimeError, ValueError, TypeError: what a step would raise of groups, gradients or existing statistics.
        """
        if (wrapped := self._wrapped()) is not None:
            return wrapped.allocate_state()
        with rehearsal.aside(param for group in self.param_groups for param in group["params"]):
            params = preparing.taking_part(self.param_groups, self.state, self._options)
            preparing.prepare(params, self.param_groups, self.state, self._options, self._process_group)
