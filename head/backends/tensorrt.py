"""A network on TensorRT, from 8.6 to 11: the engine is built on the board that runs it, and kept for its next start.

Which arithmetic a layer uses is in the ONNX file (casts to fp16, quantize and dequantize nodes). TensorRT 10 and 11 are told
to keep to that (a *strongly typed* network; 11 knows no other). TensorRT 8.6 has no such mode: there the builder is allowed
fp16 or INT8 as far as the file uses them, and the layers outside the core of an fp16 head are pinned to fp32.

Sources: the Python API's reference for each version (docs.nvidia.com/deeplearning/tensorrt), and the bindings of 8.6.1,
10.3.0 and 11.4.0, against which ``tests/contract/test_tensorrt_api.py`` checks every call in this file. It reads the
annotations here: what comes from TensorRT is annotated with its class.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import numpy as np
import tensorrt as trt

from narrowcast.head.backends import Array
from narrowcast.head.backends.cuda import Buffers, Gpu, open_gpu
from narrowcast.head.backends.engines import EngineKey, keep_engine, read_engine
from narrowcast.head.errors import BackendError

log = logging.getLogger(__name__)

# What a layer's algorithm may use beside its tensors. Heads are small: more gains nothing, and boards share this memory.
WORKSPACE_BYTES = 256 * 1024 * 1024
STRONG = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
# TF32 cuts fp32's mantissa to 10 bits: an fp32 head would give fp16's symbols.
FLAGS = f"{'strongly' if STRONG else 'weakly'}-typed no-tf32 workspace={WORKSPACE_BYTES}"


class _Said(trt.ILogger):  # type: ignore[misc]  # TensorRT has no types
    """Keeps the last errors that TensorRT tells of, for the message of ours."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: deque[str] = deque(maxlen=3)

    def log(self, severity: Any, msg: str) -> None:
        """Called by TensorRT, from any thread."""
        if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            self.errors.append(" ".join(msg.split()))
        else:
            log.debug("%s", msg)

    def why(self) -> str:
        """What it said, for the end of a message."""
        return "; ".join(self.errors) or "TensorRT does not say why"


class TensorRtNetwork:
    """See :class:`narrowcast.head.backends.Network`. One frame at a time: threads wait for each other."""

    def __init__(self, engine: trt.ICudaEngine, gpu: Gpu, said: _Said) -> None:
        self.name = f"tensorrt {trt.__version__}"
        self._gpu = gpu
        self._said = said
        self._lock = threading.Lock()
        self._engine: trt.ICudaEngine = engine
        context: trt.IExecutionContext = engine.create_execution_context()
        if context is None:
            raise BackendError(f"TensorRT makes no context for an engine: {said.why()}")
        self._context: trt.IExecutionContext = context
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._outputs = [name for name in names if name not in self.inputs]
        arrays = {name: _array(engine, name) for name in names}
        self._buffers = Buffers(gpu, arrays)
        weakref.finalize(self, self._buffers.close)
        for name, address in self._buffers.addresses.items():
            if not context.set_tensor_address(name, address):
                raise BackendError(f"TensorRT does not take memory for {name!r}: {said.why()}")

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :class:`narrowcast.head.backends.Network`."""
        with self._lock:
            self._gpu.enter()
            for name in self.inputs:
                self._fill(name, inputs)
                self._buffers.upload(name)
            if not self._context.execute_async_v3(self._buffers.stream):
                raise BackendError(f"TensorRT does not run the network: {self._said.why()}")
            for name in self._outputs:
                self._buffers.download(name)
            self._buffers.wait()
            return {name: self._buffers.host[name].copy() for name in self._outputs}

    def _fill(self, name: str, inputs: Mapping[str, Array]) -> None:
        there = self._buffers.host[name]
        if name not in inputs:
            raise BackendError(f"the network wants {name!r}")
        given = inputs[name]
        # TensorRT 8.6 narrows int64 to int32; nothing else may change its type.
        narrowed = given.dtype == np.int64 and there.dtype == np.int32
        if given.shape != there.shape or not (narrowed or given.dtype == there.dtype):
            raise BackendError(
                f"{name!r} is {given.dtype} {list(given.shape)}; the engine takes {there.dtype} {list(there.shape)}"
            )
        there[...] = given


def load(model: bytes, *, threads: int, what: str) -> TensorRtNetwork:  # noqa: ARG001  (CPU threads: other backends')
    """Loads a network: its engine from the cache, or built; see :func:`narrowcast.head.backends.load_backend`."""
    try:
        gpu = open_gpu()
    except BackendError as error:
        raise BackendError(f"the backend tensorrt cannot be used: {error}") from error
    said = _Said()
    try:
        return _load(model, gpu, said, what)
    except BackendError as error:
        raise BackendError(f"TensorRT {trt.__version__} does not load the {what}: {error}") from error
    except (TypeError, RuntimeError) as error:  # the bindings' own, where TensorRT gives no object
        raise BackendError(f"TensorRT {trt.__version__} does not load the {what}: {error}: {said.why()}") from error


def _load(model: bytes, gpu: Gpu, said: _Said, what: str) -> TensorRtNetwork:
    runtime: trt.Runtime = trt.Runtime(said)
    key = EngineKey(
        model=hashlib.sha256(model).hexdigest(),
        tensorrt=trt.__version__,
        gpu=str(gpu),
        flags=FLAGS,
    )
    kept = read_engine(key)
    if kept is not None:
        engine: trt.ICudaEngine = runtime.deserialize_cuda_engine(kept)
        if engine is not None:
            return TensorRtNetwork(engine, gpu, said)
        log.warning("a kept engine does not load (%s): it is built anew", said.why())
        said.errors.clear()
    log.info("building the %s's engine for %s: once, this may take minutes", what, gpu.name)
    started = perf_counter()
    plan = _build(model, said)
    log.info("the %s's engine was built in %.1f s", what, perf_counter() - started)
    built: trt.ICudaEngine = runtime.deserialize_cuda_engine(plan)
    if built is None:
        raise BackendError(f"it does not load the engine that it built: {said.why()}")
    network = TensorRtNetwork(built, gpu, said)
    keep_engine(key, plan)
    return network


def _build(model: bytes, said: _Said) -> bytes:
    """A serialized engine for this GPU."""
    builder: trt.Builder = trt.Builder(said)
    network: trt.INetworkDefinition = _new_network(builder)
    parser: trt.OnnxParser = trt.OnnxParser(network, said)
    if not parser.parse(model):
        raise BackendError(_refusal(parser, said))
    _must_have_sizes(network)
    config: trt.IBuilderConfig = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.clear_flag(trt.BuilderFlag.TF32)
    if not STRONG:
        _allow_precisions(network, config)
    plan: trt.IHostMemory = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(f"it builds no engine: {said.why()}")
    return bytes(plan)


def _must_have_sizes(network: trt.INetworkDefinition) -> None:
    """Engines for images of any size want profiles, which are not made here: builders say so in words of their own."""
    for index in range(network.num_inputs):
        tensor: trt.ITensor = network.get_input(index)
        shape = list(tensor.shape)
        if shape[:1] == [-1] and all(side > 0 for side in shape[1:]):
            tensor.shape = [1, *shape[1:]]  # the uncut network takes batches; a board has one frame at a time
        elif any(side < 0 for side in shape):
            raise BackendError(
                f"its input {tensor.name!r} has no fixed shape: {shape}; heads for images of any size run on onnxruntime"
            )


def _new_network(builder: trt.Builder) -> trt.INetworkDefinition:
    if STRONG:
        return _strongly_typed(builder)
    return _weakly_typed(builder)


def _strongly_typed(builder: trt.Builder) -> trt.INetworkDefinition:
    """TensorRT 10 and 11."""
    return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))


def _weakly_typed(builder: trt.Builder) -> trt.INetworkDefinition:
    """TensorRT 8.6, where networks have a batch dimension of their own unless told otherwise."""
    return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))


def _refusal(parser: trt.OnnxParser, said: _Said) -> str:
    if not parser.num_errors:
        return f"its parser refuses it: {said.why()}"
    error: trt.ParserError = parser.get_error(0)
    return f"its parser refuses it: {error.desc()}"


def _allow_precisions(network: trt.INetworkDefinition, config: trt.IBuilderConfig) -> None:
    """TensorRT 8.6: allows what the file uses.

    With fp16 allowed, any layer may be run in it. Those before the first and behind the last convolution, where a small
    error is a whole symbol, are pinned to fp32.
    """
    layers: list[trt.ILayer] = [network.get_layer(index) for index in range(network.num_layers)]
    if any(layer.type == trt.LayerType.QUANTIZE for layer in layers):
        config.set_flag(trt.BuilderFlag.INT8)
    if not any(_gives(layer, trt.DataType.HALF) for layer in layers):
        return
    config.set_flag(trt.BuilderFlag.FP16)
    config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
    weighted = (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
    core = [at for at, layer in enumerate(layers) if layer.type in weighted]
    outside: list[trt.ILayer] = layers[: core[0]] + layers[core[-1] + 1 :] if core else layers
    for layer in outside:
        if layer.type != trt.LayerType.CONSTANT and _gives(layer, trt.DataType.FLOAT):
            layer.precision = trt.DataType.FLOAT
            layer.set_output_type(0, trt.DataType.FLOAT)


def _gives(layer: trt.ILayer, kind: Any) -> bool:
    """Whether a layer's first output has a type."""
    return bool(layer.num_outputs and layer.get_output_type(0) == kind)


def _array(engine: trt.ICudaEngine, name: str) -> Array:
    """What a tensor looks like on the host."""
    shape = tuple(engine.get_tensor_shape(name))
    if any(side < 0 for side in shape):
        raise BackendError(f"its tensor {name!r} has no fixed shape: {list(shape)}")
    return np.zeros(shape, trt.nptype(engine.get_tensor_dtype(name)))
