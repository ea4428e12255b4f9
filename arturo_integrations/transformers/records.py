"""Which of the records that a Trainer logs are those of training steps.

Trainer's own hold ``loss``, ``grad_norm`` and ``learning_rate``. Trainers built on it rename some of them (setfit logs
``embedding_loss``) and add numbers of their own (TRL), and all log evaluations and a final summary by the same call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Trainer writes the first, and the second where it knows it, into every record of a training step; TRL's own loops
#: write lr. A loss alone marks none: evaluations log one too.
_OF_TRAINING, _OF_LOOPS = ("learning_rate", "grad_norm"), "lr"
#: How long it took is said of evaluations, predictions and the whole run, which has operations too. Training records
#: have the last name of these, where tokens are counted.
_SUMMED, _TIMED, _SPEED = "total_flos", "runtime", "train_runtime"
_STAGES = ("eval", "val", "valid", "validation", "test", "predict")
_EVALUATION = tuple(f"{stage}{mark}" for stage in _STAGES for mark in "_/")
_NEUTRAL = ("epoch", "step")


def is_training(logs: Mapping[str, Any], due: bool | None) -> bool:
    """Whether a record is that of a training step.

    A learning rate or a norm of gradients says so, unless all else is of an evaluation: some trainers write it
    everywhere. A record without them is one only where the Trainer was about to write one.

    Args:
        logs: the record.
        due: whether a step or an epoch has just ended after which the Trainer logs, and nothing been logged since;
            None in loops that announce no steps, where a loss has to do.
    """
    names = [str(name) for name in logs]
    if any(name.endswith(_SUMMED) or (name.endswith(_TIMED) and not name.endswith(_SPEED)) for name in names):
        return False
    of_evaluation = {name for name in names if name.startswith(_EVALUATION)}
    marks = {name for name in names if name == _OF_LOOPS or name.endswith(_OF_TRAINING)} - of_evaluation
    if marks:
        return not of_evaluation or bool({*names} - marks - of_evaluation - {*_NEUTRAL})
    if of_evaluation or any(name.endswith(_TIMED) for name in names):
        return False
    return "loss" in names if due is None else due


def stored(logs: Mapping[str, Any], state: Any) -> dict[str, Any] | None:
    """What the log history has of a record, if that is its last entry."""
    if not state.log_history:
        return None
    last: dict[str, Any] = state.log_history[-1]
    return last if last.get("step") == state.global_step and logs.keys() <= last.keys() else None
