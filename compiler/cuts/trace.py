"""From a module to a graph in which every value's shape and cost is known.

torch.fx is tried first: it keeps the modules, so that names stay the user's own. Where its symbolic tracing fails, or
the traced graph does not give the module's own outputs, torch.export takes over.

The graph is run on two batch sizes. Comparing the runs tells which numbers in it (results of ``x.shape`` and arithmetic
on them) follow the batch and which are fixed; only tensors then count as data flow.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from narrowcast.compiler.errors import TraceError

BATCHES = (2, 3)


@dataclass
class Value:
    """What a node gives, seen on both batch sizes.

    Attributes:
        from_input: whether it depends on the network's input.
        results: shape of a tensor, or the plain value, per batch size of ``BATCHES``; None for other objects.
        is_data: it carries tensors that depend on the input.
        is_tensor: it is exactly one tensor.
        is_float: it is exactly one floating-point tensor.
        macs: multiply-accumulates of the node itself, per image.
    """

    from_input: bool = False
    is_data: bool = False
    is_tensor: bool = False
    is_float: bool = False
    macs: int = 0
    results: list[Any] = field(default_factory=list)


@dataclass
class Traced:
    """A traced network.

    Attributes:
        module: the graph, sharing the network's parameters.
        method: ``torch.fx`` or ``torch.export``.
        values: what each node gives.
        input_size: height and width that it was traced with.
    """

    module: fx.GraphModule
    method: str
    values: dict[fx.Node, Value]
    input_size: tuple[int, int]


def trace(network: nn.Module, input_size: tuple[int, int]) -> Traced:
    """Traces a network that takes one float tensor ``[N, 3, H, W]``.

    Raises:
        TraceError: neither tracer takes it; the message holds both reasons.
    """
    images = [_example(batch, input_size) for batch in BATCHES]
    with torch.no_grad():
        try:
            wanted = [network(image) for image in images]
        except Exception as error:
            raise TraceError(
                f"the network does not run on float32 [2, 3, {input_size[0]}, {input_size[1]}]: "
                f"{_first_line(error)}; is [input] size the one it was trained with?"
            ) from error
        reasons = []
        for method, tracer in (("torch.fx", _symbolic), ("torch.export", _export)):
            try:
                module = tracer(network, images[0])
                values = _observe(module, images, wanted)
            except Exception as error:  # noqa: BLE001  (tracers and user code raise anything; every reason is told)
                reasons.append(f"{method}: {_first_line(error)}")
                continue
            return Traced(module, method, values, input_size)
    raise TraceError(f"the network cannot be traced ({'; '.join(reasons)})")


def _example(batch: int, size: tuple[int, int]) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(batch))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _symbolic(network: nn.Module, _image: Tensor) -> fx.GraphModule:
    return fx.symbolic_trace(network)


def _export(network: nn.Module, image: Tensor) -> fx.GraphModule:
    batch = torch.export.Dim("batch", min=1, max=4096)
    return torch.export.export(network, (image,), dynamic_shapes=({0: batch},)).module()


class _Observer(fx.Interpreter):
    """Runs the graph and writes down what each node gives."""

    def __init__(self, module: fx.GraphModule, values: dict[fx.Node, Value], count_macs: bool) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.values = values
        self.count_macs = count_macs

    def run_node(self, n: fx.Node) -> Any:
        value = self.values.setdefault(n, Value())
        if self.count_macs and n.op in ("call_function", "call_method", "call_module"):
            counter = FlopCounterMode(display=False)
            with counter:
                result = super().run_node(n)
            value.macs = counter.get_total_flops() // 2 // BATCHES[0]
        else:
            result = super().run_node(n)
        leaves = pytree.tree_leaves(result)
        value.from_input = n.op == "placeholder" or any(self.values[a].from_input for a in n.all_input_nodes)
        value.is_tensor = isinstance(result, Tensor)
        value.is_float = isinstance(result, Tensor) and result.is_floating_point()
        value.is_data = value.from_input and any(isinstance(leaf, Tensor) for leaf in leaves)
        value.results.append(_plain(result))
        return result


def _plain(result: Any) -> Any:
    if isinstance(result, Tensor):
        return tuple(result.shape)
    if isinstance(result, tuple | list) and all(isinstance(entry, int) for entry in result):
        return tuple(result)
    return result if isinstance(result, int | float | str | bool | torch.dtype | torch.device) else None


def _observe(module: fx.GraphModule, images: list[Tensor], wanted: list[Any]) -> dict[fx.Node, Value]:
    values: dict[fx.Node, Value] = {}
    for k, image in enumerate(images):
        got = _Observer(module, values, count_macs=k == 0).run(image)
        if not outputs_equal(got, wanted[k]):
            raise TraceError("the traced graph gives other outputs than the network")
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


def size_of_batch(like: fx.Node, value: Any, other: Any) -> Any:
    """``value`` (seen with ``BATCHES[0]`` images; ``other`` with ``BATCHES[1]``) as a graph expression.

    Numbers that are equal in both runs become constants; multiples of the batch are computed from ``like``'s first
    dimension. ``like`` must be a node of the graph that is being built.

    Raises:
        TraceError: it is neither.
    """
    if isinstance(value, tuple) and isinstance(other, tuple) and len(value) == len(other):
        return tuple(size_of_batch(like, a, b) for a, b in zip(value, other, strict=True))
    if value == other:
        return value
    if isinstance(value, int) and isinstance(other, int) and value * BATCHES[1] == other * BATCHES[0]:
        batch = like.graph.call_method("size", (like, 0))
        factor = value // BATCHES[0]
        return batch if factor == 1 else like.graph.call_function(operator.mul, (batch, factor))
    raise TraceError(f"a value that is {value} for {BATCHES[0]} images is {other} for {BATCHES[1]}")
