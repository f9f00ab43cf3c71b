"""Files that nobody else may read."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

from narrowcast.transport.errors import KeyFileError
from narrowcast.transport.files import sync_folder

MAX_BYTES = 1024 * 1024
# So say FAT, and some network folders.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


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


def write_private(path: Path, data: bytes) -> None:
    """A secret's new file, mode 0600: whole and on disk, or not there at all. One that is there already is left alone.

    Raises:
        FileExistsError: there is one.
        OSError: it cannot be written; names ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        _named(partial, path)
    except OSError as error:
        if error.filename in (None, str(partial)):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def _named(partial: Path, path: Path) -> None:
    """Gives a file its name, which no other one has: unlike a link, a renamed file would take another one's place."""
    try:
        os.link(partial, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))  # it is ours from here on
        partial.replace(path)
