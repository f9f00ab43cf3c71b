"""TensorRT without a GPU, for tests: the part of its Python API that we use, with ONNX Runtime computing what engines do.

``tests/contract/test_tensorrt_api.py`` holds it to the same list of uses as the real bindings. :func:`module` makes one
that has the flags of a version.
"""

from __future__ import annotations

import ctypes
import json
from enum import IntEnum
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import onnxruntime as ort

FLAGS = {
    "8.6.1": ["FP16", "INT8", "TF32", "PREFER_PRECISION_CONSTRAINTS"],
    "10.3.0": ["FP16", "INT8", "TF32", "PREFER_PRECISION_CONSTRAINTS"],
    "11.4.0": ["TF32"],
}
NETWORK_FLAGS = {
    "8.6.1": {"EXPLICIT_BATCH": 0},
    "10.3.0": {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
    "11.4.0": {"STRONGLY_TYPED": 0},
}
VERSIONS = sorted(FLAGS)


class DataType(IntEnum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8, INT64 = range(7)


class TensorIOMode(IntEnum):
    NONE, INPUT, OUTPUT = range(3)


class MemoryPoolType(IntEnum):
    WORKSPACE = 0


class LayerType(IntEnum):
    CONVOLUTION, DECONVOLUTION, MATRIX_MULTIPLY, CONSTANT, CAST, QUANTIZE, OTHER = range(7)


NUMPY = {
    DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT8: np.int8, DataType.INT32: np.int32,
    DataType.BOOL: np.bool_, DataType.UINT8: np.uint8, DataType.INT64: np.int64,
}  # fmt: skip
TYPES = {onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)): data for data, kind in NUMPY.items()}
LAYERS = {
    "Conv": LayerType.CONVOLUTION, "ConvTranspose": LayerType.DECONVOLUTION, "MatMul": LayerType.MATRIX_MULTIPLY,
    "Gemm": LayerType.MATRIX_MULTIPLY, "Cast": LayerType.CAST, "QuantizeLinear": LayerType.QUANTIZE,
}  # fmt: skip


class ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        pass

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class IHostMemory(bytes):
    pass


class Dims(tuple[int, ...]):
    pass


class ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text


class ILayer:
    def __init__(self, node: Any, kind: DataType) -> None:
        self.name = node.name
        self.pinned: dict[int, DataType] = {}
        self._type = LAYERS.get(node.op_type, LayerType.OTHER)
        self._outputs = len(node.output)
        self._kind = kind
        self._precision: DataType | None = None

    @property
    def type(self) -> LayerType:
        return self._type

    @property
    def num_outputs(self) -> int:
        return self._outputs

    @property
    def precision(self) -> DataType | None:
        return self._precision

    @precision.setter
    def precision(self, value: DataType) -> None:
        self._precision = value

    def get_output_type(self, index: int) -> DataType:
        return self._kind

    def set_output_type(self, index: int, dtype: Any) -> None:
        self.pinned[index] = dtype


class ITensor:
    def __init__(self, value: Any) -> None:
        self._name = value.name
        self._shape = Dims(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim)

    @property
    def name(self) -> str:
        return self._name

    @property
    def shape(self) -> Dims:
        return self._shape

    @shape.setter
    def shape(self, value: Any) -> None:
        self._shape = Dims(value)


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.model = b""
        self.layers: list[ILayer] = []
        self.inputs: list[ITensor] = []

    def built(self) -> bytes:
        """The model with the shapes that its inputs were given, and outputs of as many frames."""
        proto = onnx.load_from_string(self.model)
        free = {
            dim.dim_param: side
            for value, tensor in zip(proto.graph.input, self.inputs, strict=True)
            for dim, side in zip(value.type.tensor_type.shape.dim, tensor.shape, strict=True)
            if dim.dim_param
        }
        for value in (*proto.graph.input, *proto.graph.output):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param in free:
                    dim.dim_value = free[dim.dim_param]
        return bytes(proto.SerializeToString())

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> ITensor:
        return self.inputs[index]

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, index: int) -> ILayer:
        return self.layers[index]


class IBuilderConfig:
    def __init__(self) -> None:
        self.flags: set[str] = {"TF32"}
        self.pools: dict[str, int] = {}

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self.pools[pool.name] = pool_size


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network
        self._errors: list[str] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return ParserError(self._errors[index])

    def parse(self, model: bytes) -> bool:
        try:
            proto = onnx.shape_inference.infer_shapes(onnx.load_from_string(model))
            onnx.checker.check_model(proto)
        except Exception as error:
            self._errors.append(f"fake parser: {type(error).__name__}")
            return False
        graph = proto.graph
        kinds = {v.name: TYPES.get(v.type.tensor_type.elem_type) for v in (*graph.value_info, *graph.output)}
        self._network.model = model
        self._network.inputs = [ITensor(value) for value in graph.input]
        self._network.layers = [ILayer(node, kinds.get(node.output[0]) or DataType.FLOAT) for node in graph.node]
        return True


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return name in self._engine.tensors

    def execute_async_v3(self, stream_handle: int) -> bool:
        if not stream_handle or set(self._addresses) != set(self._engine.tensors):
            return False
        feed = {name: self._at(name).astype(kind) for name, kind in self._engine.wanted.items()}
        for name, values in zip(self._engine.gives, self._engine.session.run(None, feed), strict=True):
            self._at(name)[...] = values
        return True

    def _at(self, name: str) -> Any:
        shape, kind, _ = self._engine.tensors[name]
        size = int(np.prod(shape)) * np.dtype(NUMPY[kind]).itemsize
        memory = (ctypes.c_ubyte * size).from_address(self._addresses[name])
        return np.frombuffer(memory, NUMPY[kind]).reshape(shape)


class ICudaEngine:
    def __init__(self, model: bytes, narrow: bool) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        graph = onnx.load_from_string(model).graph
        self.tensors: dict[str, tuple[list[int], DataType, TensorIOMode]] = {}
        for values, mode in ((graph.input, TensorIOMode.INPUT), (graph.output, TensorIOMode.OUTPUT)):
            for value in values:
                kind = TYPES[value.type.tensor_type.elem_type]
                kind = DataType.INT32 if narrow and kind == DataType.INT64 else kind
                shape = [d.dim_value or -1 for d in value.type.tensor_type.shape.dim]
                self.tensors[value.name] = shape, kind, mode
        types = {value.name: TYPES[value.type.tensor_type.elem_type] for value in graph.input}
        self.wanted = {name: NUMPY[kind] for name, kind in types.items()}
        self.gives = [value.name for value in graph.output]

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self.tensors[name][2]

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(self.tensors[name][0])

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.tensors[name][1]

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self)


class Made:
    """What tests look at: what was built, in order."""

    def __init__(self) -> None:
        self.networks: list[INetworkDefinition] = []
        self.configs: list[IBuilderConfig] = []
        self.refuse_to_build = False
        self.refuse_to_load = False


def module(version: str) -> ModuleType:
    """A module ``tensorrt``; its ``made`` is a :class:`Made`."""
    found = ModuleType("tensorrt")
    made = Made()

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            self._logger = logger

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            if flags >> (max(NETWORK_FLAGS[version].values()) + 1):
                raise TypeError("no such network flag")
            return INetworkDefinition(flags)

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

        def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory:
            made.networks.append(network)
            made.configs.append(config)
            if made.refuse_to_build:
                self._logger.log(ILogger.Severity.ERROR, "fake builder:\n no tactic")
                return None  # type: ignore[return-value]  # as TensorRT does
            return IHostMemory(json.dumps({"version": version}).encode() + b"\n" + network.built())

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine:
            head, _, model = serialized_engine.partition(b"\n")
            if made.refuse_to_load or head != json.dumps({"version": version}).encode():
                self._logger.log(ILogger.Severity.ERROR, "fake runtime: not an engine of this version")
                return None  # type: ignore[return-value]
            return ICudaEngine(model, narrow=version.startswith("8"))

    def nptype(trt_type: DataType) -> object:
        return NUMPY[trt_type]

    parts = [
        ILogger,
        IHostMemory,
        ParserError,
        ILayer,
        INetworkDefinition,
        ITensor,
        IBuilderConfig,
        OnnxParser,
        IExecutionContext,
    ]
    parts += [ICudaEngine, Builder, Runtime, DataType, TensorIOMode, MemoryPoolType, LayerType]
    for part in parts:
        setattr(found, part.__name__, part)
    found.nptype = nptype  # type: ignore[attr-defined]
    found.made = made  # type: ignore[attr-defined]
    found.__version__ = version  # type: ignore[attr-defined]
    found.BuilderFlag = IntEnum("BuilderFlag", FLAGS[version], start=0)  # type: ignore[attr-defined]
    found.NetworkDefinitionCreationFlag = IntEnum(  # type: ignore[attr-defined]
        "NetworkDefinitionCreationFlag", NETWORK_FLAGS[version]
    )
    return found
