"""One daemon to a state folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from narrowcast.head.errors import StateError, StateLockedError


class StateLock:
    """Holds a folder for this process; the kernel lets go of it when the process ends, however it does.

    Args:
        folder: made where it is not there, for this user alone.

    Raises:
        StateLockedError: another daemon has it; names its process.
        StateError: it cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(f"the state folder {folder} cannot be used: {error.strerror or error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, 32, 0).decode("ascii", "replace").strip()
            os.close(self._file)
            who = f"process {holder}" if holder.isdigit() else "another process"
            raise StateLockedError(
                f"the state folder {folder} is in use by {who}: end that daemon first, or give this one a folder of its own "
                "(state)"
            ) from error
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)
        except OSError:
            pass  # a full disk: held all the same, only without a name

    def close(self) -> None:
        """Lets go of it."""
        os.close(self._file)
