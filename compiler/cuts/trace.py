"""From a module to a graph in which every value's shape and cost is known.

torch.fx is tried first: it keeps the modules, so that names stay the user's own. Where its symbolic tracing fails, or
the traced graph does not give the module's own outputs, torch.export takes over. A program that was exported already
(``.pt2``) is taken as it is.
"""

from __future__ import annotations

import io
import logging
import operator
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from math import gcd, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from narrowcast.compiler.collector import collector_paused
from narrowcast.compiler.cuts.observe import BATCHES, Value, follows_batch, observe, outputs_equal
from narrowcast.compiler.errors import TraceError

__all__ = ["BATCHES", "FreeSizes", "Traced", "Value", "grows", "larger_size", "outputs_equal", "size_of_batch", "trace"]

LONGEST = 160  # characters of another library's message in one of ours
_PART = (
    "name a function that returns the part up to its tensors, such as a detector's backbone and heads without box "
    "selection (docs/cuts.md)"
)
# What the tracers' errors mean, by a word in their type or text.
_CAUSES = (
    ("DataDependent", f"what runs depends on the pixels' values; {_PART}"),
    ("data-dependent", f"what runs depends on the pixels' values; {_PART}"),
    ("Dynamo failed to run FX node with fake tensors", "an operator has no shape rule (a custom or compiled kernel?)"),
    ("fake impl", "an operator has no shape rule: register one with torch.library.register_fake"),
    (
        "Constraints violated (batch)",
        "it works for one batch size only; let forward() take any (x.shape[0], not len(x))",
    ),
    (".numpy() is not supported", "it leaves torch in between (.numpy()); use torch's own operations"),
    ("other outputs than", "its outputs change from run to run (random numbers in eval mode?)"),
)


@dataclass
class Traced:
    """A traced network.

    Attributes:
        module: the graph, sharing the network's parameters.
        method: ``torch.fx`` or ``torch.export``.
        values: what each node gives.
        input_size: height and width that it was traced with.
        larger_size: a second height and width that it was seen with; None where it is for one size only.
    """

    module: fx.GraphModule
    method: str
    values: dict[fx.Node, Value]
    input_size: tuple[int, int]
    larger_size: tuple[int, int] | None = None


def larger_size(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """A larger size, both sides ``multiple`` apart or twice that, of another aspect."""
    one, other = (size[0] + multiple, size[1] + 2 * multiple), (size[0] + 2 * multiple, size[1] + multiple)
    return one if one[0] * size[1] != one[1] * size[0] else other


def trace(network: nn.Module, input_size: tuple[int, int], multiple: int | None = None) -> Traced:
    """Traces a network that takes one float tensor ``[N, 3, H, W]``.

    Args:
        network: in evaluation mode.
        input_size: height and width.
        multiple: it is to take images of any size, sides being multiples of this; None: of ``input_size`` alone.

    Raises:
        TraceError: neither tracer takes it, or it does not take other sizes; the message holds the reasons.
    """
    images = [_example(batch, input_size) for batch in BATCHES]
    larger = None if multiple is None else larger_size(input_size, multiple)
    with torch.no_grad(), _quiet():
        wanted = _run(network, images, input_size)
        if larger is not None:
            images.append(_example(BATCHES[0], larger))
            wanted.append(_run_larger(network, images[-1], larger))
        reasons, failed = [], []
        for method, tracer in _tracers(network, multiple):
            try:
                module = tracer(network, images[0].clone())
                values = observe(module, images, wanted)
            except Exception as error:  # noqa: BLE001  (tracers and user code raise anything; every reason is told)
                reasons.append(f"{method}: {_first_line(error)}{_place(error)}")
                failed.append(error)
                continue
            return Traced(module, method, values, input_size, larger)
    raise TraceError(f"the network cannot be traced: {_cause(failed[-1])} ({'; '.join(reasons)})")


def _run_larger(network: nn.Module, image: Tensor, size: tuple[int, int]) -> Any:
    try:
        return network(image.clone())
    except Exception as error:
        raise TraceError(
            f'fit = "free" wants a network that takes images of any size; this one fails on {size[0]} x {size[1]} '
            f"({_first_line(error)}): a fixed grid of position embeddings or tokens, a flattened map, or a stride that "
            "multiple_of is no multiple of"
        ) from error


def _tracers(
    network: nn.Module, multiple: int | None
) -> list[tuple[str, Callable[[nn.Module, Tensor], fx.GraphModule]]]:
    if isinstance(network, fx.GraphModule):
        exported = any("val" in node.meta for node in network.graph.nodes)
        return [("torch.export" if exported else "torch.fx", _as_it_is)]
    return [("torch.fx", _symbolic), ("torch.export", partial(_export, multiple=multiple))]


def _run(network: nn.Module, images: list[Tensor], size: tuple[int, int]) -> list[Any]:
    """The network's own outputs for each batch."""
    try:
        return [network(image.clone()) for image in images]
    except Exception as error:
        taken = _exported_input(network)
        if taken is not None and not taken[0].startswith("s"):
            raise TraceError(
                f"the program was exported for batches of {taken[0]} (float32 [{', '.join(taken)}]); export it with "
                'dynamic_shapes=({0: torch.export.Dim("batch")},) and two example images'
            ) from error
        hint = "is [input] size the one it was trained with?"
        if taken is not None:
            hint = f"it was exported for [N, {', '.join(taken[1:])}]"
        raise TraceError(
            f"the network does not run on float32 [2, 3, {size[0]}, {size[1]}]: {_first_line(error)}; {hint}"
        ) from error


def _exported_input(network: nn.Module) -> list[str] | None:
    """The input's shape that an exported program was made for (a name where it is free); None for other networks."""
    if isinstance(network, fx.GraphModule):
        for node in network.graph.nodes:
            if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor):
                return [str(side) for side in node.meta["val"].shape]
    return None


def _example(batch: int, size: tuple[int, int]) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(batch))


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {line if len(line) <= LONGEST else line[:LONGEST] + '...'}"


def _place(error: Exception) -> str:
    """Where in the network's own code an error arose: the innermost line that is not torch's."""
    libraries = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((*libraries, "<"))]
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _cause(error: Exception) -> str:
    seen = f"{type(error).__name__} {error}"
    return next((cause for word, cause in _CAUSES if word in seen), f"neither tracer follows its forward(); {_PART}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Tracers print and warn about what they cannot follow, before they fail or manage after all.

    torch's fused transformer layers are off meanwhile: no exporter knows them, their parts every exporter does.
    """
    logger = logging.getLogger("torch")
    level, fused = logger.level, torch.backends.mha.get_fastpath_enabled()
    logger.setLevel(logging.CRITICAL)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        torch.backends.mha.set_fastpath_enabled(fused)


def _as_it_is(network: nn.Module, _image: Tensor) -> fx.GraphModule:
    assert isinstance(network, fx.GraphModule)
    return network


class _Tracer(fx.Tracer):
    """Symbolic tracing in which optional arguments of the network's ``forward`` keep their defaults.

    Otherwise a ``mask=None`` would be a symbol, which is never None, and the wrong branches would be taken.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Modules of torch.nn are kept whole, but for those that hold a whole network's layers."""
        layers = nn.Transformer | nn.TransformerEncoder | nn.TransformerDecoder
        return not isinstance(m, layers) and super().is_leaf_module(m, module_qualified_name)

    def create_proxy(self, kind: str, target: Any, args: Any, *rest: Any, **named: Any) -> Any:
        """See the class."""
        if kind == "placeholder" and args:
            return args[0]
        return super().create_proxy(kind, target, args, *rest, **named)


def _symbolic(network: nn.Module, _image: Tensor) -> fx.GraphModule:
    return fx.GraphModule(network, _Tracer().trace(network))


def _export(network: nn.Module, image: Tensor, multiple: int | None) -> fx.GraphModule:
    sides: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=4096)}
    if multiple is not None:
        sides |= {2: multiple * torch.export.Dim("rows"), 3: multiple * torch.export.Dim("columns")}
    with collector_paused():
        return torch.export.export(network, (image,), dynamic_shapes=(sides,)).module()


def size_of_batch(like: fx.Node, value: Any, other: Any) -> Any:
    """``value`` (seen with ``BATCHES[0]`` images; ``other`` with ``BATCHES[1]``) as a graph expression.

    Numbers that are equal in both runs become constants; multiples of the batch are computed from ``like``'s first
    dimension. ``like`` must be a node of the graph that is being built.

    Raises:
        TraceError: it is neither.
    """
    if not follows_batch(value, other):
        raise TraceError(f"a value that is {value} for {BATCHES[0]} images is {other} for {BATCHES[1]}")
    if isinstance(value, tuple):
        return tuple(size_of_batch(like, a, b) for a, b in zip(value, other, strict=True))
    if value == other:
        return value
    batch = like.graph.call_method("size", (like, 0))
    factor = value // BATCHES[0]
    return batch if factor == 1 else like.graph.call_function(operator.mul, (batch, factor))


def grows(traced: Traced, at: fx.Node) -> bool:
    """Whether the maps at a cut grow as images do, so that images may have any size."""
    try:
        FreeSizes(traced, at)
    except TraceError:
        return False
    return True


class FreeSizes:
    """Numbers that follow the images' size, as expressions of the features' rows and columns.

    Args:
        traced: seen with two sizes.
        at: whose value the features are: maps, so that rows and columns are two of their axes.

    Raises:
        TraceError: their rows and columns do not grow in step with the images'.
    """

    def __init__(self, traced: Traced, at: fx.Node) -> None:
        seen = traced.values[at]
        shape, larger = seen.results[0], seen.larger
        self._sides: list[tuple[int, int, int]] = []  # axis, and its length for either size
        assert traced.larger_size is not None
        for before, after in zip(traced.input_size, traced.larger_size, strict=True):
            axes = [k for k in range(1, len(shape)) if shape[k] != larger[k] and shape[k] * after == larger[k] * before]
            if len(axes) != 1:
                raise TraceError(
                    f'fit = "free" wants a cut with maps that grow as images do; at {at.name!r} images of '
                    f"{traced.input_size[0]} x {traced.input_size[1]} have {list(shape[1:])}, of "
                    f"{traced.larger_size[0]} x {traced.larger_size[1]} {list(larger[1:])}"
                )
            self._sides.append((axes[0], shape[axes[0]], larger[axes[0]]))

    def number(self, like: fx.Node, value: Any, other: Any, larger: Any) -> Any:
        """As :func:`size_of_batch`, for a value that was ``larger`` with the second size.

        Raises:
            TraceError: it follows neither batch, nor rows, nor columns, nor their product.
        """
        if isinstance(value, tuple):
            return tuple(self.number(like, *three) for three in zip(value, other, larger, strict=True))
        if value == larger:
            return size_of_batch(like, value, other)
        rows, columns = self._sides
        both = [(rows,), (columns,), (rows, columns)]
        for sides in both if isinstance(value, int) and value == other else ():
            before, after = (prod(side[k] for side in sides) for k in (1, 2))
            if value * after == larger * before:
                return self._times(like, [side[0] for side in sides], value, before)
        raise TraceError(
            f"a value that is {value} for images of one size is {larger} for larger ones: it follows neither"
        )

    def _times(self, like: fx.Node, axes: list[int], value: int, before: int) -> fx.Node:
        """The features' length along ``axes``, multiplied, times ``value / before``."""
        found = like.graph.call_method("size", (like, axes[0]))
        for axis in axes[1:]:
            found = like.graph.call_function(operator.mul, (found, like.graph.call_method("size", (like, axis))))
        factor, divisor = value // gcd(value, before), before // gcd(value, before)
        if factor > 1:
            found = like.graph.call_function(operator.mul, (found, factor))
        return like.graph.call_function(operator.floordiv, (found, divisor)) if divisor > 1 else found
