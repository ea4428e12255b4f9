"""One exception for everything the user can put right; the command line prints it without a traceback."""

from __future__ import annotations


class InputError(Exception):
    """Something is missing or contradictory in what the user gave; the message names the fix."""
