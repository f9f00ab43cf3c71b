"""Tails and whole networks on ONNX Runtime, by the execution providers that its installed build has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from narrowcast.tail.backends import Array, BackendSettings
from narrowcast.tail.errors import ProviderError, TailBackendError

_SUFFIX = "ExecutionProvider"
_DEFAULT = BackendSettings()


def available_providers() -> dict[str, str]:
    """ONNX Runtime's name of every provider of this build, by ours: ``cuda`` is ``CUDAExecutionProvider``."""
    return {name.removesuffix(_SUFFIX).lower(): name for name in ort.get_available_providers()}


def _providers(settings: BackendSettings, inputs: Mapping[str, list[int]]) -> list[tuple[str, dict[str, str]]]:
    """What a session is asked for, best first.

    Raises:
        ProviderError: this build has no such provider.
    """
    there = available_providers()
    for name in settings.providers:
        if name not in there:
            raise ProviderError(
                f"onnxruntime {ort.__version__} has no provider {name!r} here; it has {', '.join(sorted(there))}. CUDA and "
                "TensorRT come with the package onnxruntime-gpu in place of onnxruntime"
            )
    return [(there[name], _options(name, settings, inputs)) for name in settings.providers]


def _options(name: str, settings: BackendSettings, inputs: Mapping[str, list[int]]) -> dict[str, str]:
    """A provider's options: onnxruntime.ai, *CUDA* and *TensorRT Execution Provider*, "Configurations"."""
    if name not in ("cuda", "tensorrt"):
        return {}
    options = {"device_id": str(settings.device)}
    if name == "tensorrt":
        # One engine for every size of batch, built while the model is loaded and not when such a batch first comes.
        for which, batch in (("min", 1), ("opt", settings.max_batch), ("max", settings.max_batch)):
            shapes = (f"{key}:{'x'.join(map(str, [batch, *shape[1:]]))}" for key, shape in inputs.items())
            options[f"trt_profile_{which}_shapes"] = ",".join(shapes)
        if settings.engine_cache is not None:
            options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(settings.engine_cache)}
    return options


class _Network:
    def __init__(self, model: bytes, what: str, settings: BackendSettings) -> None:
        self._what = what
        options = ort.SessionOptions()
        options.intra_op_num_threads = settings.threads
        options.log_severity_level = 3
        try:
            inputs: dict[str, list[int]] = {}
            if "tensorrt" in settings.providers and "tensorrt" in available_providers():
                inputs = _inputs(model, options)
                if settings.engine_cache is not None:
                    settings.engine_cache.mkdir(parents=True, exist_ok=True)
            self._session: Any = ort.InferenceSession(model, options, providers=_providers(settings, inputs))
        except ProviderError:
            raise
        except Exception as error:
            raise TailBackendError(f"ONNX Runtime {ort.__version__} does not load the {what}: {error}") from error
        self._check_provider(settings)
        self.name = f"onnxruntime {ort.__version__} ({', '.join(settings.providers)})"
        self._outputs = [entry.name for entry in self._session.get_outputs()]

    def _check_provider(self, settings: BackendSettings) -> None:
        # ONNX Runtime drops a provider that does not start and goes on with the next: a GPU server would run on its CPU.
        missing = [
            name for name in settings.providers if available_providers()[name] not in self._session.get_providers()
        ]
        if missing:
            raise ProviderError(
                f"the provider {missing[0]!r} does not start here: is there such a device, and are its driver and "
                "libraries installed? Set ORT_LOGGING_LEVEL=1 to see what it lacks, or leave it out of the providers"
            )

    def _run(self, inputs: dict[str, Any], count: int) -> dict[str, Array]:
        try:
            results = self._session.run(self._outputs, inputs)
        except Exception as error:  # ONNX Runtime raises exceptions of its own C++ kind
            raise TailBackendError(f"the {self._what} failed on a batch of {count}: {error}") from error
        return dict(zip(self._outputs, results, strict=True))


def _inputs(model: bytes, options: Any) -> dict[str, list[int]]:
    """The model's inputs and their shapes, as ONNX Runtime's CPU provider reads them."""
    session = ort.InferenceSession(model, options, providers=[f"CPU{_SUFFIX}"])
    return {entry.name: list(entry.shape) for entry in session.get_inputs()}


class OnnxRuntimeTail(_Network):
    """See :class:`narrowcast.tail.backends.TailBackend`."""

    def __init__(self, model: bytes, settings: BackendSettings = _DEFAULT) -> None:
        super().__init__(model, "tail", settings)

    def run(self, symbols: npt.NDArray[np.uint8], levels: npt.NDArray[np.int64]) -> dict[str, Array]:
        """See :class:`narrowcast.tail.backends.TailBackend`."""
        return self._run({"symbols": symbols, "level": levels}, len(symbols))


class OnnxRuntimeWhole(_Network):
    """See :class:`narrowcast.tail.backends.ImageBackend`."""

    def __init__(self, model: bytes, settings: BackendSettings = _DEFAULT) -> None:
        super().__init__(model, "whole network", settings)

    def run_images(self, images: npt.NDArray[np.uint8]) -> dict[str, Array]:
        """See :class:`narrowcast.tail.backends.ImageBackend`."""
        return self._run({"image": images}, len(images))
