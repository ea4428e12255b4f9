"""Reads ``TrainingArguments.optim_args`` into keyword arguments of :class:`arturo_core.Arturo`.

Which keys exist and what type each has is read from the constructor's signature, never repeated here: an
option added to the optimizer can be given in ``optim_args`` at once.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import math
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union

import torch

from arturo_core import Arturo, habits
from arturo_core.storage.choices import EIGHT_BITS

# Parameters of the constructor that must not be set from `optim_args`, and what to do instead.
_REFUSED = {
    "params": "the Trainer passes the model's parameters itself",
    "lr": (
        "the Trainer schedules it, so set TrainingArguments(learning_rate=...), "
        "or give kl_bound=... for a trust region in nats"
    ),
    "weight_decay": (
        "the Trainer exempts biases and normalisation layers from it, so set TrainingArguments(weight_decay=...)"
    ),
    "process_group": (
        "a process group has no text form, so use "
        "Trainer(optimizer_cls_and_kwargs=(Arturo, {'process_group': ..., 'lr': ...}))"
    ),
}
_BOOLS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_KL_BOUND = "kl_bound"

#: Characters of a text that an error repeats.
_SHOWN = 60


def arturo_kwargs(optim_args: str | Mapping[str, Any] | None, learning_rate: float) -> dict[str, Any]:
    """Turns ``optim_args`` and ``learning_rate`` into keyword arguments of ``Arturo``.

    ``kl_bound=ε`` stands for ``trust_region="kl"`` with ``lr=ε``: the published bound in nats, which is then
    what the learning rate schedule acts on.

    Args:
        optim_args: ``"key=value,key=value"``; spaces and a trailing comma are allowed. A mapping of the same
            keys is read the same way.
        learning_rate: ``TrainingArguments.learning_rate``; becomes ``lr`` unless ``kl_bound`` is given.

    Returns:
        A new dictionary with ``lr`` and the options that were given, each of the type that the constructor
        asks for. Options that were not given are left to the constructor.

    Raises:
        ValueError: A key is unknown, given twice or not for ``optim_args``; a value cannot be read as the
            type of its option; ``kl_bound`` is not positive or contradicts ``trust_region``.
    """
    options = text_options()
    kwargs: dict[str, Any] = {"lr": learning_rate}
    given = _split(optim_args)
    for key, text in given.items():
        if key in _REFUSED:
            raise ValueError(f"optim_args: {key}={_short(text)}: {key!r} cannot be set here; {_REFUSED[key]}.")
        if key == _KL_BOUND:
            kwargs["lr"] = _positive(key, text)
        elif key in options:
            kwargs[key] = _read(key, text, options[key])
        else:
            shown = _short(key)
            raise ValueError(f"optim_args: {shown}={_short(text)}: unknown key {shown!r}.{_suggestion(key, options)}")
    if _KL_BOUND in given and kwargs.setdefault("trust_region", "kl") != "kl":
        raise ValueError(
            f"optim_args: kl_bound={_short(given[_KL_BOUND])} contradicts trust_region={kwargs['trust_region']}: "
            "a bound in nats is trust_region=kl. Drop one of the two."
        )
    return kwargs


def text_options() -> dict[str, Any]:
    """Returns the annotation of every option of ``Arturo`` that can be written in ``optim_args``.

    Options whose annotation has no text form are left out, as are those that the Trainer sets itself.
    """
    constructor = inspect.unwrap(Arturo.__init__)
    written = {
        name: parameter.annotation
        for name, parameter in inspect.signature(Arturo).parameters.items()
        if name not in _REFUSED
    }
    # Not get_type_hints(constructor): the types of the refused parameters need not exist at run time (a process
    # group is imported for type checkers only).
    holder = types.SimpleNamespace(__annotations__=written)
    hints = typing.get_type_hints(holder, globalns=vars(sys.modules[constructor.__module__]))
    return {name: hint for name, hint in hints.items() if _has_text_form(hint)}


def _split(optim_args: str | Mapping[str, Any] | None) -> dict[str, str]:
    if optim_args is None:
        return {}
    if isinstance(optim_args, Mapping):
        written = {str(key).strip(): str(value).strip() for key, value in optim_args.items()}
        return {key: text for key, text in written.items() if not _is_habit(key, text)}
    pairs: dict[str, str] = {}
    for item in optim_args.split(","):
        if not item.strip():
            continue
        key, equals, text = (part.strip() for part in item.partition("="))
        if _is_habit(key, text):  # before what follows is read: a tuple's own commas divide it
            continue
        if not (key and equals and text):
            raise ValueError(
                f"optim_args: {_short(item.strip())!r} is not of the form key=value (in {_short(optim_args)!r}); "
                'write for example optim_args="kl_rtol=1e-3,noise=fixed".'
            )
        if key in pairs:
            raise ValueError(
                f"optim_args: {_short(key)!r} is given twice, as {_short(pairs[key])} and as {_short(text)}."
            )
        pairs[key] = text
    return pairs


def _is_habit(key: str, text: str) -> bool:
    """Whether an option is another optimizer's, and off: it asks for nothing.

    Raises:
        ValueError: it is another optimizer's and asks for something, or another name or spelling of one of ours.
    """
    own = inspect.signature(Arturo).parameters
    ours = habits.synonym(key, own)
    if ours in _REFUSED and key not in own:
        raise ValueError(
            f"optim_args: {_short(key)}={_short(text)}: {_short(key)!r} is another name of {ours!r}, which cannot be "
            f"set here; {_REFUSED[ours]}."
        )
    meaning = habits.meaning(key, own)
    if meaning is None:
        return False
    if habits.is_off(key, _value(text)):
        return True
    raise ValueError(f"optim_args: {_short(key)}={_short(text)} is {meaning}")


def _value(text: str) -> Any:
    """What a text says: None, a truth value or a number; else the text."""
    for annotation in (float, bool, type(None)):
        with contextlib.suppress(ValueError):
            return _convert(text, annotation)
    return text


def _short(text: str) -> str:
    """The beginning of a text, and how long it is if that is not all."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


def _suggestion(key: str, options: Mapping[str, Any]) -> str:
    valid = [_KL_BOUND, *options]
    close = difflib.get_close_matches(key[:_SHOWN], valid, n=1)
    return (f" Did you mean {close[0]!r}?" if close else "") + f" Valid keys: {', '.join(valid)}."


def _positive(key: str, text: str) -> float:
    value: float = _read(key, text, float)
    if not 0 < value < math.inf:
        raise ValueError(f"optim_args: {key}={_short(text)}: expected a positive, finite number of nats.")
    return value


def _read(key: str, text: str, annotation: Any) -> Any:
    """Converts the text of one option, or raises a ``ValueError`` that says what would have been valid."""
    try:
        return _convert(text, annotation)
    except ValueError:
        expected = " or ".join(_describe(annotation))
        raise ValueError(f"optim_args: {key}={_short(text)}: expected {expected} for {key!r}.") from None


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union that have a text form; the annotation itself if it is not a union."""
    if typing.get_origin(annotation) in (Union, types.UnionType):
        members = tuple(member for member in typing.get_args(annotation) if _has_text_form(member))
        # A str beside a dtype is its name, or the storage that is none.
        return tuple(member for member in members if member is not str or torch.dtype not in members)
    return (annotation,)


def _has_text_form(annotation: Any) -> bool:
    if typing.get_origin(annotation) in (Union, types.UnionType):
        # `Tensor | None` can be written as "none" only, which is no use to anybody.
        return any(member is not type(None) for member in _alternatives(annotation))
    return annotation in (bool, int, float, str, torch.dtype, type(None)) or typing.get_origin(annotation) is Literal


def _convert(text: str, annotation: Any) -> Any:
    """Converts a text to a type; raises a bare ``ValueError`` if it cannot."""
    alternatives = _alternatives(annotation)
    if len(alternatives) == 1:
        annotation = alternatives[0]
    else:
        # None first: "none" means None even where a string would do.
        for member in sorted(alternatives, key=lambda member: member is not type(None)):
            with contextlib.suppress(ValueError):
                return _convert(text, member)
        raise ValueError(text)
    if typing.get_origin(annotation) is Literal:
        return _look_up(text, {str(choice): choice for choice in typing.get_args(annotation)})
    if annotation is type(None):
        return _look_up(text.lower(), {"none": None, "null": None})
    if annotation is bool:
        return _look_up(text.lower(), _BOOLS)
    if annotation is torch.dtype:
        return _look_up(text.lower() if text.lower() == EIGHT_BITS else text.removeprefix("torch."), _dtypes())
    value = annotation(text)
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(text)
    return value


def _look_up(text: str, choices: Mapping[str, Any]) -> Any:
    if text not in choices:
        raise ValueError(text)
    return choices[text]


def _dtypes() -> dict[str, torch.dtype | str]:
    found = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
    return {**found, EIGHT_BITS: EIGHT_BITS}


def _describe(annotation: Any) -> list[str]:
    """What may be written for an annotation, for error messages."""
    words = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "a text",
        torch.dtype: "a torch dtype such as float32 or bfloat16, or 8bit",
        type(None): "none",
    }
    described: list[str] = []
    for member in _alternatives(annotation):
        described += [words[member]] if member in words else map(str, typing.get_args(member))
    return described
