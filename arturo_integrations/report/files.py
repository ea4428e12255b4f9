"""Files are written whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from arturo_integrations.report.errors import ReportError


def write_whole(path: Path, content: bytes) -> None:
    """Write under another name in the same folder, then rename: whoever reads never sees half a file.

    Raises:
        ReportError: the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # O_EXCL: a file or link that somebody has put there before is never written through.
        fresh = path.with_name(f".{secrets.token_hex(16)}.new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
            if path.is_file():
                fresh.chmod(stat.S_IMODE(path.stat().st_mode))
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
        reason = getattr(error, "strerror", None) or error
        raise ReportError(f"{path} cannot be written ({reason}). Give another place with --output.") from error
