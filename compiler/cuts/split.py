"""Cutting a traced graph in two at one of its nodes, and looking into the second half."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from narrowcast.compiler.cuts.trace import Traced, size_of_batch
from narrowcast.compiler.errors import CutError


def prefix(traced: Traced, at: fx.Node) -> fx.GraphModule:
    """The graph from the input to ``at``: ``[N, 3, H, W]`` in, the features at the cut out."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    needed = _ancestors([at], lambda node: False)
    for node in traced.module.graph.nodes:
        if node.op == "placeholder" or node in needed:
            copied[node] = graph.node_copy(node, copied.__getitem__)
    graph.output(copied[at])
    return _finish(traced, graph)


def suffix(traced: Traced, at: fx.Node, taps: list[fx.Node] | None = None) -> fx.GraphModule:
    """The graph from ``at`` to the outputs: the features at the cut in, the network's outputs out.

    The input is cloned first, so that in-place layers never change the caller's tensor.

    Args:
        traced: the network.
        at: the cut.
        taps: nodes behind the cut whose values are wanted too; the result is then ``(list of values, outputs)``.
    """
    graph = fx.Graph()
    source = next(node for node in traced.module.graph.nodes if node.op == "output")
    features = graph.placeholder("features")
    copied: dict[fx.Node, Any] = {at: graph.call_function(torch.clone, (features,))}

    def follows_shape(node: fx.Node) -> bool:
        return traced.values[node].from_input and not traced.values[node].is_data

    needed = _ancestors([*source.all_input_nodes, *(taps or [])], lambda node: node is at or follows_shape(node))
    for node in traced.module.graph.nodes:
        if node not in needed or node is at:
            continue
        if follows_shape(node):
            copied[node] = size_of_batch(features, *traced.values[node].results)
        elif node.op == "placeholder":
            raise CutError(f"not all data flows through {at.name!r}: the input is used behind it")
        else:
            copied[node] = _copy(graph, node, copied)
            if node in (taps or []):  # a later in-place layer must not change what was tapped
                copied[node, "tap"] = graph.call_function(torch.clone, (copied[node],))  # type: ignore[index]
    outputs = _nested(traced, fx.node.map_arg(source.args[0], copied.__getitem__))
    graph.output(outputs if taps is None else ([copied[tap, "tap"] for tap in taps], outputs))  # type: ignore[index]
    return _finish(traced, graph)


def _nested(traced: Traced, outputs: Any) -> Any:
    """Outputs as the network nests them: torch.export's graphs give them flat."""
    codegen = traced.module.graph._codegen  # noqa: SLF001  (where torch.fx keeps the nesting)
    if not isinstance(codegen, _PyTreeCodeGen) or codegen.pytree_info.out_spec is None:
        return outputs
    return pytree.tree_unflatten(list(outputs), codegen.pytree_info.out_spec)


def _copy(graph: fx.Graph, node: fx.Node, copied: dict[fx.Node, Any]) -> fx.Node:
    """``graph.node_copy`` for nodes whose arguments may have become plain values."""
    args = fx.node.map_arg(node.args, copied.__getitem__)
    kwargs = fx.node.map_arg(node.kwargs, copied.__getitem__)
    copy = graph.create_node(node.op, node.target, args, kwargs, node.name, node.type)
    copy.meta = dict(node.meta)
    return copy


def _ancestors(of: list[fx.Node], is_source: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """``of`` and everything that they are computed from, looking no further than nodes for which ``is_source`` holds."""
    seen: set[fx.Node] = set()
    waiting = list(of)
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend([] if is_source(node) else node.all_input_nodes)
    return seen


def _finish(traced: Traced, graph: fx.Graph) -> fx.GraphModule:
    graph.lint()
    module = fx.GraphModule(traced.module, graph)
    module.training = traced.module.training
    return module
