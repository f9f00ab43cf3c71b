"""What each node of a traced network gives, seen by running the graph on two batch sizes.

Comparing the runs tells which numbers in the graph (results of ``x.shape`` and arithmetic on them) follow the batch and
which are fixed. Watching the tensors' storages and versions tells which nodes change others in place. Only what depends on
the pixels' values is data flow: a mask or a position table that is computed from ``x.shape`` alone can be computed again
behind any cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from narrowcast.compiler.errors import TraceError

BATCHES = (2, 3)
# What makes plain numbers of a tensor's values, not of its shape.
_READ_VALUES = frozenset({"item", "tolist", "_local_scalar_dense", "equal", "allclose", "is_nonzero"})


@dataclass
class Value:
    """What a node gives, seen on both batch sizes.

    Attributes:
        from_input: whether it depends on the network's input at all, be it on its shape.
        is_data: it depends on the values of the input's pixels.
        has_tensor: there is a tensor in it.
        is_float: it is exactly one floating-point tensor.
        macs: multiply-accumulates of the node itself, per image.
        results: shape of a tensor, or the plain value, per batch size of ``BATCHES``; None for other objects.
        larger: the result for images of a second size (see ``observe``); None where there are none.
        changed_by: nodes that change it in place, or a tensor that shares its memory, in order of execution.
    """

    from_input: bool = False
    is_data: bool = False
    has_tensor: bool = False
    is_float: bool = False
    macs: int = 0
    results: list[Any] = field(default_factory=list)
    larger: Any = None
    changed_by: list[fx.Node] = field(default_factory=list)


def observe(module: fx.GraphModule, images: list[Tensor], wanted: list[Any]) -> dict[fx.Node, Value]:
    """Runs ``module`` on ``images`` (one batch for each size of ``BATCHES``) and tells what each node gives.

    A third batch, as many images as the first has, of another height and width, tells what follows these.

    Raises:
        TraceError: the graph gives other outputs than the network, which gave ``wanted``.
    """
    values = {node: Value() for node in module.graph.nodes}
    observer = _Observer(module, values)
    for image, expected in zip(images, wanted, strict=True):
        if not outputs_equal(observer.run(image.clone()), expected):
            raise TraceError("the traced graph gives other outputs than the network")
        observer.count_macs = False
        observer.larger = len(values[next(iter(values))].results) == len(BATCHES)
    for node, changed in observer.changes:
        for other in observer.memory.sharing(changed):
            if node not in values[other].changed_by:
                values[other].changed_by.append(node)
    _mark_data(values)
    return values


def outputs_equal(first: Any, second: Any) -> bool:
    """Whether two (nested) outputs hold the same tensors, bit for bit; NaN equals NaN."""
    one, other = pytree.tree_leaves(first), pytree.tree_leaves(second)
    return len(one) == len(other) and all(
        torch.equal(a, b) or (a.shape == b.shape and bool(torch.isclose(a, b, 0, 0, equal_nan=True).all()))
        if isinstance(a, Tensor) and isinstance(b, Tensor)
        else a is b or bool(a == b)
        for a, b in zip(one, other, strict=True)
    )


def follows_batch(value: Any, other: Any) -> bool:
    """Whether a value is fixed or a multiple of the batch, from what it is with either size of ``BATCHES``."""
    if isinstance(value, tuple) and isinstance(other, tuple):
        return len(value) == len(other) and all(map(follows_batch, value, other))
    if isinstance(value, int) and isinstance(other, int):
        return value == other or value * BATCHES[1] == other * BATCHES[0]
    return bool(value == other)


def is_size(value: Value) -> bool:
    """Whether a node gives a plain value (a number, a shape, a dtype) that follows from the batch alone.

    Behind a cut it is a constant or a multiple of the batch, whatever it was read off.
    """
    known = not value.has_tensor and all(result is not None for result in value.results)
    return known and value.from_input and not value.is_data and follows_batch(*value.results)


class _Memory:
    """Which nodes' tensors share memory: a union-find, joined while the tensors are alive."""

    def __init__(self) -> None:
        self._above: dict[fx.Node, fx.Node] = {}

    def join(self, one: fx.Node, other: fx.Node) -> None:
        self._above[self._top(one)] = self._top(other)

    def sharing(self, node: fx.Node) -> list[fx.Node]:
        """``node`` and all that share its memory."""
        top = self._top(node)
        return [node, *(other for other in self._above if other is not node and self._top(other) is top)]

    def _top(self, node: fx.Node) -> fx.Node:
        while (above := self._above.setdefault(node, node)) is not node:
            node = above
        return node


class _Observer(fx.Interpreter):
    """Runs the graph and writes down what each node gives, and what it changes."""

    def __init__(self, module: fx.GraphModule, values: dict[fx.Node, Value]) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.values = values
        self.count_macs = True
        self.larger = False
        self.memory = _Memory()
        self.changes: list[tuple[fx.Node, fx.Node]] = []  # who changes whom
        self._constants: dict[int, fx.Node] = {}  # memory of parameters and buffers, alive as long as the network

    def run_node(self, n: fx.Node) -> Any:
        value = self.values[n]
        before = {source: _tensors(self.env[source]) for source in n.all_input_nodes}
        versions = {source: _versions(tensors) for source, tensors in before.items()}
        result = self._run(n, value)
        tensors = _tensors(result)
        memory = _memory(tensors)
        for source, given in before.items():
            if _versions(given) != versions[source]:
                self.changes.append((n, source))
            if memory & _memory(given):
                self.memory.join(n, source)
        if n.op == "get_attr":
            for place in memory:
                self.memory.join(n, self._constants.setdefault(place, n))
        value.from_input = n.op == "placeholder" or any(self.values[a].from_input for a in n.all_input_nodes)
        value.has_tensor = bool(tensors)
        value.is_float = isinstance(result, Tensor) and result.is_floating_point()
        if self.larger:
            value.larger = _plain(result)
        else:
            value.results.append(_plain(result))
        return result

    def _run(self, node: fx.Node, value: Value) -> Any:
        if not self.count_macs or node.op not in ("call_function", "call_method", "call_module"):
            return super().run_node(node)
        counter = FlopCounterMode(display=False)
        with counter:
            result = super().run_node(node)
        value.macs = counter.get_total_flops() // 2 // BATCHES[0]
        return result


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def _versions(tensors: Iterable[Tensor]) -> list[int]:
    return [tensor._version for tensor in tensors if not tensor.is_inference()]  # noqa: SLF001  (autograd's own counter)


def _memory(tensors: Iterable[Tensor]) -> set[int]:
    return {tensor.untyped_storage()._cdata for tensor in tensors if tensor.layout is torch.strided}  # noqa: SLF001


def _plain(result: Any) -> Any:
    if isinstance(result, Tensor):
        return tuple(result.shape)
    if isinstance(result, tuple | list) and all(isinstance(entry, int) for entry in result):
        return tuple(result)
    return result if isinstance(result, int | float | str | bool | torch.dtype | torch.device) else None


def _mark_data(values: dict[fx.Node, Value]) -> None:
    """Follows the pixels through the graph; memory that is ever written with them is data from the start."""
    marked = -1
    while marked != (marked := sum(value.is_data for value in values.values())):
        for node, value in values.items():
            pixels = node.op == "placeholder" or any(values[source].is_data for source in node.all_input_nodes)
            value.is_data |= pixels and (value.has_tensor or _target(node) in _READ_VALUES)
            value.is_data |= any(
                values[source].is_data for changer in value.changed_by for source in changer.all_input_nodes
            )


def _target(node: fx.Node) -> str:
    """The plain name of what the node calls: ``item``, ``add``."""
    target = getattr(node.target, "overloadpacket", node.target)
    return target.rpartition(".")[2] if isinstance(target, str) else getattr(target, "__name__", "")
