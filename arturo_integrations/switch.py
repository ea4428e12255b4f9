"""``ARTURO_MONITOR=0`` in the environment: no numbers and no advice in any framework's logs, whoever asked for them."""

from __future__ import annotations

import os

SWITCH = "ARTURO_MONITOR"


def is_off() -> bool:
    """Whether ``ARTURO_MONITOR`` is 0, false, no or off, in any case."""
    return os.environ.get(SWITCH, "").strip().lower() in ("0", "false", "no", "off")
