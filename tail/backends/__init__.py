"""What runs the tail: one file per library."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from narrowcast.tail.errors import ProviderError

Array = npt.NDArray[np.generic]
BackendName = Literal["onnxruntime", "torch"]


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


@dataclass(frozen=True)
class BackendSettings:
    """What runs networks, and how.

    Attributes:
        backend: the library.
        threads: for each network; 0 leaves it to the library. torch has one number for the process.
        providers: ONNX Runtime's execution providers, best first: ``cuda``, ``tensorrt``, ``cpu`` or whatever else the
            installed build has.
        device: which of several GPUs.
        engine_cache: the folder in which TensorRT's engines are kept; None builds them at every start.
        max_batch: the largest batch that will be run.
        torch_compile: let torch compile the network; the first batches take long, all others less.
    """

    backend: BackendName = "onnxruntime"
    threads: int = 0
    providers: tuple[str, ...] = ("cpu",)
    device: int = 0
    engine_cache: Path | None = None
    max_batch: int = 16
    torch_compile: bool = False


def open_tail(model: bytes, settings: BackendSettings) -> TailBackend:
    """Loads a tail: ONNX with the inputs ``symbols`` and ``level``.

    Raises:
        TailBackendError: the library is missing, or does not load it.
    """
    if settings.backend == "torch":
        tail: TailBackend = _torch().TorchTail(model, settings)
        return tail
    from narrowcast.tail.backends.onnxruntime import OnnxRuntimeTail

    return OnnxRuntimeTail(model, settings)


def open_whole(model: bytes, settings: BackendSettings) -> ImageBackend:
    """Loads an uncut network: ONNX with the input ``image``.

    Raises:
        TailBackendError: the library is missing, or does not load it.
    """
    if settings.backend == "torch":
        whole: ImageBackend = _torch().TorchWhole(model, settings)
        return whole
    from narrowcast.tail.backends.onnxruntime import OnnxRuntimeWhole

    return OnnxRuntimeWhole(model, settings)


def _torch() -> ModuleType:
    try:
        return importlib.import_module("narrowcast.tail.backends.torch")
    except ImportError as error:
        raise ProviderError(
            f"the torch backend needs torch and onnx ({error}): pip install 'narrowcast[tail-torch]'"
        ) from error
