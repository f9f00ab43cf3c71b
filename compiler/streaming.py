"""Images that are decoded when they are asked for, some steps ahead of time, because there are too many to keep."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from narrowcast.compiler.errors import DataError
from narrowcast.compiler.shards import Member
from narrowcast.transport.contract import Image, InputContract
from narrowcast.transport.errors import FrameError
from narrowcast.transport.frames import read_image

Source = Path | Member


def read(source: Source, contract: InputContract) -> Image:
    """A source's image as training sees it, uint8 ``[*contract.size, 3]``.

    Raises:
        FrameError: it is no image.
    """
    image = source.read() if isinstance(source, Member) else read_image(source)
    return contract.training_view(image)


class StreamedImages:
    """Looks like a uint8 array ``[N, H, W, 3]`` to whoever takes rows of it.

    Threads decode: Pillow works outside the interpreter's lock.
    """

    def __init__(self, sources: Sequence[Source], contract: InputContract) -> None:
        self._sources = sources
        self._contract = contract
        self._pool = ThreadPoolExecutor(os.cpu_count(), "decoding")
        self._begun: dict[int, Future[Image]] = {}

    def __len__(self) -> int:
        return len(self._sources)

    def expect(self, rows: npt.NDArray[np.int64]) -> None:
        """Begins to decode these rows, and forgets what else was begun."""
        begun = {row: self._future(row) for row in rows.tolist()}
        for future in self._begun.values():
            future.cancel()
        self._begun = begun

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """uint8 ``[len(rows), H, W, 3]``.

        Raises:
            DataError: one can no longer be read.
        """
        wanted = [self._future(row) for row in rows.tolist()]
        return np.stack([future.result() for future in wanted])

    def _future(self, row: int) -> Future[Image]:
        """The row's, taken from those that were begun."""
        return self._begun.pop(row) if row in self._begun else self._pool.submit(self._read, row)

    def _read(self, row: int) -> Image:
        try:
            return read(self._sources[row], self._contract)
        except FrameError as error:
            name = self._sources[row]
            raise DataError(f"{name} could be read before, and now it cannot: {error}") from error
