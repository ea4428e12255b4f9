"""What the console shows of a training record: a few of our numbers, where the log history and reporters get all.

Trainer gives one dictionary to all callbacks, its printer and its progress bar among them. These two are last, but for
callbacks that are added later, so the dictionary stays as it is, and they are shown a shorter one.
"""

from __future__ import annotations

import functools
from typing import Any

from transformers.trainer_callback import PrinterCallback, ProgressCallback

from arturo_integrations.metrics import PREFIX

#: The numbers that are shown.
SHOWN = ("eta", "kl_ratio", "bound_active", "step_rms", "skipped_steps")


def brief(logs: dict[str, Any]) -> dict[str, Any]:
    """A record without most of our numbers; the record itself if it has none of them."""
    hidden = {key for key in logs if str(key).startswith(PREFIX) and str(key)[len(PREFIX) :] not in SHOWN}
    return {key: value for key, value in logs.items() if key not in hidden} if hidden else logs


def shorten() -> None:
    """Have Trainer's printer and progress bar show brief records; their subclasses too, as far as they call them."""
    for callback in (PrinterCallback, ProgressCallback):
        _wrap(callback)


def _wrap(callback: Any) -> None:
    original = callback.on_log
    if getattr(original, "_is_brief", False):
        return

    @functools.wraps(original)
    def on_log(self: Any, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> Any:
        shown = brief(logs) if isinstance(logs, dict) else logs
        return original(self, args, state, control, logs=shown, **kwargs)

    on_log._is_brief = True  # type: ignore[attr-defined]
    callback.on_log = on_log
