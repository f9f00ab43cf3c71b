"""A small file system, for tests of disks that are full."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.waiting import until


@contextlib.contextmanager
def small_disk(folder: Path, kib: int = 192) -> Iterator[Path]:
    """A file system of so many KiB at ``folder``, which is made; skips where none can be mounted."""
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("a small file system can be mounted by root only")
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    if (done := subprocess.run(command, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        until(lambda: subprocess.run(["umount", str(folder)], check=False).returncode == 0, "the disk is free")
