"""What can be wrong with the logs or the options; the command line prints it without a traceback."""

from __future__ import annotations


class ReportError(ValueError):
    """Something is missing or broken in what was given; the message says what was looked for, where, and the fix."""


class NothingLogged(ReportError):
    """A log that can be read, and has no number yet that the report shows."""
