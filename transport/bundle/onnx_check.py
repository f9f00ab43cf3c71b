"""Whether an ONNX model may be loaded: known operator domains only, nothing outside the file.

It is read with a few fields of ONNX's schema and protobuf's own parser, which bounds depth and size: a board needs no onnx
package.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from google.protobuf.message import DecodeError

from narrowcast.transport.bundle import onnx_subset_pb2 as onnx
from narrowcast.transport.errors import ExternalDataError, OnnxError, UnknownOperatorDomainError

# ONNX's own operators, and those that ONNX Runtime ships (quantization).
KNOWN_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
_EXTERNAL = 1


def check_onnx(data: bytes, name: str) -> None:
    """Returns if the model in ``data`` is self-contained and uses known operators only.

    Raises:
        OnnxError: no ONNX model.
        ExternalDataError: a tensor lies outside the file.
        UnknownOperatorDomainError: an operator of another domain.
    """
    try:
        model = onnx.Model.FromString(data)
    except DecodeError as error:
        raise OnnxError(f"{name} is no ONNX model: {error}") from error
    if not model.ir_version or not model.graph.node:
        raise OnnxError(f"{name} is no ONNX model: it has no graph")
    # A model's own functions are made of nodes that are checked like all others.
    own = {(function.domain, function.name) for function in model.functions}
    for node in _nodes(model):
        if node.domain not in KNOWN_DOMAINS and (node.domain, node.op_type) not in own:
            known = ", ".join(sorted(domain for domain in KNOWN_DOMAINS if domain))
            raise UnknownOperatorDomainError(
                f"{name} uses the operator {node.op_type!r} of the domain {node.domain!r}; known domains: {known}"
            )
    for tensor in _tensors(model):
        if tensor.data_location == _EXTERNAL or tensor.external_data:
            raise ExternalDataError(f"{name}: its tensor {tensor.name!r} lies outside the file")


def _graphs(model: onnx.Model) -> Iterator[onnx.Graph]:
    waiting = [model.graph]
    for function in model.functions:
        waiting += _inner(_of_function(function))
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += _inner(_of_nodes(graph.node))


def _inner(attributes: Iterable[onnx.Attribute]) -> list[onnx.Graph]:
    return [g for a in attributes for g in ([a.g] if a.HasField("g") else []) + list(a.graphs)]


def _of_nodes(nodes: Iterable[onnx.Node]) -> Iterator[onnx.Attribute]:
    for node in nodes:
        yield from node.attribute


def _of_function(function: onnx.Function) -> Iterator[onnx.Attribute]:
    yield from _of_nodes(function.node)
    yield from function.attribute_proto  # what its own attributes are where a caller gives none


def _nodes(model: onnx.Model) -> Iterator[onnx.Node]:
    for function in model.functions:
        yield from function.node
    for graph in _graphs(model):
        yield from graph.node


def _attributes(model: onnx.Model) -> Iterator[onnx.Attribute]:
    for function in model.functions:
        yield from _of_function(function)
    for graph in _graphs(model):
        yield from _of_nodes(graph.node)


def _tensors(model: onnx.Model) -> Iterator[onnx.Tensor]:
    for graph in _graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for attribute in _attributes(model):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
