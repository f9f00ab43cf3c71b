"""CompressAI's C++ rANS for ``bench/coder.py``; runs in an environment of its own, needs nothing of this project.

Reads one line of JSON (symbols, density), answers with the frame's bytes; then one round for every further line.
"""

import importlib.machinery
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

PRECISION = 16
CALLS = 5
TAIL_MASS = 1e-9


def load_ans():
    """The compiled module alone: importing the package would import torch and all its models."""
    found = importlib.util.find_spec("compressai")
    (file,) = Path(found.submodule_search_locations[0]).glob("ans*.so")
    loader = importlib.machinery.ExtensionFileLoader("compressai.ans", str(file))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("compressai.ans", loader))
    loader.exec_module(module)
    return module


def support(row):
    """First and last symbol that CompressAI would give a slot: those within its default tail mass of 1e-9."""
    first = int(np.searchsorted(np.cumsum(row), TAIL_MASS / 2))
    last = len(row) - 1 - int(np.searchsorted(np.cumsum(row[::-1]), TAIL_MASS / 2))
    return first, last


def cumulative(row):
    """16-bit cumulative frequencies as CompressAI lays them out; the last entry is its bypass symbol."""
    total = 1 << PRECISION
    slots = np.maximum(1, np.floor(np.append(row, 1e-9) * (total - len(row) - 1))).astype(int)
    slots[np.argmax(slots)] += total - slots.sum()
    return [0, *np.cumsum(slots).tolist()]


def timed(call):
    """As in coder.py: nanoseconds per symbol, the median of a few calls in a row."""
    times = []
    for _ in range(CALLS):
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / count


ans = load_ans()
job = json.loads(sys.stdin.readline())
count = sum(len(row) for row in job["symbols"])
symbols = [value for row in job["symbols"] for value in row]
indexes = [channel for channel, row in enumerate(job["symbols"]) for _ in row]
bounds = [support(np.array(row)) for row in job["density"]]
tables = [cumulative(np.array(row)[a : b + 1]) for row, (a, b) in zip(job["density"], bounds)]  # noqa: B905  (any Python)
sizes, offsets = [len(row) for row in tables], [a for a, _ in bounds]
payload = ans.RansEncoder().encode_with_indexes(symbols, indexes, tables, sizes, offsets)
assert ans.RansDecoder().decode_with_indexes(payload, indexes, tables, sizes, offsets) == symbols
print(json.dumps({"bytes": len(payload)}), flush=True)
for _ in sys.stdin:
    encode_ns = timed(lambda: ans.RansEncoder().encode_with_indexes(symbols, indexes, tables, sizes, offsets))
    decode_ns = timed(lambda: ans.RansDecoder().decode_with_indexes(payload, indexes, tables, sizes, offsets))
    print(json.dumps({"encode_ns": encode_ns, "decode_ns": decode_ns}), flush=True)
