"""What is alive where in a traced network: the dominators of its output, and why there are none.

Right after a dominator has run, its value is the only one that anything later still needs; so one walk over the graph in
execution order, watching what is alive, finds them all, whatever the architecture.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from narrowcast.compiler.cuts.observe import BATCHES, Value, is_size
from narrowcast.compiler.cuts.trace import Traced

NAMED = 3  # tensors that an explanation names


def dominators(traced: Traced) -> list[fx.Node]:
    """Nodes whose value is one float tensor, per image, and the only thing alive right after they ran."""
    return [node for node in _bottlenecks(traced) if _is_per_image(traced.values[node])]


def why_none(traced: Traced) -> str:
    """Why a network has no dominator, in one line for the user."""
    data = [node for node in traced.module.graph.nodes if node.op != "output" and traced.values[node].is_data]
    if len(data) <= 2:
        return f"the network has no cut: it is one operation ({_called(data[-1])})"
    total = sum(traced.values[node].macs for node in data)
    done, best, narrow = 0, None, []
    single = set(_bottlenecks(traced))
    for node, alive in _alive(traced):
        done += traced.values[node].macs
        if node in single and total // 20 < done < total - total // 20:
            narrow.append(node)
        elif node.op != "placeholder" and len(alive) > 1:
            # The narrowest point; of several, the one nearest to half of the work.
            width = len(alive), abs(2 * done - total)
            best = min(best or (width, node, alive), (width, node, alive), key=lambda found: found[0])
    if narrow:
        shape = ", ".join(map(str, traced.values[narrow[0]].results[0] or ("no tensor",)))
        return (
            "the network has no cut: where one value flows, it is no float tensor with the images along its first axis "
            f"({_called(narrow[0])} gives [{shape}] for {BATCHES[0]} images)"
        )
    if best is None:
        return "the network has no cut: its outputs are all that flows behind its first operation"
    _, node, alive = best
    until = _last_uses(traced)
    tensors = [f"{_called(one)} (until {_called(until[one])})" for one in data if one in alive]
    more = f" and {len(tensors) - NAMED} more" if len(tensors) > NAMED else ""
    return (
        "the network has no cut: at every point more than one tensor is still needed; even at the narrowest, behind "
        f"{_called(node)}, there are {len(tensors)}: {', '.join(tensors[:NAMED])}{more}"
    )


def _bottlenecks(traced: Traced) -> list[fx.Node]:
    """Nodes that are the only thing alive right after they ran, and not the network's output."""
    return [
        node
        for node, alive in _alive(traced)
        if alive == {node} and node.op != "placeholder" and not all(user.op == "output" for user in node.users)
    ]


def _alive(traced: Traced) -> Iterator[tuple[fx.Node, set[fx.Node]]]:
    """Each node, and what data later nodes still need right after it ran."""
    last_use = {node: k for k, node in enumerate(traced.module.graph.nodes)}
    last_use |= {node: last_use[user] for node, user in _last_uses(traced).items()}
    alive: set[fx.Node] = set()
    for k, node in enumerate(traced.module.graph.nodes):
        alive = {n for n in alive if last_use[n] > k}
        if traced.values[node].is_data and last_use[node] > k:
            alive.add(node)
        yield node, alive


def _last_uses(traced: Traced) -> dict[fx.Node, fx.Node]:
    """The last node that uses each node; reading a size off it is no use, since any tensor of the batch tells it."""
    users = [node for node in traced.module.graph.nodes if not is_size(traced.values[node])]
    return {source: node for node in users for source in node.all_input_nodes}


def _is_per_image(value: Value) -> bool:
    if not value.is_float:
        return False
    first, second = value.results
    return len(first) > 1 and (first[0], second[0]) == BATCHES and first[1:] == second[1:]


def _called(node: fx.Node) -> str:
    """A node in words that the user knows: the innermost module around it, and the operation."""
    if node.op in ("placeholder", "output"):
        return "the input" if node.op == "placeholder" else "the end"
    paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    return f"{paths[-1]!r}" if paths and node.op == "call_module" else f"{'.'.join([*paths[-1:], node.name])!r}"
