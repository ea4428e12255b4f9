"""Which of the records that a Trainer logs are those of training steps.

Trainer's own hold ``loss``, ``grad_norm`` and ``learning_rate``. Trainers built on it rename some of them (setfit logs
``embedding_loss``) and add numbers of their own (TRL), and all log evaluations and a final summary by the same call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Trainer (TRL's own loops: lr) writes these into the record of a training step, and into no other.
_OF_TRAINING = ("learning_rate", "grad_norm", "loss", "lr")
#: How long it took is said of evaluations, predictions and the whole run; the last has operations too.
_TIMED, _SUMMED = "runtime", "total_flos"
_EVALUATION = ("eval_", "eval/", "test_", "test/", "predict_", "predict/")


def is_training(logs: Mapping[str, Any], due: bool) -> bool:
    """Whether a record is that of a training step.

    Args:
        logs: the record.
        due: whether a step or an epoch has just ended after which the Trainer logs, and nothing been logged since.
    """
    if any(name in logs for name in _OF_TRAINING):
        return True
    names = [str(name) for name in logs]
    if _SUMMED in logs or any(name.endswith(_TIMED) or name.startswith(_EVALUATION) for name in names):
        return False
    return due or any(name.endswith(_OF_TRAINING[:2]) for name in names)


def stored(logs: Mapping[str, Any], state: Any) -> dict[str, Any] | None:
    """What the log history has of a record, if that is its last entry."""
    if not state.log_history:
        return None
    last: dict[str, Any] = state.log_history[-1]
    return last if last.get("step") == state.global_step and logs.keys() <= last.keys() else None
