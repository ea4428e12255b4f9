"""What outlives a step: state dicts, pickles and copies of an optimizer, and the wrappers that pose as one."""

from __future__ import annotations

import copy
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from arturo_core import bookkeeping
from arturo_core.diagnostics import Report
from arturo_core.options import Options
from arturo_core.state import check_saved, restore

if TYPE_CHECKING:
    from typing_extensions import Self


class Persistent(Optimizer):
    """An optimizer with options, over the ranks of a process group if there is one, that is kept and copied exactly.

    Attributes:
        _options: checked.
        _process_group: ranks over which the parameters are split, or None.
        _agreed: where these ranks keep the scalars of a step, once they have agreed on that and the rest.
        _lost_process_group: whether it was pickled with a process group, which pickles cannot hold.
        _report: of the last step.
    """

    _options: Options
    _process_group: Any
    _agreed: torch.device | None
    _lost_process_group: bool
    _report: Report | None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict exactly: statistics keep their own dtype, and nothing is shared with ``state_dict``.

        A checkpoint of an older version may lack entries of the parameter groups; a warning names them.

        Raises:
            ValueError: the state is of another mode, optimizer or parameter list. Nothing is changed then.
        """
        if (wrapped := self._wrapped()) is not None:
            return wrapped.load_state_dict(state_dict)
        # Registered last, so it sees what the user's own hooks have made of the dictionary.
        handle = self.register_load_state_dict_pre_hook(lambda _, loaded: self._inspect(loaded))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self.__dict__.pop("_loading", None)

    def _inspect(self, loaded: dict[str, Any]) -> None:
        """Check what is about to be loaded, and keep it for :meth:`__setstate__`, which torch calls at the end."""
        keys = chain.from_iterable(group["params"] for group in loaded["param_groups"])
        params = list(chain.from_iterable(group["params"] for group in self.param_groups))
        pairs = dict(zip(keys, params, strict=False))  # torch itself complains about lengths, with a better message
        for key, saved in loaded["state"].items():
            if key in pairs and saved:
                check_saved(saved, pairs[key], self._options)
        bookkeeping.warn_of_missing(loaded["param_groups"], self.defaults)
        self._loading = [(pairs[key], saved) for key, saved in loaded["state"].items() if key in pairs]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch adds it to every optimizer's; this one has no such option
        self.__dict__.setdefault("_process_group", None)
        self.__dict__.setdefault("_agreed", None)
        self.__dict__.setdefault("_lost_process_group", False)
        self.__dict__.setdefault("_report", None)
        for param, saved in self.__dict__.pop("_loading", ()):
            self.state[param] = restore(saved, param, self._options)
        # Older checkpoints lack keys; distributed checkpointing loses all those of an empty first group.
        first = bookkeeping.first(self.param_groups)
        if "calls" not in first and self.state:
            first["calls"] = max(int(state["step"]) for state in self.state.values())
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            group.setdefault("peak_lr", group["lr"])  # the best there is to know
            bookkeeping.complete(group, first)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        if (wrapped := self._wrapped()) is not None:
            return copy.deepcopy(wrapped, memo)
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        return copied._continue(self, copy.deepcopy(self.__getstate__(), memo))

    def __copy__(self) -> Self:
        if (wrapped := self._wrapped()) is not None:
            return copy.copy(wrapped)
        return type(self).__new__(type(self))._continue(self, self.__getstate__())

    def _wrapped(self) -> Self | None:
        """The optimizer inside, if this is a wrapper that poses as one (Lightning's, Fabric's).

        It reads through to the optimizer, and keeps for itself what a method sets on it.
        """
        found: Self | None = self.__dict__.get("_optimizer")
        return found if isinstance(found, Persistent) else None

    def _continue(self, original: Self, state: dict[str, Any]) -> Self:
        """Become a copy of an optimizer with this state, over the same ranks."""
        self.__setstate__(state)
        self._process_group, self._lost_process_group = original._process_group, original._lost_process_group
        return self

    def __getstate__(self) -> dict[str, Any]:
        # A process group cannot be pickled; the last step's report is not state.
        lost = self._lost_process_group or self._process_group is not None
        return {**super().__getstate__(), "_options": self._options, "_lost_process_group": lost}
