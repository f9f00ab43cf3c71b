"""Rows of numbers on disk, one for each image, beside an index that says what became of each."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from narrowcast.compiler.progress import Progress
from narrowcast.transport.files import replacing

TOO_LARGE = "too large for float16"
NUMBER_BYTES = 2

C = TypeVar("C")
Shape = tuple[int, ...]


def keep_float16(
    files: Path, shape: Shape, title: str, chunks: Callable[[], Iterable[npt.NDArray[Any]]], progress: Progress
) -> npt.NDArray[np.float16] | None:
    """Rows that are computed once for all runs, memory-mapped.

    Args:
        files: where they are, without suffix.
        shape: ``[N, ...]`` of all.
        title: of the task that computes them.
        chunks: called where they are not there (see :func:`has_float16`): the next few rows each time.
        progress: told how far it is.

    Returns:
        None where float16 cannot hold them; that they are of this kind is kept instead.
    """
    path, index = files.with_suffix(".f16"), files.with_suffix(".json")
    if _is_too_large(index):
        return None
    if not has_float16(files, shape):
        with progress.task(title, shape[0], "images") as task:
            try:
                write_array(path, np.float16, _rows(chunks(), task.advance), index)
            except OverflowError:
                write_index(index, TOO_LARGE)
                return None
    return np.memmap(path, np.float16, "r", shape=shape)


def has_float16(files: Path, shape: Shape) -> bool:
    """Whether the rows of :func:`keep_float16` are there, all of them."""
    path, index = files.with_suffix(".f16"), files.with_suffix(".json")
    return read_index(index, shape[0], path, math.prod(shape[1:]) * NUMBER_BYTES) is not None


def _rows(
    chunks: Iterable[npt.NDArray[Any]], advance: Callable[[int], None]
) -> Iterator[tuple[npt.NDArray[np.float16], None]]:
    for values in chunks:
        if not np.abs(values).max(initial=0) < np.finfo(np.float16).max:
            raise OverflowError
        for row in values.astype(np.float16):
            yield row, None
        advance(len(values))


def _is_too_large(index: Path) -> bool:
    try:
        return bool(json.loads(index.read_bytes()) == TOO_LARGE)
    except (OSError, ValueError):
        return False


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
