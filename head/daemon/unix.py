"""Unix sockets that a daemon listens on."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

from narrowcast.head.errors import ListenError


def listen_unix(path: Path, mode: int) -> socket.socket:
    """A socket that listens at a path; one that a killed process left there makes room.

    Args:
        path: where.
        mode: its permissions. Nobody connects before they hold.

    Raises:
        ListenError: somebody listens there, something else lies there, or it cannot be made.
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_room(path)
        made.bind(str(path))
        path.chmod(mode)
        made.listen(16)
    except OSError as error:
        made.close()
        raise ListenError(f"cannot listen at {path}: {error.strerror or error}") from error
    except ListenError:
        made.close()
        raise
    made.setblocking(False)
    return made


def _make_room(path: Path) -> None:
    if not path.is_socket():
        if path.exists():
            raise ListenError(
                f"cannot listen at {path}: it is there, and no socket ({stat.filemode(path.stat().st_mode)})"
            )
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise ListenError(f"cannot listen at {path}: another process does")
