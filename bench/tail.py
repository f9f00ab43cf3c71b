"""The tail server beside raw grpc.aio, in one run: latency, throughput, memory, and where the time goes.

    python bench/tail.py                          null tail and ResNet-50's, about five minutes
    python bench/tail.py --only null --json tail.json
    python bench/tail.py --only memory            200,000 frames and 2,000 reconnects

null      A tail that does nothing and a codec that decodes nothing: left are gRPC, parsing, checksum, credits, fair
          queue, batcher and the answer's bytes. Beside it the same with range decoding. The raw server takes the same
          messages and answers each with as many bytes, on the same options of gRPC. Goals: p50 with one frame in flight at
          most 1.6 times raw's, frames a second over 16 streams at least 0.6 of raw's.
tail      ResNet-50 cut at layer2 (random weights) behind the whole server, 16 streams, beside ONNX Runtime directly in
          a loop at its best batch size, as many threads. Goal: at least 0.9 of its frames a second.
memory    The server's resident memory over 200,000 frames and 2,000 connections (goal: at most 5 % more), and what one more
          idle stream costs.

Servers run in processes of their own and take turns, round by round, so that a machine that drifts hits all alike; medians
over rounds are quoted. Clients run in this process, on the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from tail_bundles import CLASSES, blank, packet, resnet50
from tail_load import METHOD, Peer, check, frames, load, one_stream, opening
from tail_servers import RAW_METHOD

from narrowcast.tail.backends.onnxruntime import OnnxRuntimeTail
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.rpc import tail_pb2 as pb

STREAMS = 16
WINDOW = 8
SHAPE = (48, 28, 28)
ALPHABET = 19  # 4.25 bits a symbol: 20 kB a frame
LATENCY_GOAL, THROUGHPUT_GOAL, TAIL_GOAL, MEMORY_GOAL = 1.6, 0.6, 0.9, 1.05


class Server(NamedTuple):
    """A server's process."""

    process: subprocess.Popen[str]
    port: int

    @property
    def memory_bytes(self) -> int:
        """Resident now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE")

    @property
    def cpu_seconds(self) -> float:
        """Used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def server(kind: str, *options: str) -> Iterator[Server]:
    """One of ``bench/tail_servers.py``."""
    command = [sys.executable, str(Path(__file__).with_name("tail_servers.py")), kind, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Server(process, json.loads(process.stdout.readline())["port"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def ours(port: int, bundle: Bundle, count: int) -> Peer:
    """A stream to narrowcast's server."""
    made = packet(bundle)
    return Peer(port, METHOD, opening(bundle.manifest.name, made.fingerprint, WINDOW), frames(made, count))


async def answers(peer: Peer) -> list[bytes]:
    """All answers of a short stream, checked."""
    kept: list[bytes] = []
    await one_stream(peer, 1, kept)
    check(kept)
    return kept


async def null(folder: Path, rounds: int, count: int) -> dict[str, Any]:
    """Raw, null and decode, one in flight and with many streams."""
    bundle = blank(folder / "blank", SHAPE, ALPHABET)
    bundles = ("--bundles", str(folder / "blank"))
    with server("null", *bundles) as without, server("decode", *bundles) as decoding:
        kept = await answers(ours(decoding.port, bundle, 32))
        size = max(map(len, kept))
        with server("raw", "--answer-bytes", str(size)) as raw:
            peers = {
                "raw": Peer(raw.port, RAW_METHOD, None, frames(packet(bundle), count)),
                "null": ours(without.port, bundle, count),
                "decode": ours(decoding.port, bundle, count),
            }
            p50s: dict[str, list[float]] = {name: [] for name in peers}
            rates: dict[str, list[float]] = {name: [] for name in peers}
            for turn in range(rounds + 1):
                for name, peer in peers.items():
                    latency = await load(peer, 1, 1)
                    throughput = await load(peer._replace(frames=peer.frames[: count // 4]), STREAMS, WINDOW)
                    if turn:  # the first round warms up
                        p50s[name].append(median(latency.latencies_ms))
                        rates[name].append(throughput.per_second)
    times = [pb.StreamResponse.FromString(data).result.times for data in kept]
    within = {k: median(getattr(t, k) for t in times) for k in ("queue_us", "decode_us", "tail_us", "total_us")}
    return {
        "packet_bytes": len(peers["null"].frames[0]),
        "answer_bytes": size,
        "p50_ms": {name: median(values) for name, values in p50s.items()},
        "frames_per_second": {name: median(values) for name, values in rates.items()},
        "latency_ratio": median(a / b for a, b in zip(p50s["null"], p50s["raw"], strict=True)),
        "throughput_ratio": median(a / b for a, b in zip(rates["null"], rates["raw"], strict=True)),
        "within_server_us": within,
    }


def best_direct(bundle: Bundle, threads: int, seconds: float) -> Callable[[], tuple[int, float]]:
    """ONNX Runtime in a loop: a call gives the best batch size and its frames a second."""
    tail = OnnxRuntimeTail(bundle.read("tail"), threads=threads)
    shape, levels = bundle.codec().spec.shape, bundle.codec().spec.levels
    random = np.random.default_rng(0)

    def measure() -> tuple[int, float]:
        found = []
        for size in (1, 2, 4, 8, 16):
            symbols = random.integers(0, 8, (size, *shape)).astype(np.uint8)
            at = np.full(size, levels - 1, np.int64)
            tail.run(symbols, at)
            done, start = 0, time.perf_counter()
            while time.perf_counter() - start < seconds:
                tail.run(symbols, at)
                done += size
            found.append((done / (time.perf_counter() - start), size))
        rate, size = max(found)
        return size, rate

    return measure


async def real(folder: Path, rounds: int, threads: int) -> dict[str, Any]:
    """ResNet-50's tail: ONNX Runtime directly, and behind the server."""
    bundle = resnet50(folder / "resnet50")
    direct = best_direct(bundle, threads, 3.0)
    size, _ = direct()
    options = ("--bundles", str(folder / "resnet50" / "models"), "--threads", str(threads), "--max-batch", str(size))
    rates: dict[str, list[float]] = {"direct": [], "server": []}
    with server("bundle", *options) as behind:
        peer = ours(behind.port, bundle, 40)
        await answers(peer._replace(frames=peer.frames[:4]))
        await load(peer._replace(frames=peer.frames[:4]), STREAMS, WINDOW)
        for _ in range(rounds):
            rates["direct"].append(direct()[1])
            rates["server"].append((await load(peer, STREAMS, WINDOW)).per_second)
    return {
        "best_batch": size,
        "threads": threads,
        "packet_bytes": len(peer.frames[0]),
        "frames_per_second": {name: median(values) for name, values in rates.items()},
        "throughput_ratio": median(a / b for a, b in zip(rates["server"], rates["direct"], strict=True)),
    }


async def memory(folder: Path, total: int, reconnects: int, idle: int) -> dict[str, Any]:
    """The server's memory over many frames and connections, and over idle streams."""
    bundle = blank(folder / "blank", SHAPE, ALPHABET)
    each = max(1, total // reconnects)
    with server("decode", "--bundles", str(folder / "blank")) as watched:
        peer = ours(watched.port, bundle, each)
        warm = reconnects // 10
        sizes = []
        for k in range(0, reconnects + warm, 4):
            await load(peer, 4, WINDOW)
            if k >= warm and k % 40 == 0:
                sizes.append(watched.memory_bytes)
        before = watched.memory_bytes
        calls = await _open_idle(peer, idle)
        cpu, began = watched.cpu_seconds, time.monotonic()
        await asyncio.sleep(10)  # what idle streams cost in time
        busy = (watched.cpu_seconds - cpu) / (time.monotonic() - began)
        after = watched.memory_bytes
        for channel in calls:
            await channel.close()
    return {
        "frames": each * (reconnects + warm),
        "connections": reconnects + warm,
        "start_bytes": sizes[0],
        "end_bytes": sizes[-1],
        "growth_ratio": sizes[-1] / sizes[0],
        "idle_streams": idle,
        "bytes_per_idle_stream": (after - before) / idle,
        "cpu_share_of_idle_streams": busy,
    }


async def _open_idle(peer: Peer, count: int) -> list[Any]:
    import grpc

    channels = []
    for _ in range(count):
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{peer.port}", options=[("grpc.use_local_subchannel_pool", 1)])
        call = channel.stream_stream(peer.method)()
        await call.write(peer.opening)
        await call.read()
        channels.append(channel)
        channel.idle_call = call  # type: ignore[attr-defined]  (kept alive with its channel)
    return channels


def show(result: dict[str, Any]) -> None:
    """The tables."""
    if found := result.get("null"):
        print(
            f"\nnull tail, packets of {found['packet_bytes']} B, answers of {found['answer_bytes']} B ({CLASSES} scores)"
        )
        print(f"{'':10}{'p50, one in flight':>20}{f'frames/s, {STREAMS} streams':>24}")
        for name, p50 in found["p50_ms"].items():
            print(f"{name:10}{p50:17.3f} ms{found['frames_per_second'][name]:24.0f}")
        _goal("p50, null / raw", found["latency_ratio"], LATENCY_GOAL, most=True)
        _goal("throughput, null / raw", found["throughput_ratio"], THROUGHPUT_GOAL)
        print("within the server, us:", ", ".join(f"{k[:-3]} {v:.0f}" for k, v in found["within_server_us"].items()))
    if found := result.get("tail"):
        rates = found["frames_per_second"]
        print(f"\nResNet-50 from layer2, {found['threads']} threads, batches of {found['best_batch']}")
        print(f"ONNX Runtime directly {rates['direct']:.1f} frames/s, behind the server {rates['server']:.1f}")
        _goal("throughput, server / direct", found["throughput_ratio"], TAIL_GOAL)
    if found := result.get("memory"):
        print(f"\nmemory over {found['frames']} frames and {found['connections']} connections")
        print(f"{found['start_bytes'] / 2**20:.1f} MiB at first, {found['end_bytes'] / 2**20:.1f} MiB at the end")
        _goal("memory, end / start", found["growth_ratio"], MEMORY_GOAL, most=True)
        print(
            f"an idle stream: {found['bytes_per_idle_stream'] / 1024:.0f} KiB; {found['idle_streams']} of them take "
            f"{found['cpu_share_of_idle_streams'] * 100:.1f} % of a core"
        )


def _goal(what: str, value: float, goal: float, *, most: bool = False) -> None:
    reached = value <= goal if most else value >= goal
    print(f"{what}: {value:.2f} ({'at most' if most else 'at least'} {goal}: {'reached' if reached else 'MISSED'})")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["null", "tail", "memory"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=2000, help="per stream and round (default: 2000)")
    parser.add_argument("--threads", type=int, default=2, help="of ONNX Runtime (default: 2)")
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
            result["null"] = await null(work, args.rounds, args.frames)
        if args.only in (None, "tail"):
            result["tail"] = await real(work, args.rounds, args.threads)
        if args.only in (None, "memory"):
            result["memory"] = await memory(work, args.total, args.reconnects, args.idle)
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
