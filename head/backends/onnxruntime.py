"""A network on ONNX Runtime's CPU provider."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnxruntime as ort

from narrowcast.head.backends import Array
from narrowcast.head.errors import BackendError


class OnnxRuntimeNetwork:
    """See :class:`narrowcast.head.backends.Network`."""

    def __init__(self, session: Any) -> None:
        self.name = f"onnxruntime {ort.__version__}"
        self.inputs = [entry.name for entry in session.get_inputs()]
        self._outputs = [entry.name for entry in session.get_outputs()]
        self._session = session

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :class:`narrowcast.head.backends.Network`."""
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))
        except Exception as error:  # ONNX Runtime raises exceptions of its own C++ kind
            raise BackendError(str(error)) from error


def load(model: bytes, *, threads: int, what: str) -> OnnxRuntimeNetwork:
    """Loads a network; see :func:`narrowcast.head.backends.load_backend`."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return OnnxRuntimeNetwork(ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]))
    except Exception as error:
        raise BackendError(f"ONNX Runtime {ort.__version__} does not load the {what}: {error}") from error
