"""Where the networks of timm's families can be cut, and whether head and tail together are the whole network, bit for bit.

    python bench/networks.py                         every family of families.toml, three CPU minutes
    python bench/networks.py --quick --json out.json
    python bench/networks.py --families beit swin_transformer

Each network gets random weights (also where its constructor leaves zeros, which would hide a wrong branch) and is traced
as `narrowcast cuts` does it. At a few cuts spread over its depth, with batches that tracing did not use, the tail's outputs
on the head's features must be those of the uncut network by torch.equal, and close to them on a dense copy of the features,
as a decoder gives them (other strides make torch choose other kernels, which add up in another order).

A network passes with at least one cut and equality at all that were tried. One whose forward neither torch.fx nor
torch.export takes is counted apart as refused. The exit code is 0 when 95 % of the others pass.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from timm_import import import_timm

TABLE = Path(__file__).with_name("families.toml")
WANTED = 0.95
BATCHES = (1, 4)  # tracing itself uses 2 and 3
CUTS, CUTS_OF_QUICK = 4, 3
CLOSE = 1e-4  # of an output's largest value


@dataclass
class Row:
    """What was found on one network: its cuts, those that a user is shown, those that were tried, and what went wrong."""

    family: str
    model: str
    size: int
    traced_by: str = ""
    cuts: int = 0
    shown: int = 0
    tried: list[str] = field(default_factory=list)
    verdict: str = "passed"
    reason: str = ""
    seconds: float = 0.0


def examine(family: str, entry: dict[str, Any], most_cuts: int) -> Row:
    """Cuts one network and puts it together again, on one thread."""
    import torch

    from narrowcast.compiler.cuts import CutTable, find_cuts
    from narrowcast.compiler.cuts.trace import trace
    from narrowcast.compiler.errors import CutError, TraceError

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    row = Row(family, entry["model"], entry["size"])
    started = time.perf_counter()
    try:
        network = build(entry)
        traced = trace(network, (row.size, row.size))
        row.traced_by = traced.method.removeprefix("torch.")
        found = find_cuts(traced)
        macs = sum(value.macs for value in traced.values.values())
        useful = CutTable(row.model, traced.input_size, traced.method, macs, 0, found).useful
        row.cuts, row.shown = len(found), len(useful)
        runs = [run(network, torch.randn(batch, 3, *traced.input_size)) for batch in BATCHES]
        for cut in spread(useful or found, most_cuts):
            row.tried.append(cut.name)
            if wrong := compare(runs, traced, cut):
                row.verdict, row.reason = "failed", f"{cut.name}: {wrong}"
                break
    except TraceError as error:
        row.verdict, row.reason = "refused", str(error)
    except CutError as error:
        row.verdict, row.reason = "no cut", str(error)
    except Exception as error:  # noqa: BLE001  (whatever it is, it is this row's result, not the end of the walk)
        row.verdict, row.reason = "failed", f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    row.seconds = round(time.perf_counter() - started, 1)
    return row


def build(entry: dict[str, Any]) -> Any:
    """The network of a row of families.toml, in eval mode, none of its weights at a constructor's zero or one."""
    import torch

    torch.manual_seed(0)
    network = import_timm().create_model(entry["model"], **entry.get("options", {}))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.02)
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(torch.randn(buffer.shape), alpha=0.1)
            elif name.endswith("running_var"):
                buffer.mul_(0.75 + 0.5 * torch.rand(buffer.shape))
    return network.eval().requires_grad_(False)


def spread(cuts: Sequence[Any], count: int) -> list[Any]:
    """``count`` of them, the first and the last among them."""
    last = len(cuts) - 1
    return [cuts[k] for k in sorted({round(last * step / (count - 1)) for step in range(count)})]


def run(network: Any, images: Any) -> tuple[Any, list[Any]]:
    """The images, and what the whole network makes of them."""
    import torch
    from torch.utils import _pytree as pytree

    with torch.no_grad():
        return images, pytree.tree_leaves(network(images.clone()))


def compare(runs: Sequence[tuple[Any, list[Any]]], traced: Any, cut: Any) -> str:
    """What is wrong with head and tail at ``cut``; nothing where they are right."""
    import torch
    from torch.utils import _pytree as pytree

    from narrowcast.compiler.cuts.split import prefix, suffix

    head, tail = prefix(traced, cut.node), suffix(traced, cut.node)
    for images, wanted in runs:
        batch = len(images)
        with torch.no_grad():
            features = head(images)
            if features.shape != (batch, *cut.shape):
                return f"features {list(features.shape)}, not {[batch, *cut.shape]}"
            kept = features.clone()
            got = pytree.tree_leaves(tail(features))
            dense = pytree.tree_leaves(tail(kept.clone(memory_format=torch.contiguous_format)))
        if not all(bool(value.isfinite().all()) and bool((value != value.flatten()[0]).any()) for value in wanted):
            return "the network's outputs prove nothing: not finite, or all the same"
        if not torch.equal(features, kept):
            return "the tail changed its input"
        if len(got) != len(wanted) or not all(map(torch.equal, got, wanted)):
            return f"other outputs than the network with a batch of {batch}"
        if any((a - b).abs().max() > CLOSE * a.abs().max() for a, b in zip(wanted, dense, strict=True)):
            return f"other outputs than the network on dense features with a batch of {batch}"
    return ""


def walk(table: dict[str, dict[str, Any]], jobs: int, most_cuts: int) -> Iterator[Row]:
    """A row for each family, in order, by ``jobs`` processes."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(examine, table, table.values(), [most_cuts] * len(table))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", metavar="NAME", help="only these")
    parser.add_argument(
        "--quick", action="store_true", help="without those that families.toml calls slow, at fewer cuts"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each (2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the rows as JSON")
    args = parser.parse_args()
    from narrowcast.transport.structs import parse_toml

    table = parse_toml(TABLE.read_text(), TABLE.name)
    if unknown := set(args.families or ()) - table.keys():
        parser.error(f"no family {', '.join(sorted(unknown))} in {TABLE.name}")
    chosen = {
        family: entry
        for family, entry in table.items()
        if (family in args.families if args.families else not (args.quick and entry.get("slow")))
    }
    rows = []
    print(
        f"{'family':<26}{'model':<38}{'px':>4}  {'traced':<8}{'cuts':>4}{'shown':>6}{'tried':>6}{'s':>7}  head + tail"
    )
    for row in walk(chosen, args.jobs, CUTS_OF_QUICK if args.quick else CUTS):
        rows.append(row)
        print(
            f"{row.family:<26}{row.model:<38}{row.size:>4}  {row.traced_by:<8}{row.cuts:>4}{row.shown:>6}"
            f"{len(row.tried):>6}{row.seconds:>7}  {row.verdict}",
            flush=True,
        )
    taken = [row for row in rows if row.verdict != "refused"]
    passed = [row for row in taken if row.verdict == "passed"]
    for row in rows:
        if row.verdict != "passed":
            print(f"{row.family} ({row.model}): {row.verdict}: {row.reason}")
    print(f"{len(passed)} of {len(taken)} families pass; {len(rows) - len(taken)} refused by both tracers")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 0 if taken and len(passed) >= WANTED * len(taken) else 1


if __name__ == "__main__":
    sys.exit(main())
