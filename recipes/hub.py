"""Whether the Hugging Face hub is asked: a client that cannot reach it tries for half a minute, with a warning each."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

OFFLINE = "HF_HUB_OFFLINE"


def choose(local: bool) -> None:
    """Have Hugging Face's libraries use this machine's files alone where that is enough, or all there is.

    To be called before one of them is imported: they read it once. What the user has set stands.
    """
    if local or not reachable():
        os.environ.setdefault(OFFLINE, "1")


def reachable() -> bool:
    """Whether the hub's name is known here; true behind a proxy, which looks names up itself."""
    if getproxies():
        return True
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    return True
