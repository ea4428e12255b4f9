"""The Trainer's progress bar with one short line per evaluation instead of raw dictionaries."""

from __future__ import annotations

from typing import Any

from transformers import ProgressCallback


class ShortProgress(ProgressCallback):
    """`transformers.ProgressCallback`, its log lines reduced to what one watches."""

    def __init__(self) -> None:
        super().__init__()
        self.latest: dict[str, Any] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.latest.update(logs or {})
        if not state.is_world_process_zero or self.training_bar is None or "eval_loss" not in (logs or {}):
            return
        self.training_bar.write(line(state.global_step, self.latest))


def line(step: int, logs: dict[str, Any]) -> str:
    """What the latest logs say, in one line."""
    forms = {
        "loss": "training loss {:.3f}",
        "eval_loss": "validation loss {:.3f}",
        "eval_accuracy": "accuracy {:.1%}",
        "arturo/eta": "η {:.3g}",
        "arturo/kl_ratio": "KL/bound {:.3f}",
    }
    said = [form.format(float(logs[key])) for key, form in forms.items() if logs.get(key) is not None]
    return f"step {step:>5}: " + ", ".join(said)
