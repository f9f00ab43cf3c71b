"""Uploaded files: by their hash, in pieces, going on where they stopped, and counted only when they are whole."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

from narrowcast.devices.flash.agent.errors import AgentError
from narrowcast.devices.flash.agent.files import free_bytes, sha256_of, sync_folder, write_atomic, write_json
from narrowcast.devices.flash.agent.layout import Layout

_SHA256 = re.compile(r"[0-9a-f]{64}")
NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
SPARE_BYTES = 16 * 1024 * 1024


def explain(error: OSError) -> tuple[str, str]:
    """An ``OSError`` as kind and message."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in NO_SPACE:
        return "DiskSpaceError", f"the board's disk is full{where}: free some space, then flash again; it goes on"
    if error.errno == errno.EROFS:
        return "BoardError", f"the board's disk is mounted read-only{where}"
    return "BoardError", f"{error.strerror or error}{where}"


def want(layout: Layout, files: list[dict[str, Any]], *, locked: bool) -> list[int]:
    """How many bytes of each file are here.

    Args:
        layout: of the board.
        files: ``sha256`` and ``bytes`` each.
        locked: nobody else uploads: what a power cut left behind a file's last byte is set right.

    Raises:
        AgentError: ``DiskSpaceError``: the rest does not fit.
    """
    here = [_here(layout, str(entry["sha256"]), int(entry["bytes"]), locked) for entry in files]
    missing = sum(int(entry["bytes"]) - count for entry, count in zip(files, here, strict=True))
    free = free_bytes(layout.files)
    if missing and missing + SPARE_BYTES > free:
        raise AgentError(
            "DiskSpaceError",
            f"{missing} bytes are to be sent, and {layout.program} has {free} free: free some space on the board",
        )
    return here


def _here(layout: Layout, sha256: str, size: int, locked: bool) -> int:
    path = file_of(layout, sha256)
    if path.exists():
        return size
    partial = path.with_suffix(".part")
    try:
        here = partial.stat().st_size
        if here < size:
            return here
        # All of it arrived, and the power went before it got its name: no further bytes would come that give it one.
        whole = sha256_of(partial) == sha256
    except FileNotFoundError:  # there is none; or somebody else's has just got its name
        return size if path.exists() else 0
    if locked and whole:
        _keep(layout, partial, path)
    elif locked:
        partial.unlink()
    return size if whole else 0


def _keep(layout: Layout, partial: Path, path: Path) -> None:
    """A file that is whole gets its name."""
    partial.replace(path)
    sync_folder(layout.files)


def file_of(layout: Layout, sha256: str) -> Path:
    """Where a file with that hash is, or will be."""
    if not _SHA256.fullmatch(sha256):
        raise AgentError("UploadError", f"{sha256[:80]!r} is no SHA-256")
    return layout.files / sha256


def append(layout: Layout, sha256: str, offset: int, data: bytes, total: int) -> int:
    """Keeps the next bytes of a file; the last ones make it whole.

    Raises:
        AgentError: ``UploadError``: they do not follow what is here, or the whole is another file than announced; then
            what is here is thrown away.
        OSError: the disk.
    """
    path = file_of(layout, sha256)
    partial = path.with_suffix(".part")
    layout.files.mkdir(parents=True, exist_ok=True, mode=0o700)
    with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as out:
        size = out.seek(0, os.SEEK_END)
        if offset > size:
            raise AgentError(
                "UploadError", f"bytes from {offset} on were sent, and only {size} are here; send it again"
            )
        out.truncate(offset)
        out.seek(offset)
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    if offset + len(data) < total:
        return offset + len(data)
    if sha256_of(partial) != sha256:
        partial.unlink()
        raise AgentError("UploadError", f"a file of {total} bytes did not arrive as it was sent (its SHA-256 differs)")
    _keep(layout, partial, path)
    return total


def install_agent(layout: Layout, agent: Path) -> None:
    """This program where the check at boot finds it."""
    data, there = agent.read_bytes(), layout.flash / "agent.pyz"
    write_json(layout.flash / "layout.json", layout.as_dict())
    if not there.exists() or there.read_bytes() != data:
        write_atomic(there, data, mode=0o755)
