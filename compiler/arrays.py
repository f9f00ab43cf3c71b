"""Rows of numbers on disk, one for each image, beside an index that says what became of each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from narrowcast.transport.files import replacing

TOO_LARGE = "too large for float16"

C = TypeVar("C")


def write_array(
    path: Path,
    dtype: Any,
    rows: Iterable[tuple[npt.NDArray[Any] | None, str | None]],
    index: Path,
) -> list[str | None]:
    """Writes rows to ``path``, then what became of each to ``index``; neither appears half-written. Returns the latter."""
    problems: list[str | None] = []
    with replacing(path) as out:
        for row, problem in rows:
            problems.append(problem)
            if row is not None:
                out.write(np.ascontiguousarray(row, dtype).tobytes())
    return write_index(index, problems)


def write_index(path: Path, content: C) -> C:
    """Writes what became of each row, or why there are none, and returns it."""
    with replacing(path) as out:
        out.write(json.dumps(content).encode())
    return content


def read_index(index: Path, count: int, data: Path | None = None, row_bytes: int = 0) -> list[str | None] | None:
    """What became of each of ``count`` rows; None where there is no such cache, or one of its files is gone or cut short."""
    try:
        listed = json.loads(index.read_bytes())
        there = None if data is None else data.stat().st_size
    except (OSError, ValueError):
        return None
    if not isinstance(listed, list) or len(listed) != count:
        return None
    return listed if there is None or there == listed.count(None) * row_bytes else None


def is_too_large(index: Path) -> bool:
    """Whether rows were tried once and have numbers that float16 cannot hold."""
    try:
        return bool(json.loads(index.read_bytes()) == TOO_LARGE)
    except (OSError, ValueError):
        return False
