"""What outlives a step: state dicts, pickles and copies of an optimizer, and the wrappers that pose as one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from arturo_core import habits, surroundings
from arturo_core.contexts import is_fake, lasting
from arturo_core.names import few, name_of
from arturo_core.options import Options
from arturo_core.reporting.diagnostics import Report
from arturo_core.state import check_saved, converts, forget, holds, restore
from arturo_core.step import bookkeeping
from arturo_core.step.rehearsal import aside
from arturo_core.step.roster import Roster
from arturo_core.step.transaction import TornStep
from arturo_core.step.weight_scale import Squares
from arturo_core.storage.kinds import kind_of

if TYPE_CHECKING:
    from typing_extensions import Self


def _alone(value: Any) -> Any:
    """A tensor itself, or a copy of a scalar that is a view of more."""
    if type(value) is not Tensor or value.dim() or is_fake(value):
        return value
    return value if value.untyped_storage().nbytes() == value.element_size() else value.clone()


class Persistent(Optimizer):
    """An optimizer with options, over the ranks of a process group if there is one, that is kept and copied exactly.

    Attributes:
        _options: checked.
        _process_group: ranks over which the parameters are split, or None.
        _agreed: where these ranks keep the scalars of a step, once they have agreed on that and the rest.
        _lost_process_group: whether it was pickled with a process group, which pickles cannot hold.
        _report: of the last step.
        _torn: whether a step broke off in the middle and could be neither undone nor finished.
        _squares: Σθ² of weights that the last step has left.
        _roster: what the last step found out about its parameters, if that holds for the next.
    """

    _options: Options
    _process_group: Any
    _agreed: torch.device | None
    _lost_process_group: bool
    _report: Report | None
    _torn: bool
    _squares: Squares
    _roster: Roster | None

    def _begin(self, options: Options, process_group: Any) -> None:
        """What an optimizer is before its first step."""
        self._options, self._process_group, self._lost_process_group = options, process_group, False
        self._agreed, self._report, self._torn = None, None, False
        self._squares, self._roster = Squares(), None

    def _check_whole(self) -> None:
        """Raise where an earlier step broke off in the middle, or a pickle has lost the ranks."""
        if self._torn:
            raise TornStep(
                "Arturo: an earlier step broke off in the middle; weights and statistics are a mixture of two steps. "
                "Load the last checkpoint of both."
            )
        if self._lost_process_group:
            raise RuntimeError(
                "Arturo: this optimizer was pickled with a process_group, which cannot be pickled. Call "
                "split_over(process_group) before the first step; split_over(None) if all parameters are here."
            )

    def state_dict(self) -> dict[str, Any]:
        """State and parameter groups, as every ``torch.optim`` optimizer gives them.

        The parameter groups are a snapshot: no later step changes them. The state's tensors are the optimizer's own, as
        those of torch's optimizers are, scalars apart; ``copy.deepcopy`` keeps them as they are now.
        """
        if (wrapped := self._wrapped()) is not None:
            return wrapped.state_dict()
        with aside(param for group in self.param_groups for param in group["params"]):
            found = super().state_dict()
            for group in found["param_groups"]:
                for key, value in group.items():
                    if isinstance(value, Tensor):
                        group[key] = value.detach().clone()
            # Scalars that lie side by side would each bring all of them into a file of its own.
            for key, held in found["state"].items():
                found["state"][key] = {name: _alone(value) for name, value in held.items()}
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict exactly: statistics keep their own dtype, and nothing is shared with ``state_dict``.

        A checkpoint of an older version may lack entries of the parameter groups, and one of another list of
        parameters the state of some; a warning names them. Entries that this version does not know are kept.

        Raises:
            ValueError, TypeError: the state is of another mode, trust region, optimizer or parameter list, or has
                values that no step leaves. Nothing is changed then.
        """
        if (wrapped := self._wrapped()) is not None:
            return wrapped.load_state_dict(state_dict)
        # Registered last, so it sees what the user's own hooks have made of the dictionary.
        handle = self.register_load_state_dict_pre_hook(lambda _, loaded: self._inspect(loaded))
        try:
            with lasting(), aside(param for group in self.param_groups for param in group["params"]):
                super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self.__dict__.pop("_loading", None)
        self._torn = False

    def _inspect(self, loaded: dict[str, Any]) -> None:
        """Check what is about to be loaded, and keep it for :meth:`__setstate__`, which torch calls at the end."""
        keys = chain.from_iterable(group["params"] for group in loaded["param_groups"])
        params = list(chain.from_iterable(group["params"] for group in self.param_groups))
        pairs = dict(zip(keys, params, strict=False))  # torch itself complains about lengths, with a better message
        state = {key: saved for key, saved in loaded["state"].items() if key in pairs}
        foreign = all(bookkeeping.is_foreign(group) for group in loaded["param_groups"])
        for key, saved in state.items():
            if holds(saved, self._options) or (saved and foreign):
                check_saved(saved, pairs[key], self._options)
        groups = [group for group in loaded["param_groups"] if group["params"]]
        if groups and foreign and not any(state.values()):
            raise ValueError(
                "Arturo: the state to load is another optimizer's: its parameter groups hold "
                f"{', '.join(sorted({str(key) for group in groups for key in group} - {'params'}))}. Load the "
                "checkpoint of an Arturo, or begin without one."
            )
        hollow = any(is_fake(param) for param in params)
        for group in groups:
            bookkeeping.check_loaded(group, self.defaults, self._options, hollow)
        bookkeeping.warn_of_missing(loaded["param_groups"], self.defaults)
        self._warn_of_missing(pairs, state)
        self._warn_of_conversion(pairs, state)
        # Made now, so that whatever raises does before torch changes anything.
        self._loading = [(pairs[key], self._restored(saved, pairs[key])) for key, saved in state.items()]

    def _restored(self, saved: Mapping[str, Any], param: Tensor) -> dict[str, Any]:
        """What a parameter's state becomes, but for tensors of others, which torch has made its own by then."""
        # torch makes something else of text and the like.
        entries = {key: copy.deepcopy(value) for key, value in saved.items() if not isinstance(value, Tensor)}
        return entries | (restore(saved, param, self._options) if holds(saved, self._options) else {})

    def _warn_of_missing(self, pairs: Mapping[Any, Tensor], state: Mapping[Any, Any]) -> None:
        """Say which trainable parameters have no statistics in a state dict that has those of others."""
        known = {key for key, saved in state.items() if holds(saved, self._options)}
        lacking = [param for key, param in pairs.items() if param.requires_grad and key not in known]
        if known and lacking:
            names = [name_of(self.param_groups, param) for param in lacking]
            warnings.warn(
                f"Arturo: the state to load has no statistics of {len(names)} of {len(pairs)} parameters "
                f"({few(names)}): they start anew.",
                stacklevel=8,
            )

    def _warn_of_conversion(self, pairs: Mapping[Any, Tensor], state: Mapping[Any, Any]) -> None:
        """Say that a state dict keeps statistics in another way than this optimizer, which converts them."""
        known = {key: saved for key, saved in state.items() if holds(saved, self._options)}
        kinds = {kind_of(saved).value for key, saved in known.items() if converts(saved, pairs[key], self._options)}
        if kinds:
            name = str(self._options.state_dtype).removeprefix("torch.")
            warnings.warn(
                f"Arturo: the state to load is kept in {' and '.join(sorted(kinds))}, and is converted: this optimizer "
                f"has state_dtype={name}. Give it the checkpoint's to go on to the bit.",
                stacklevel=8,
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        surroundings.discover()
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch adds it to every optimizer's; this one has no such option
        self.defaults.setdefault(habits.MOMENTUM, habits.NO_MOMENTUM)  # pickles of older versions lack it
        self.__dict__.setdefault("_process_group", None)
        self.__dict__.setdefault("_agreed", None)
        self.__dict__.setdefault("_lost_process_group", False)
        self.__dict__.setdefault("_report", None)
        self.__dict__.setdefault("_torn", False)
        self._squares, self._roster = Squares(), None
        for param, restored in self.__dict__.pop("_loading", ()):
            forget(self.state[param], self._options)  # in whatever storage they were
            self.state[param].update(restored)
        # Older checkpoints lack keys; distributed checkpointing loses all those of an empty first group.
        first = bookkeeping.first(self.param_groups)
        held = [state for state in self.state.values() if holds(state, self._options)]
        if "calls" not in first and held:
            first["calls"] = max(int(state["step"]) for state in held)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            group.setdefault("peak_lr", group["lr"])  # the best there is to know
            bookkeeping.complete(group, first, self._options)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        if (wrapped := self._wrapped()) is not None:
            return copy.deepcopy(wrapped, memo)
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        with lasting():
            return copied._continue(self, copy.deepcopy(self.__getstate__(), memo))

    def __copy__(self) -> Self:
        if (wrapped := self._wrapped()) is not None:
            return copy.copy(wrapped)
        return type(self).__new__(type(self))._continue(self, self.__getstate__())

    def _wrapped(self) -> Self | None:
        """The optimizer inside, if this is a wrapper that poses as one: it has taken its class, not its options.

        It reads through to the optimizer, and keeps for itself what a method sets on it.
        """
        own = self.__dict__.get("_options")
        held = [one for one in self.__dict__.values() if issubclass(type(one), Persistent) and one is not self]
        return next((one for one in held if own is None or own is one._options), None)

    def _continue(self, original: Self, state: dict[str, Any]) -> Self:
        """Become a copy of an optimizer with this state, over the same ranks."""
        self.__setstate__(state)
        self._process_group, self._lost_process_group = original._process_group, original._lost_process_group
        return self

    def __getstate__(self) -> dict[str, Any]:
        # A process group cannot be pickled; the last step's report is not state.
        lost = self._lost_process_group or self._process_group is not None
        return {
            **super().__getstate__(),
            "_options": self._options,
            "_lost_process_group": lost,
            "_torn": self._torn,
        }
