"""The tail server beside raw grpc.aio, in one run: latency, throughput, memory, and where the time goes.

    python bench/tail.py                          null, tail and memory: half an hour
    python bench/tail.py --only null --json tail.json
    python bench/tail.py --only memory            200,000 frames and 2,000 reconnects
    python bench/tail.py --only ray               one plain server and Ray Serve (pip install 'narrowcast[ray]')

null      A tail that does nothing and a codec that decodes nothing: left are gRPC, parsing, checksum, credits, fair
          queue, batcher and the answer's bytes. The server answers a model that takes less than 100 us a frame on its event
          loop, frames of one turn as one batch; a null tail may (`on loop` says how often it did), hardly any real one.
          `threaded` is the same with that shortcut off, `decode` also decodes (shortcut off too). The raw server takes the
          same messages and answers each with as many bytes, on the same options of gRPC. Goals, for `null` and shown for
          `threaded`: p50 with one frame in flight at most 1.6 times raw's, frames a second over 16 streams at least 0.6 of
          raw's.
tail      ResNet-50 cut at layer2 (random weights) behind the whole server, 16 streams, beside ONNX Runtime directly in
          a loop at its best batch size, as many threads. Goal: at least 0.9 of its frames a second.
memory    The server's resident memory over 200,000 frames and 2,000 connections (goal: at most 5 % more), and what one more
          idle stream costs.
ray       One plain server, Ray Serve (HAProxy in front) and raw grpc.aio, with the same bundle, packets and answers. None
          is bound to a core; each may use all that there are (`taskset -c 0,1 python bench/tail.py ...` gives two).

Servers run in processes of their own and take turns, round by round, so that a machine that drifts hits all alike; medians
over rounds are quoted. Clients run in this process, on the same cores. For "where the time goes" a further server of each
kind runs, whose threads are looked at every 2 ms (bench/tail_sampling.py).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from tail_bundles import CLASSES
from tail_parts import STAGES, STREAMS, memory, null, ray, real, say

LATENCY_GOAL, THROUGHPUT_GOAL, TAIL_GOAL, MEMORY_GOAL = 1.6, 0.6, 0.9, 1.05


def show(result: dict[str, Any]) -> None:
    """The tables."""
    for name, part in (("null", show_null), ("tail", show_tail), ("ray", show_ray), ("memory", show_memory)):
        if found := result.get(name):
            part(found)


def show_null(found: dict[str, Any]) -> None:
    """Of the part ``null``."""
    print(f"\nnull tail, packets of {found['packet_bytes']} B, answers of {found['answer_bytes']} B ({CLASSES} scores)")
    _table(found, "raw")
    print(
        "null answers frames on the event loop, as it does for models under 100 us a frame; threaded has that shortcut off"
    )
    for name in ("null", "threaded"):
        _goal(f"p50, {name} / raw", found["latency_ratios"][name], LATENCY_GOAL, most=True)
        _goal(f"throughput, {name} / raw", found["throughput_ratios"][name], THROUGHPUT_GOAL)
    _where(found["where"])


def show_tail(found: dict[str, Any]) -> None:
    """Of the part ``tail``."""
    rates = found["frames_per_second"]
    print(f"\nResNet-50 from layer2, {found['threads']} threads, batches of {found['best_batch']}")
    print(f"ONNX Runtime directly {rates['direct']:.1f} frames/s, behind the server {rates['server']:.1f}")
    _goal("throughput, server / direct", found["throughput_ratio"], TAIL_GOAL)
    _where(found["where"])


def show_ray(found: dict[str, Any]) -> None:
    """Of the part ``ray``."""
    print(
        f"\none plain server and Ray Serve with {found['replicas']} replicas on the same {found['cores']} cores; packets of "
        f"{found['packet_bytes']} B, a small real tail, answers of {found['answer_bytes']} B"
    )
    _table(found, "plain")


def show_memory(found: dict[str, Any]) -> None:
    """Of the part ``memory``."""
    print(f"\nmemory over {found['frames']} frames and {found['connections']} connections")
    print(f"{found['start_bytes'] / 2**20:.1f} MiB at first, {found['end_bytes'] / 2**20:.1f} MiB at the end")
    _goal("memory, end / start", found["growth_ratio"], MEMORY_GOAL, most=True)
    print(
        f"an idle stream: {found['bytes_per_idle_stream'] / 1024:.0f} KiB; {found['idle_streams']} of them take "
        f"{found['cpu_share_of_idle_streams'] * 100:.1f} % of a core"
    )


def _table(found: dict[str, Any], first: str) -> None:
    print(f"{'':10}{'p50, one in flight':>20}{f'/ {first}':>9}{f'frames/s, {STREAMS} streams':>24}{f'/ {first}':>9}")
    for name, p50 in found["p50_ms"].items():
        print(
            f"{name:10}{p50:17.3f} ms{found['latency_ratios'][name]:9.2f}"
            f"{found['frames_per_second'][name]:24.0f}{found['throughput_ratios'][name]:9.2f}"
        )


def _where(where: dict[str, Any]) -> None:
    """Stages as the server reports them, then what its threads were at."""
    print(
        "\nwhere the time goes, us per frame. Medians, as the server reports them; what they leave of the client's p50 is"
    )
    print("gRPC's, the kernel's and the event loops', here and there. on loop: frames that took the shortcut")
    names = [stage.removesuffix("_us") for stage in STAGES]
    print(f"{'':26}" + "".join(f"{name:>9}" for name in (*names, "left", "p50", "batch", "on loop")))
    loads = {"one": "one in flight", "many": f"{STREAMS} streams"}
    for name, found in where.items():
        for load, words in loads.items():
            one = found[load]
            left = one["p50_us"] - one["stages_us"]["total_us"]
            values = [*(one["stages_us"][stage] for stage in STAGES), left, one["p50_us"]]
            text = "".join(f"{value:9.0f}" for value in values)
            print(f"{name:10}{words:16}{text}{one['batch']:9.1f}{one['on_loop_share'] * 100:7.0f} %")
    print(
        f"CPU time at {STREAMS} streams, us per frame, by samples; rest: gRPC's own threads, the kernel, a network's threads"
    )
    for name, found in where.items():
        many = found["many"]
        rest = many["cpu_us_per_frame"]
        for thread, areas in many["sampled_us_per_frame"].items():
            ordered = sorted(areas.items(), key=lambda pair: -pair[1])
            text = ", ".join(f"{area} {value:.0f}" for area, value in ordered if value >= 0.5)
            print(f"{name:10}{thread:8}{sum(areas.values()):7.0f}: {text}")
            rest -= sum(areas.values())
        print(f"{name:10}rest    {max(0.0, rest):7.0f}")


def _goal(what: str, value: float, goal: float, *, most: bool = False) -> None:
    reached = value <= goal if most else value >= goal
    print(f"{what}: {value:.2f} ({'at most' if most else 'at least'} {goal}: {'reached' if reached else 'MISSED'})")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["null", "tail", "memory", "ray"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=2000, help="per stream and round of null and ray (default: 2000)")
    parser.add_argument("--tail-frames", type=int, default=40, help="per stream and round of tail (default: 40)")
    parser.add_argument("--threads", type=int, default=2, help="of ONNX Runtime (default: 2)")
    parser.add_argument("--replicas", type=int, default=2, help="of Ray Serve (default: 2)")
    parser.add_argument("--total", type=int, default=200_000, help="frames for memory")
    parser.add_argument("--reconnects", type=int, default=2_000)
    parser.add_argument("--idle", type=int, default=500)
    parser.add_argument("--work", type=Path, help="keeps the compiled bundle (default: a temporary folder)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        if args.only in (None, "null"):
            say("null")
            result["null"] = await null(work, args.rounds, args.frames)
        if args.only in (None, "tail"):
            say("tail")
            result["tail"] = await real(work, args.rounds, args.tail_frames, args.threads)
        if args.only in (None, "memory"):
            say("memory")
            result["memory"] = await memory(work, args.total, args.reconnects, args.idle)
        if args.only == "ray":
            say("ray")
            result["ray"] = await ray(work, args.rounds, args.frames, args.replicas)
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
