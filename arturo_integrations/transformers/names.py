"""Adds the value ``"arturo"`` to transformers' enum of optimizer names.

``TrainingArguments`` converts its ``optim`` with ``OptimizerNames(value)`` and ``HfArgumentParser`` takes the
choices of ``--optim`` from the same enum, and neither has a plug-in point, so the enum itself has to grow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

OPTIMIZER_NAME = "arturo"


def extend_enum(enum_cls: Any, name: str, value: str) -> Any:
    """Adds a member to an existing string enum, as if it had been written in its class body.

    Args:
        enum_cls: A subclass of ``str`` and ``enum.Enum``.
        name: Name of the new member.
        value: Its value.

    Returns:
        The member with that value; the existing one if there is one, so the call can be repeated.
    """
    if value in enum_cls._value2member_map_:
        return enum_cls._value2member_map_[value]
    member: Any = str.__new__(enum_cls, value)
    member._name_ = name
    member._value_ = value
    member.__objclass__ = enum_cls
    member._sort_order_ = len(enum_cls._member_names_)
    enum_cls._member_names_.append(name)
    enum_cls._member_map_[name] = member
    enum_cls._value2member_map_[value] = member
    hashable_values = enum_cls.__dict__.get("_hashable_values_")  # `in` looks here since Python 3.13
    if hashable_values is not None:
        hashable_values.append(value)
    type.__setattr__(enum_cls, name, member)  # EnumMeta's own __setattr__ refuses to touch members
    return member


def optimizer_name() -> Any:
    """Returns ``OptimizerNames("arturo")``, and adds it to the enum if this process has not done so yet."""
    from transformers.training_args import OptimizerNames

    member = extend_enum(OptimizerNames, OPTIMIZER_NAME.upper(), OPTIMIZER_NAME)
    # Pickle asks the instance before the class. Naming this function in the pickle, rather than the enum,
    # makes a process that never imported the integration (one that reads `training_args.bin`, or a data
    # loader worker started with "spawn") register the name while it unpickles.
    member.__reduce_ex__ = _reduce
    return member


def _reduce(protocol: int) -> tuple[Callable[[], Any], tuple[()]]:
    return optimizer_name, ()
