"""glibc's malloc, told to keep what is freed: training asks for the same large blocks again and again.

Blocks over 32 MiB are mapped and unmapped each time, whatever ``M_MMAP_THRESHOLD`` says (mallopt(3)): the kernel
clears each of their pages at the first touch. Activations of a batch on a CPU are such blocks. A step of training took
2.9 times the processor's time with them cleared again and again as with them kept, which took half as much memory
again (``bench/allocator.py`` on a virtual machine, where a page's first touch is dear).
"""

from __future__ import annotations

import ctypes
import os

# malloc.h; none of them is in Python's own modules.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
NEVER = -1
PAD_BYTES = 64 << 20  # the heap grows by so much at a time
# Whoever sets one of these has an opinion.
VARIABLES = (
    "GLIBC_TUNABLES",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
)


def keep_freed_memory() -> bool:
    """For the rest of the process.

    Returns:
        whether it is so: not without glibc, nor where the environment tunes malloc.
    """
    if any(name in os.environ for name in VARIABLES):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl has none; macOS neither
        return False
    return all(
        mallopt(key, value) == 1 for key, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, PAD_BYTES))
    )
