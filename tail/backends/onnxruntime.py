"""The tail on ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from narrowcast.tail.backends import Array
from narrowcast.tail.errors import TailBackendError


class _Network:
    def __init__(self, model: bytes, what: str, *, threads: int = 0) -> None:
        self._what = what
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.name = f"onnxruntime {ort.__version__}"
        try:
            self._session: Any = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise TailBackendError(f"ONNX Runtime {ort.__version__} does not load the {what}: {error}") from error
        self._outputs = [entry.name for entry in self._session.get_outputs()]

    def _run(self, inputs: dict[str, Any], count: int) -> dict[str, Array]:
        try:
            results = self._session.run(self._outputs, inputs)
        except Exception as error:  # ONNX Runtime raises exceptions of its own C++ kind
            raise TailBackendError(f"the {self._what} failed on a batch of {count}: {error}") from error
        return dict(zip(self._outputs, results, strict=True))


class OnnxRuntimeTail(_Network):
    """See :class:`narrowcast.tail.backends.TailBackend`."""

    def __init__(self, model: bytes, *, threads: int = 0) -> None:
        super().__init__(model, "tail", threads=threads)

    def run(self, symbols: npt.NDArray[np.uint8], levels: npt.NDArray[np.int64]) -> dict[str, Array]:
        """See :class:`narrowcast.tail.backends.TailBackend`."""
        return self._run({"symbols": symbols, "level": levels}, len(symbols))


class OnnxRuntimeWhole(_Network):
    """See :class:`narrowcast.tail.backends.ImageBackend`."""

    def __init__(self, model: bytes, *, threads: int = 0) -> None:
        super().__init__(model, "whole network", threads=threads)

    def run_images(self, images: npt.NDArray[np.uint8]) -> dict[str, Array]:
        """See :class:`narrowcast.tail.backends.ImageBackend`."""
        return self._run({"image": images}, len(images))
