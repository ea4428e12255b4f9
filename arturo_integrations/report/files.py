"""Files are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from arturo_integrations.report.errors import ReportError


def write_whole(path: Path, content: bytes) -> None:
    """Write under another name in the same folder, then rename: whoever reads never sees half a file.

    Raises:
        ReportError: the folder cannot be written to.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fresh.write_bytes(content)
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as error:
        raise ReportError(f"{path} cannot be written ({error.strerror}). Give another place with --output.") from error
