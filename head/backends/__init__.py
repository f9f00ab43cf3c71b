"""What runs the head: one file per library, imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Protocol

import numpy as np
import numpy.typing as npt

from narrowcast.head.errors import BackendError
from narrowcast.transport.structs import nearest

# name -> module with a function `load(model: bytes, *, threads: int) -> HeadBackend`
BACKENDS = {"onnxruntime": "narrowcast.head.backends.onnxruntime"}


class HeadBackend(Protocol):
    """A loaded head.

    Attributes:
        name: of the backend, with its version.
    """

    name: str

    def run(self, image: npt.NDArray[np.uint8], level: int) -> npt.NDArray[np.uint8]:
        """uint8 ``[H, W, 3]`` RGB of the contract's size to symbols uint8 ``[C, h, w]``.

        Raises:
            BackendError: the library failed.
        """


def load_backend(name: str, model: bytes, *, threads: int) -> HeadBackend:
    """Loads a head.

    Args:
        name: a key of ``BACKENDS``.
        model: ONNX.
        threads: to use; 0 for the library's choice.

    Raises:
        BackendError: no such backend, its library is missing, or it refuses the model.
    """
    if name not in BACKENDS:
        raise BackendError(f"no backend {name!r}{nearest(name, sorted(BACKENDS))}")
    try:
        load: Callable[..., HeadBackend] = import_module(BACKENDS[name]).load
    except ImportError as error:
        raise BackendError(f"the backend {name} cannot be used: {error}; pip install 'narrowcast[head]'") from error
    return load(model, threads=threads)
