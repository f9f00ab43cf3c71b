"""Where a network can be cut: the nodes through which all data flows as one tensor, with names, shapes and costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

from torch import fx, nn

from narrowcast.compiler.cuts.flow import dominators, why_none
from narrowcast.compiler.cuts.trace import Traced, trace
from narrowcast.compiler.errors import CutError
from narrowcast.compiler.teacher import load_teacher
from narrowcast.transport.structs import nearest

LISTED = 30  # rows that a reader still takes in

__all__ = ["Cut", "CutTable", "cuts", "find_cut", "find_cuts"]


@dataclass(frozen=True)
class Cut:
    """A place where the network can be cut.

    Attributes:
        name: the outermost module whose output it is (``layer2``), or the operation's name where no module ends.
        aliases: the inner modules that end there as well (``layer2.1``).
        node: the graph's node.
        shape: of the features per image: ``[C, H, W]``, ``[tokens, dim]``, ...
        is_module: a module of the network ends here; others are listed only on demand.
        macs_before: multiply-accumulates up to and including the cut, per image.
        params_before: parameters used up to and including the cut.
        macs_after: multiply-accumulates behind the cut, per image.
        params_after: parameters used behind the cut.
    """

    name: str
    aliases: tuple[str, ...]
    node: fx.Node
    shape: tuple[int, ...]
    is_module: bool
    macs_before: int
    params_before: int
    macs_after: int
    params_after: int

    @property
    def float_bytes(self) -> int:
        """Size of the uncompressed float32 features of one image."""
        return 4 * prod(self.shape)

    def as_dict(self) -> dict[str, Any]:
        """The figures, for JSON."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "float_bytes": self.float_bytes,
            "macs_before": self.macs_before,
            "params_before": self.params_before,
            "macs_after": self.macs_after,
            "params_after": self.params_after,
        }


@dataclass(frozen=True)
class CutTable:
    """All cuts of a network, in the order of execution."""

    model: str
    input_size: tuple[int, int]
    method: str
    macs: int
    params: int
    cuts: Sequence[Cut]

    @property
    def useful(self) -> list[Cut]:
        """Cuts where a module ends, less those that the next one betters: the same shape for under 1 % more work."""
        named = [cut for cut in self.cuts if cut.is_module]
        return [
            cut
            for cut, following in zip(named, [*named[1:], None], strict=True)
            if following is None
            or following.shape != cut.shape
            or following.macs_before > cut.macs_before + self.macs // 100
        ]

    @property
    def listed(self) -> list[Cut]:
        """The useful cuts for a reader: of many in a row of one shape (the blocks of a transformer) some, evenly spread."""
        useful = self.useful
        runs = [list(run) for _, run in groupby(useful, lambda cut: cut.shape)]
        short = sum(len(run) for run in runs if len(run) <= 2)
        long = [run for run in runs if len(run) > 2]
        if len(useful) <= LISTED or not long:
            return useful
        each = max(2, (LISTED - short) // len(long))
        return [cut for run in runs for cut in _spread(run, each)]

    @property
    def remark(self) -> str | None:
        """Why none of the useful cuts divides the work, where that is so."""
        work = [cut.macs_before for cut in self.useful]
        if any(self.macs // 100 < before < self.macs - self.macs // 100 for before in work):
            return None
        side = "less than 1 %" if any(2 * before <= self.macs for before in work) else "more than 99 %"
        return (
            f"No useful cut: every one has {side} of the work before it. In between, more than one tensor is always needed "
            "(skip connections around the middle), or a single module does it all."
        )


def _spread(run: list[Cut], count: int) -> list[Cut]:
    """At most ``count`` of ``run``, evenly spread, its first and last among them."""
    if len(run) <= count:
        return run
    return [run[round(step * (len(run) - 1) / (count - 1))] for step in range(count)]


def cuts(
    model: str,
    *,
    size: tuple[int, int] = (224, 224),
    weights: str | None = None,
    options: dict[str, Any] | None = None,
    folder: Path | None = None,
) -> CutTable:
    """Every place where ``model`` can be cut.

    Args:
        model: ``timm:NAME``, ``torchvision:NAME``, ``package.module:function``, ``file.py:function`` or ``FILE.pt2``.
        size: height and width of the input.
        weights: a state file; shapes and costs do not depend on it.
        options: keyword arguments for the model's constructor.
        folder: what relative file names are relative to.

    Raises:
        TeacherError, TraceError, CutError: it cannot be loaded, traced or cut.
    """
    network = load_teacher(model, weights=weights, options=options, folder=folder)
    traced = trace(network, size)
    found = find_cuts(traced)
    macs = sum(value.macs for value in traced.values.values())
    return CutTable(model, size, traced.method, macs, sum(p.numel() for p in network.parameters()), found)


def find_cuts(traced: Traced) -> list[Cut]:
    """Every cut of a traced network, in the order of execution.

    Raises:
        CutError: there is none, and why.
    """
    names = _names(traced.module)
    params = _parameters(traced.module)
    total_macs = sum(value.macs for value in traced.values.values())
    total_params = _count(params.values())
    found = []
    for node in dominators(traced):
        macs, before = _before(traced, node, params)
        (name, *aliases), is_module = names[node]
        shape = traced.values[node].results[0][1:]
        costs = macs, before, total_macs - macs, total_params - before
        found.append(Cut(name, tuple(aliases), node, shape, is_module, *costs))
    if not found:
        raise CutError(why_none(traced))
    # A module that runs several times ends several times: its cuts carry the operation's name as well.
    repeated = {name for name, count in Counter(cut.name for cut in found).items() if count > 1}
    return [replace(cut, name=f"{cut.name}@{cut.node.name}") if cut.name in repeated else cut for cut in found]


def find_cut(traced: Traced, name: str) -> Cut:
    """The cut called ``name``.

    Raises:
        CutError: there is none of that name; the message suggests the nearest.
    """
    found = find_cuts(traced)
    for cut in found:
        if name == cut.name or name in cut.aliases:
            return cut
    modules = {module for module, _ in traced.module.named_modules()}
    known = [cut.name for cut in found if cut.is_module] or [cut.name for cut in found]
    if name in modules:
        raise CutError(f"{name!r} is no cut: behind it other tensors are still needed{nearest(name, known)}")
    raise CutError(f"no cut {name!r}{nearest(name, known)}")


def _names(module: fx.GraphModule) -> dict[fx.Node, tuple[list[str], bool]]:
    """Each node's names: the modules that it is the last operation of, outermost first, else its own."""
    order = [node for node in module.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    order = [node for node in order if node.users]  # checks and guards have none
    names: dict[fx.Node, tuple[list[str], bool]] = {node: ([node.name], False) for node in module.graph.nodes}
    for node, following in zip(order, [*order[1:], None], strict=True):
        stack = _stack(node)
        inside = _stack(following) if following is not None else {}
        ended = [path for call, path in stack.items() if call not in inside]
        if ended:
            names[node] = ended, True
        elif not stack:
            names[node] = [node.name], True
        else:
            names[node] = [f"{[*stack.values()][-1]}.{node.name}"], False
    return names


def _stack(node: fx.Node) -> dict[str, str]:
    """The modules that the node runs in, outermost first, the network itself left out: each call's path by its key."""
    return {call: path for call, (path, _) in node.meta.get("nn_module_stack", {}).items() if path}


def _parameters(module: fx.GraphModule) -> dict[fx.Node, list[nn.Parameter]]:
    """The parameters that each node uses."""
    used: dict[fx.Node, list[nn.Parameter]] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            used[node] = list(module.get_submodule(str(node.target)).parameters())
        elif node.op == "get_attr":
            target: Any = module
            for step in str(node.target).split("."):
                target = getattr(target, step)
            used[node] = [target] if isinstance(target, nn.Parameter) else []
    return used


def _count(groups: Iterable[list[nn.Parameter]]) -> int:
    """How many numbers the parameters hold, each parameter counted once."""
    return sum({id(p): p.numel() for group in groups for p in group}.values())


def _before(traced: Traced, at: fx.Node, params: dict[fx.Node, list[nn.Parameter]]) -> tuple[int, int]:
    """MACs and parameters of everything that ``at`` is computed from."""
    seen: set[fx.Node] = set()
    waiting = [at]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend(node.all_input_nodes)
    return sum(traced.values[node].macs for node in seen), _count(params.get(node, []) for node in seen)
