"""Files that are either the old ones or whole new ones, wherever the power goes off."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

DAY_SECONDS = 86_400.0


@contextmanager
def replacing(path: Path, *, mode: int = 0o666, sync: bool = True) -> Iterator[BinaryIO]:
    """A new file that takes ``path``'s place once it is whole and on disk; an error leaves what was there.

    Args:
        path: the file.
        mode: of a new file, before the umask; 0o600 for what nobody else may read, at no moment.
        sync: put it on disk first; without, a power loss may leave an empty file, which is for what is worth nothing then.

    Raises:
        OSError: it cannot be written; names ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    _forget_abandoned(path)
    try:
        partial.unlink(missing_ok=True)  # an old one would keep its mode
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as out:
            yield out
            out.flush()
            if sync:
                os.fsync(out.fileno())
        partial.replace(path)
    except OSError as error:
        if error.filename in (None, str(partial)):
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def _forget_abandoned(path: Path) -> None:
    """Removes what killed processes left of earlier tries. Not the fresh ones: their process may be on another machine."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        process = left.name.split(".")[-2]
        with suppress(OSError):
            if process.isdigit() and not _is_running(int(process)) and time.time() - left.stat().st_mtime > DAY_SECONDS:
                left.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
