"""Cutting a traced graph in two at one of its nodes, and looking into the second half."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from narrowcast.compiler.cuts.observe import is_size
from narrowcast.compiler.cuts.trace import FreeSizes, Traced, size_of_batch
from narrowcast.compiler.errors import CutError


def prefix(traced: Traced, at: fx.Node) -> fx.GraphModule:
    """The graph from the input to ``at``: ``[N, 3, H, W]`` in, the features at the cut out."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    needed = _Needed(traced).of([at])
    for node in traced.module.graph.nodes:
        if node.op == "placeholder" or node in needed:
            copied[node] = graph.node_copy(node, copied.__getitem__)
        if node.op == "placeholder" and traced.values[node].changed_by:  # the caller's image stays as it is
            copied[node] = graph.call_function(torch.clone, (copied[node],))
    graph.output(copied[at])
    return _finish(traced, graph)


def suffix(traced: Traced, at: fx.Node, taps: list[fx.Node] | None = None) -> fx.GraphModule:
    """The graph from ``at`` to the outputs: the features at the cut in, the network's outputs out.

    The input is cloned first, so that in-place layers never change the caller's tensor. It may have other strides than the
    network's own features, as a decoder's output has: every ``view`` behind the cut becomes a ``reshape``, which takes any,
    but for those that a later in-place layer writes through.

    Args:
        traced: the network.
        at: the cut.
        taps: nodes behind the cut whose values are wanted too; the result is then ``(list of values, outputs)``.
    """
    graph = fx.Graph()
    source = next(node for node in traced.module.graph.nodes if node.op == "output")
    features = graph.placeholder("features")
    copied: dict[fx.Node, Any] = {at: graph.call_function(torch.clone, (features,))}
    needed = _Needed(traced, at).of([*source.all_input_nodes, *(taps or [])])
    sizes = None if traced.larger_size is None else FreeSizes(traced, at)
    for node in traced.module.graph.nodes:
        if node not in needed or node is at:
            continue
        if node.op == "placeholder" and traced.values[node].is_data:
            raise CutError(f"not all data flows through {at.name!r}: the input is used behind it")
        copied[node] = _again(traced, features, node, copied, sizes)
        if node in (taps or []):  # a later in-place layer must not change what was tapped
            copied[node, "tap"] = graph.call_function(torch.clone, (copied[node],))  # type: ignore[index]
    outputs = _nested(traced, fx.node.map_arg(source.args[0], copied.__getitem__))
    graph.output(outputs if taps is None else ([copied[tap, "tap"] for tap in taps], outputs))  # type: ignore[index]
    return _finish(traced, graph)


class _Needed:
    """What nodes are computed from: their arguments, and what changed those in place before they ran.

    Args:
        traced: the network.
        at: where to stop: what comes before it is not looked at, as far as it is data; None looks back to the input.
    """

    def __init__(self, traced: Traced, at: fx.Node | None = None) -> None:
        self._values = traced.values
        self._at = at
        self._position = {node: k for k, node in enumerate(traced.module.graph.nodes)}

    def of(self, nodes: list[fx.Node]) -> set[fx.Node]:
        """``nodes`` and everything that they need."""
        seen: set[fx.Node] = set()
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting.extend(self._sources(node))
        return seen

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        if self._at is not None and (node is self._at or is_size(self._values[node])):
            return []
        found = node.all_input_nodes
        for source in node.all_input_nodes:
            value = self._values[source]
            done = self._position[self._at] if self._at is not None and value.is_data else -1
            found += [c for c in value.changed_by if done < self._position[c] < self._position[node]]
        return found


def _again(
    traced: Traced, features: fx.Node, node: fx.Node, copied: dict[fx.Node, Any], sizes: FreeSizes | None
) -> Any:
    """``node`` in the graph behind the cut: a number where it is one, else the operation itself."""
    value = traced.values[node]
    is_shape = value.from_input and not value.is_data and any(traced.values[n].is_data for n in node.all_input_nodes)
    if is_size(value) or is_shape:
        one, other = value.results
        return (
            size_of_batch(features, one, other) if sizes is None else sizes.number(features, one, other, value.larger)
        )
    # A value that was changed in place before it is viewed may be copied: only what is still to be written must be shared.
    return _copy(features.graph, node, copied, is_shared=any(node < changer for changer in value.changed_by))


def _nested(traced: Traced, outputs: Any) -> Any:
    """Outputs as the network nests them: torch.export's graphs give them flat."""
    codegen = traced.module.graph._codegen  # noqa: SLF001  (where torch.fx keeps the nesting)
    if not isinstance(codegen, _PyTreeCodeGen) or codegen.pytree_info.out_spec is None:
        return outputs
    return pytree.tree_unflatten(list(outputs), codegen.pytree_info.out_spec)


def _copy(graph: fx.Graph, node: fx.Node, copied: dict[fx.Node, Any], *, is_shared: bool) -> fx.Node:
    """``graph.node_copy`` for nodes whose arguments may have become plain values.

    A view stays one where something writes through it (``is_shared``): a reshape might be a copy.
    """
    args = fx.node.map_arg(node.args, copied.__getitem__)
    kwargs = fx.node.map_arg(node.kwargs, copied.__getitem__)
    target = node.target
    if not is_shared and target == "view" and not any(isinstance(arg, torch.dtype) for arg in args):
        target = "reshape"
    elif not is_shared and target is torch.ops.aten.view.default:
        target = torch.ops.aten.reshape.default
    copy = graph.create_node(node.op, target, args, kwargs, node.name, node.type)
    copy.meta = dict(node.meta)
    return copy


def _finish(traced: Traced, graph: fx.Graph) -> fx.GraphModule:
    graph.lint()
    module = fx.GraphModule(traced.module, graph)
    module.training = traced.module.training
    return module
