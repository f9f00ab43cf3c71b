"""Files that are either the old ones or whole new ones, wherever the power goes off."""

from __future__ import annotations

import errno
import glob
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from narrowcast.transport.errors import ConfigError

DAY_SECONDS = 86_400.0


def at_home(text: str) -> Path:
    """A path of somebody's settings, with ``~`` and ``~NAME`` made whole.

    Raises:
        ConfigError: nobody has such a home.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{text!r} is no path: {error}") from error


@contextmanager
def replacing(path: Path, *, mode: int = 0o666, sync: bool = True) -> Iterator[BinaryIO]:
    """A new file that takes ``path``'s place once it is whole and on disk; an error leaves what was there.

    A symbolic link stays; what it leads to is replaced, or made. Devices and pipes are written to as they are. Owner, group
    and rights of a file that is there stay, as far as this process may give them: who could read it can read the new one.

    Args:
        path: the file.
        mode: of a new file, before the umask; 0o600 for what nobody else may read, at no moment: where one is there that
            others may read, they no longer may, but its group still may.
        sync: put it on disk first; without, a power loss may leave an empty file, which is for what is worth nothing then.

    Raises:
        OSError: it cannot be written; names ``path``.
    """
    names = {None, str(path)}
    try:
        if _is_special(path):
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY), "wb") as out:
                yield out
            return
        target = Path(os.path.realpath(path)) if path.is_symlink() else path
        target.parent.mkdir(parents=True, exist_ok=True)
        # The number says whose it is; threads, and other containers' processes of the same number, have another name.
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.{os.getpid()}.partial")
        names.add(str(partial))
        _forget_abandoned(target)
        try:
            with os.fdopen(_begun(partial, mode), "wb") as out:
                yield out
                out.flush()
                _take_after(out.fileno(), target, mode)
                if sync:
                    os.fsync(out.fileno())
            partial.replace(target)
            if sync:
                sync_folder(target.parent)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        if error.filename in names:
            error.filename = str(path)
        raise


def forget_partials(folder: Path) -> list[Path]:
    """Removes what killed processes have left of files in ``folder`` that :func:`replacing` was writing.

    What somebody writes to at the moment is locked, and stays. For folders that one program has to itself; others leave it
    to :func:`replacing`, which is slower to judge.

    Returns:
        what was removed.
    """
    return [left for left in sorted(folder.glob(".*.partial")) if _was_abandoned(left)]


def _was_abandoned(left: Path) -> bool:
    """Whether nobody wrote to it any more; it is gone then."""
    process = left.name.split(".")[-2]
    try:
        file = os.open(left, os.O_RDWR | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False
    try:
        # A number may be another process's by now. Where there are no locks, it may be one of another machine.
        known = process.isdigit() and not _is_running(int(process))
        if not _locked(file, wait=False) or not (known or time.time() - os.fstat(file).st_mtime > DAY_SECONDS):
            return False
        left.unlink()
    except OSError:
        return False
    finally:
        os.close(file)
    return True


def _is_special(path: Path) -> bool:
    """Whether a device or pipe is there, or where a link leads: a rename would put a file in its place.

    Raises:
        OSError: a folder is, or the system does not follow the link: somebody else's, in a folder that all may write to.
    """
    try:
        kind = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return not stat.S_ISREG(kind)


def _take_after(file: int, old: Path, mode: int) -> None:
    """Gives an open file the owner, group and rights of the one that it will replace, if there is one."""
    if not hasattr(os, "fchown"):  # not on every system
        return
    try:
        before = old.stat()
    except OSError:
        return
    now, kept, secret = os.fstat(file), stat.S_IMODE(before.st_mode), not mode & 0o077
    if secret:
        kept &= ~0o007
    if (before.st_uid, before.st_gid) != (now.st_uid, now.st_gid):
        try:
            os.fchown(file, before.st_uid, before.st_gid)
        except OSError:  # not ours to give away; and its group is another now
            if secret:
                kept &= ~0o070
    with suppress(OSError):  # a file system without rights
        os.fchmod(file, kept)


def sync_folder(folder: Path) -> None:
    """Puts a new name on disk: without, a power loss may bring the old file back."""
    with suppress(OSError):  # not every file system knows this of folders
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _begun(partial: Path, mode: int) -> int:
    """A new file, open for writing and locked."""
    while True:
        partial.unlink(missing_ok=True)  # an old one would keep its mode
        file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            _locked(file, wait=True)
            if os.fstat(file).st_nlink:
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # somebody took it for abandoned before it was locked


def _locked(file: int, *, wait: bool) -> bool:
    """Locks an open file until it is closed; False where somebody else has it locked, or there are no locks."""
    try:
        import fcntl  # not on every system
    except ImportError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # so do some network folders without locks
        return False
    return True


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
