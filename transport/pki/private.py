"""Files that nobody else may read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from narrowcast.transport.errors import KeyFileError

MAX_BYTES = 1024 * 1024


def read_private(path: Path, what: str) -> bytes:
    """A secret's file, 1 MiB at most.

    The rule is PostgreSQL's for ``ssl_key_file``: 0600 or less; where root owns the file and somebody else reads it, the
    group may read it too (system packages, secrets mounted into a container).

    Raises:
        KeyFileError: missing, unreadable, too large, or open to others.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            roots = status.st_uid == 0 and os.geteuid() != 0
            if stat.S_IMODE(status.st_mode) & (0o037 if roots else 0o077):
                raise KeyFileError(f"{what} {path} can be read by others; chmod {'640' if roots else '600'} {path}")
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise KeyFileError(f"no {what} {path}") from error
    except OSError as error:
        raise KeyFileError(f"{what} {path} cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise KeyFileError(f"{what} {path} is larger than {MAX_BYTES} bytes: it is no {what}")
    return data
