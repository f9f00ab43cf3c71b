"""Tails and whole networks on torch: the bundle's ONNX becomes a torch graph here, on the operator's side.

Bundles carry ONNX only. Nothing that they hold is run as code: a node becomes a call of one of our own functions
(``operators.py``, ``shapes.py``), or the bundle is refused. The weights become buffers; the code of the graph is generated
by ``torch.fx`` from names that it makes itself.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from narrowcast.tail.backends import Array, BackendSettings
from narrowcast.tail.backends.torch import shapes
from narrowcast.tail.backends.torch.onnx_graph import Graph, Node, parse
from narrowcast.tail.backends.torch.operators import OPERATORS, Operator
from narrowcast.tail.errors import ProviderError, TailBackendError

__all__ = ["OPERATORS", "TorchTail", "TorchWhole", "shapes"]

OLDEST_OPSET, NEWEST_OPSET = 13, 23
# Whole numbers in short lists are shapes and places, and are wanted on the CPU.
_SHORT = 16
_DEFAULT = BackendSettings(backend="torch")


class _Network:
    def __init__(self, model: bytes, what: str, settings: BackendSettings) -> None:
        self._what = what
        self._device = _device(settings)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        try:
            graph = parse(model)
            network = _Builder(graph, self._device).build()
        except Exception as error:
            raise TailBackendError(f"torch {torch.__version__} does not load the {what}: {error}") from error
        self._inputs, self._outputs = graph.inputs, graph.outputs
        self.name = f"torch {torch.__version__} ({self._device}{', compiled' if settings.torch_compile else ''})"
        # Not the module's own call, which prints the generated code when a batch fails.
        self._network: Any = torch.compile(network, dynamic=True) if settings.torch_compile else network.forward

    def _run(self, inputs: Mapping[str, npt.NDArray[Any]], count: int) -> dict[str, Array]:
        try:
            with torch.inference_mode():
                # A copy: torch has no arrays that may not be written to.
                given = [torch.from_numpy(inputs[name].copy()).to(self._device) for name in self._inputs]
                results = [result.cpu().numpy() for result in self._network(*given)]
        except Exception as error:
            first = str(error).strip().partition("\n")[0]
            raise TailBackendError(f"the {self._what} failed on a batch of {count}: {first}") from error
        return dict(zip(self._outputs, results, strict=True))


class TorchTail(_Network):
    """See :class:`narrowcast.tail.backends.TailBackend`."""

    def __init__(self, model: bytes, settings: BackendSettings = _DEFAULT) -> None:
        super().__init__(model, "tail", settings)

    def run(self, symbols: npt.NDArray[np.uint8], levels: npt.NDArray[np.int64]) -> dict[str, Array]:
        """See :class:`narrowcast.tail.backends.TailBackend`."""
        return self._run({"symbols": symbols, "level": levels}, len(symbols))


class TorchWhole(_Network):
    """See :class:`narrowcast.tail.backends.ImageBackend`."""

    def __init__(self, model: bytes, settings: BackendSettings = _DEFAULT) -> None:
        super().__init__(model, "whole network", settings)

    def run_images(self, images: npt.NDArray[np.uint8]) -> dict[str, Array]:
        """See :class:`narrowcast.tail.backends.ImageBackend`."""
        return self._run({"image": images}, len(images))


def _device(settings: BackendSettings) -> torch.device:
    """The GPU where torch has one, else the CPU.

    Raises:
        ProviderError: no such GPU.
    """
    if not torch.cuda.is_available():
        if settings.device:
            raise ProviderError(f"torch {torch.__version__} has no GPU here, and GPU {settings.device} was asked for")
        return torch.device("cpu")
    if settings.device >= torch.cuda.device_count():
        raise ProviderError(f"there is no GPU {settings.device}; torch has {torch.cuda.device_count()}, from 0 on")
    return torch.device("cuda", settings.device)


class _Builder:
    """Builds one network."""

    def __init__(self, graph: Graph, device: torch.device) -> None:
        if not OLDEST_OPSET <= graph.opset <= NEWEST_OPSET:
            raise ValueError(f"opset {graph.opset}; this backend runs {OLDEST_OPSET} to {NEWEST_OPSET}")
        self._graph = graph
        self._device = device
        self._root = nn.Module()
        self._fx = fx.Graph()
        self._values: dict[str, fx.Node] = {}

    def build(self) -> fx.GraphModule:
        for number, name in enumerate(self._graph.inputs):
            self._values[name] = self._fx.placeholder(f"input_{number}")
        for node in self._graph.nodes:
            self._add(node)
        self._fx.output(tuple(self._value(name) for name in self._graph.outputs))
        self._fx.lint()
        return fx.GraphModule(self._root, self._fx)

    def _add(self, node: Node) -> None:
        known = OPERATORS.get(node.operator)
        if known is None:
            raise ValueError(
                f"it uses the operator {node.operator!r}, which the torch backend does not know; serve it with "
                "--backend onnxruntime"
            )
        arguments = self._arguments(node, known)
        if inspect.isfunction(known.function):
            try:
                inspect.signature(known.function).bind(*arguments, **node.attributes)
            except TypeError as error:
                raise ValueError(f"the operator {node.operator!r} ({node.name}): {error}") from error
        elif node.attributes or len(arguments) != 1:
            raise ValueError(f"the operator {node.operator!r} ({node.name}) with {sorted(node.attributes)}")
        attributes = {
            name: self._buffer(value) if isinstance(value, np.ndarray) else value
            for name, value in node.attributes.items()
        }
        made = self._fx.call_function(known.function, tuple(arguments), attributes)
        outputs = [name for name in node.outputs if name]
        if known.outputs == 1:
            if len(outputs) != 1:
                raise ValueError(f"the operator {node.operator!r} ({node.name}) with {len(outputs)} outputs")
            self._values[outputs[0]] = made
            return
        for number, name in enumerate(node.outputs):
            self._values[name] = self._fx.call_function(operator.getitem, (made, number))

    def _arguments(self, node: Node, known: Operator) -> list[Any]:
        arguments: list[Any] = []
        for place, name in enumerate(node.inputs):
            if not name:
                arguments.append(None)
            elif place in known.host and name in self._graph.constants:
                arguments.append(_numbers(self._graph.constants[name]))
            else:
                arguments.append(self._value(name))
        return arguments

    def _value(self, name: str) -> fx.Node:
        if name not in self._values:
            array = self._graph.constants.get(name)
            if array is None:
                raise ValueError(f"the value {name!r} comes from nowhere")
            self._values[name] = self._buffer(array)
        return self._values[name]

    def _buffer(self, array: Array) -> fx.Node:
        name = f"constant_{sum(1 for _ in self._root.buffers())}"
        self._root.register_buffer(name, _tensor(array, self._device))
        return self._fx.get_attr(name)


def _numbers(array: Array) -> Any:
    found = array.tolist()
    return tuple(found) if isinstance(found, list) else found


def _tensor(array: Array, device: torch.device) -> torch.Tensor:
    short = array.dtype == np.int64 and array.ndim <= 1 and array.size <= _SHORT
    return torch.from_numpy(array.copy()).to("cpu" if short else device)
