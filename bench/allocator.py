"""What a training step on a CPU costs as malloc treats freed memory: given back as ever, or kept for the next step.

    python bench/allocator.py
    python bench/allocator.py --batch 64 --rounds 5 --json out.json

Each way is a process of its own, in turns. A step is forward and backward through layers as a head of MobileNetV2 has them
(112 x 112 pixels, 32 to 96 channels, expanded six times), with its gradients thrown away. `huge` is torch's own switch for
transparent huge pages (THP_MEM_ALLOC_ENABLE).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from narrowcast.compiler.allocator import VARIABLES, keep_freed_memory

WAYS = {"as ever": "", "kept": "keep", "huge": "huge", "kept and huge": "keep huge"}
WARM_UP = 2


def steps(count: int, batch: int) -> dict[str, float]:
    """CPU time, wall time and page faults of an image, in this process."""
    import torch
    from torch import nn

    def block(wide: int, out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(wide // 6, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), block(96, 24, 2), block(144, 32, 2))
    images = torch.randn(batch, 3, 224, 224)
    for k in range(WARM_UP + count):
        if k == WARM_UP:
            cpu, wall, faults = time.process_time(), time.perf_counter(), minor_faults()
        network.zero_grad(set_to_none=True)
        network(images).square().mean().backward()
    each = count * batch
    return {
        "cpu_ms": (time.process_time() - cpu) / each * 1e3,
        "wall_ms": (time.perf_counter() - wall) / each * 1e3,
        "page_faults": (minor_faults() - faults) / each,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def minor_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def measured(way: str, args: argparse.Namespace) -> dict[str, float]:
    """The figures of a process of its own."""
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    clean["THP_MEM_ALLOC_ENABLE"] = str(int("huge" in WAYS[way]))
    command = [sys.executable, __file__, "--batch", str(args.batch), "--steps", str(args.steps), "--child", WAYS[way]]
    figures: dict[str, float] = json.loads(subprocess.run(command, env=clean, capture_output=True, check=True).stdout)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="images a step (64)")
    parser.add_argument("--steps", type=int, default=6, help="of a process (6)")
    parser.add_argument("--rounds", type=int, default=3, help="of all ways (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures as JSON")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        if "keep" in args.child:
            keep_freed_memory()
        print(json.dumps(steps(args.steps, args.batch)))
        return 0
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(args.rounds):
        for way, figures in runs.items():
            figures.append(measured(way, args))
    medians = {way: {key: statistics.median(one[key] for one in all_) for key in all_[0]} for way, all_ in runs.items()}
    print(f"{'an image of a step':<20}{'CPU ms':>9}{'ratio':>8}{'wall ms':>9}{'page faults':>13}{'peak GB':>9}")
    base = medians["as ever"]
    for way, row in medians.items():
        print(
            f"{way:<20}{row['cpu_ms']:>9.2f}{row['cpu_ms'] / base['cpu_ms']:>8.2f}{row['wall_ms']:>9.2f}"
            f"{row['page_faults']:>13.0f}{row['peak_bytes'] / 1e9:>9.2f}"
        )
    if args.json:
        document: dict[str, Any] = {"batch": args.batch, "medians": medians, "rounds": runs}
        args.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
