"""The tail on ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from narrowcast.tail.backends import Array
from narrowcast.tail.errors import TailBackendError


class OnnxRuntimeTail:
    """See :class:`narrowcast.tail.backends.TailBackend`."""

    def __init__(self, model: bytes, *, threads: int = 0) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.name = f"onnxruntime {ort.__version__}"
        try:
            self._session: Any = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise TailBackendError(f"ONNX Runtime {ort.__version__} does not load the tail: {error}") from error
        self._outputs = [entry.name for entry in self._session.get_outputs()]

    def run(self, symbols: npt.NDArray[np.uint8], levels: npt.NDArray[np.int64]) -> dict[str, Array]:
        """See :class:`narrowcast.tail.backends.TailBackend`."""
        try:
            results = self._session.run(self._outputs, {"symbols": symbols, "level": levels})
        except Exception as error:  # ONNX Runtime raises exceptions of its own C++ kind
            raise TailBackendError(f"the tail failed on a batch of {len(symbols)}: {error}") from error
        return dict(zip(self._outputs, results, strict=True))
