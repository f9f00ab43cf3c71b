"""Files and links that are the old ones or whole new ones, wherever the power goes off."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import shutil
import stat
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 20


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644, owner: str = "") -> None:
    """``path`` with these bytes, on disk; an existing file stays until it is replaced by the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
            os.fchmod(out.fileno(), mode)
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        give(partial, owner)
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, data: Any, *, mode: int = 0o644) -> None:
    """The same for JSON."""
    write_atomic(path, json.dumps(data, indent=1, sort_keys=True).encode() + b"\n", mode=mode)


def read_json(path: Path) -> Any:
    """JSON in a file; None where there is none, or it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def read_json_of(path: Path, limit_bytes: int = 1 << 20) -> Any:
    """The same for a file of the daemon's, which must not hold root up or lead it elsewhere: no link, pipe or giant."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            data = file.read(limit_bytes + 1) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
            return json.loads(data) if len(data) <= limit_bytes else None
    except (OSError, ValueError, RecursionError):
        return None


def sync_folder(folder: Path) -> None:
    """What was created or renamed in a folder is on disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def point(link: Path, target: str) -> None:
    """The symbolic link ``link`` shows ``target`` from one moment to the next, and does so after a power cut."""
    link.parent.mkdir(parents=True, exist_ok=True)
    fresh = link.with_name(f".{link.name}.{os.getpid()}.partial")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)
    sync_folder(link.parent)


def sha256_of(path: Path) -> str:
    """Of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def give(path: Path, owner: str) -> None:
    """``path`` belongs to ``owner`` and their group; nothing changes where that is nobody, or we are not root."""
    if owner and os.geteuid() == 0:
        entry = pwd.getpwnam(owner)
        os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)


def remove(path: Path) -> None:
    """A file, link or folder, whether or not it is there."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def free_bytes(path: Path) -> int:
    """On the disk that ``path`` is on, or would be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
