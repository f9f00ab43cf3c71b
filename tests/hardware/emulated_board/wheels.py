"""The board's wheels: narrowcast's own, cross-compiled, and what it needs. Made once per state of the sources."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tempfile
from pathlib import Path

from hardware.emulated_board.root import cache_folder
from support import wheels

_SOURCES = (
    "devices",
    "head",
    "narrowcast",
    "tail",
    "transport",
    "compiler",
    "pyproject.toml",
    "setup.py",
    "constraints.txt",
)
_SUFFIXES = {".py", ".toml", ".c", ".h", ".html", ".css", ".js", ".svg", ".txt", ".proto", ".sh", ".service"}


def why_not() -> str:
    """Why they cannot be made here; empty where they can."""
    return wheels.why_not()


def board_wheels() -> Path:
    """A folder with every wheel for the board; raises ``RuntimeError`` where the package index cannot be reached."""
    folder = cache_folder() / f"wheels-{_digest()}"
    with (cache_folder() / ".wheels.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            for old in cache_folder().glob("wheels-*"):
                shutil.rmtree(old)
            with tempfile.TemporaryDirectory(dir=cache_folder()) as temporary:
                own = wheels.build(Path(temporary) / "narrowcast")["aarch64"]
                unfinished = Path(temporary) / "wheels"
                if reason := wheels.fetch_for_arm64(f"{own}[head]", unfinished):
                    raise RuntimeError(reason)
                unfinished.rename(folder)
    return folder


def _digest() -> str:
    digest = hashlib.sha256()
    for source in _SOURCES:
        top = wheels.ROOT / source
        for file in [top] if top.is_file() else sorted(f for f in top.rglob("*") if f.suffix in _SUFFIXES):
            digest.update(f"{file.relative_to(wheels.ROOT)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]
