"""Freed memory is kept for the next step, where glibc can be told so."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from narrowcast.compiler import allocator

ROUNDS = 10
BLOCK_BYTES = 64 << 20  # over the 32 MiB from which glibc maps each block anew
CODE = f"""
import mmap, resource, sys
import numpy as np
from narrowcast.compiler.allocator import keep_freed_memory
told = keep_freed_memory() if sys.argv[1] == "kept" else None
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    np.empty({BLOCK_BYTES}, np.uint8)[:: mmap.PAGESIZE] = 1
print(told, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / ({BLOCK_BYTES} / mmap.PAGESIZE))
"""


def touched(how: str) -> tuple[str, float]:
    """What keep_freed_memory said, and how often each page of a block was cleared by the kernel."""
    clean = {name: value for name, value in os.environ.items() if name not in allocator.VARIABLES}
    # NumPy would ask for huge pages, which are counted as one each.
    variables = {**clean, "NUMPY_MADVISE_HUGEPAGE": "0"}
    command = [sys.executable, "-c", CODE, how]
    told, times = subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout.split()
    return told, float(times)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_blocks_are_taken_again():
    assert touched("as ever")[1] > ROUNDS - 1
    told, times = touched("kept")
    assert told == "True"
    assert times < 2


def test_whoever_tunes_malloc_is_left_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not allocator.keep_freed_memory()


def test_a_library_without_the_call_is_no_error(monkeypatch):
    for name in allocator.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert not allocator.keep_freed_memory()
