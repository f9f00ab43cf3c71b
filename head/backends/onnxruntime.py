"""The head on ONNX Runtime's CPU provider."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from narrowcast.head.errors import BackendError


class OnnxRuntimeHead:
    """See :class:`narrowcast.head.backends.HeadBackend`."""

    def __init__(self, session: Any) -> None:
        self.name = f"onnxruntime {ort.__version__}"
        self._session = session
        self._takes_level = any(entry.name == "level" for entry in session.get_inputs())

    def run(self, image: npt.NDArray[np.uint8], level: int) -> npt.NDArray[np.uint8]:
        """See :class:`narrowcast.head.backends.HeadBackend`."""
        feed: dict[str, Any] = {"image": image[None]}
        if self._takes_level:
            feed["level"] = np.array([level], np.int64)
        try:
            symbols: npt.NDArray[np.uint8] = self._session.run(["symbols"], feed)[0][0]
        except Exception as error:  # ONNX Runtime raises exceptions of its own C++ kind
            raise BackendError(f"the head failed on an image of shape {list(image.shape)}: {error}") from error
        return symbols


def load(model: bytes, *, threads: int) -> OnnxRuntimeHead:
    """Loads a head; see :func:`narrowcast.head.backends.load_backend`."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return OnnxRuntimeHead(ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]))
    except Exception as error:
        raise BackendError(f"ONNX Runtime {ort.__version__} does not load the head: {error}") from error
