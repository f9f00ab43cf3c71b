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


class ImageBackend(Protocol):
    """A loaded whole network, which answers images that were sent as such.

    Attributes:
        name: of the backend, with its version.
    """

    name: str

    def run_images(self, images: npt.NDArray[np.uint8]) -> dict[str, Array]:
        """Images uint8 ``[N, H, W, 3]``, of the input contract's size, to the outputs by name, each ``[N, ...]``.

        Raises:
            TailBackendError: the library failed.
        """
