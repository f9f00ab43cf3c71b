"""What runs the tail: one file per library."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]


class TailBackend(Protocol):
    """A loaded tail.

    Attributes:
        name: of the backend, with its version.
    """

    name: str

    def run(self, symbols: npt.NDArray[np.uint8], levels: npt.NDArray[np.int64]) -> dict[str, Array]:
        """Symbols uint8 ``[N, C, h, w]`` and levels int64 ``[N]`` to the outputs by name, each ``[N, ...]``.

        Raises:
            TailBackendError: the library failed.
        """
