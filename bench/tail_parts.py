"""The parts of ``bench/tail.py``: what is measured, and beside what."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np
from tail_bundles import blank, packet, resnet50
from tail_load import METHOD, Peer, check, frames, load, one_stream, opening
from tail_processes import ray_server, server
from tail_servers import RAW_METHOD

from narrowcast.tail.backends import BackendSettings
from narrowcast.tail.backends.onnxruntime import OnnxRuntimeTail
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.rpc import tail_pb2 as pb

STREAMS = 16
WINDOW = 8
SHAPE = (48, 28, 28)
ALPHABET = 19  # 4.25 bits a symbol: 20 kB a frame
STAGES = ("queue_us", "decode_us", "tail_us", "answer_us")


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def ours(port: int, bundle: Bundle, count: int) -> Peer:
    """A stream to narrowcast's server."""
    made = packet(bundle)
    return Peer(port, METHOD, opening(bundle.manifest.name, made.fingerprint, WINDOW), frames(made, count))


async def checked(peer: Peer) -> Peer:
    """The same, once the server has shown that it answers; knows from then on how long an answer is."""
    kept: list[bytes] = []
    await one_stream(peer._replace(frames=peer.frames[:32]), 1, kept)
    check(kept)
    return peer._replace(least_bytes=min(map(len, kept)) // 2)


async def raw_beside(stack: ExitStack, peer: Peer, answer_bytes: int) -> Peer:
    """grpc.aio alone, with the same messages and answers of as many bytes."""
    there = stack.enter_context(server("raw", "--answer-bytes", str(answer_bytes)))
    return Peer(there.port, RAW_METHOD, None, peer.frames)


async def take_turns(peers: Mapping[str, Peer], rounds: int, count: int) -> dict[str, Any]:
    """One in flight, then many streams, for each in turn; medians over rounds, and each one's ratio to the first."""
    p50s: dict[str, list[float]] = {name: [] for name in peers}
    rates: dict[str, list[float]] = {name: [] for name in peers}
    for turn in range(rounds + 1):
        say(f"round {turn} of {rounds}" if turn else "a round to warm up")
        for name, peer in peers.items():
            latency = await load(peer, 1, 1)
            throughput = await load(peer._replace(frames=peer.frames[: max(1, count // 4)]), STREAMS, WINDOW)
            if turn:
                p50s[name].append(median(latency.latencies_ms))
                rates[name].append(throughput.per_second)
    first = next(iter(peers))
    return {
        "p50_ms": {name: median(values) for name, values in p50s.items()},
        "frames_per_second": {name: median(values) for name, values in rates.items()},
        "latency_ratios": {name: _ratio(values, p50s[first]) for name, values in p50s.items()},
        "throughput_ratios": {name: _ratio(values, rates[first]) for name, values in rates.items()},
    }


def _ratio(values: Sequence[float], to: Sequence[float]) -> float:
    """The median over rounds of each round's ratio."""
    return median(a / b for a, b in zip(values, to, strict=True))


async def null(folder: Path, rounds: int, count: int) -> dict[str, Any]:
    """Raw beside a tail that does nothing, with and without the shortcut for light frames, and with decoding."""
    bundle = blank(folder / "blank", SHAPE, ALPHABET)
    bundles = ("--bundles", str(folder / "blank"))
    kinds = {"null": ("null",), "threaded": ("null", "--no-shortcut"), "decode": ("decode", "--no-shortcut")}
    with ExitStack() as stack:
        peers: dict[str, Peer] = {}
        for name, (kind, *options) in kinds.items():
            there = stack.enter_context(server(kind, *bundles, *options))
            peers[name] = await checked(ours(there.port, bundle, count))
        size = peers["null"].least_bytes * 2
        raw = await raw_beside(stack, peers["null"], size)
        result = await take_turns({"raw": raw, **peers}, rounds, count)
    where = {}
    for name, (kind, *options) in kinds.items():
        say(f"where the time goes: {name}")
        where[name] = await where_time_goes(bundle, count, kind, *bundles, *options)
    return {
        "packet_bytes": len(raw.frames[0]),
        "answer_bytes": size,
        **result,
        "latency_ratio": result["latency_ratios"]["null"],
        "throughput_ratio": result["throughput_ratios"]["null"],
        "where": where,
    }


async def where_time_goes(bundle: Bundle, count: int, *command: str, streams: int = STREAMS) -> dict[str, Any]:
    """A server of its own, sampled: with one frame in flight, and with many streams."""
    found: dict[str, Any] = {}
    for name, many, window in (("one", 1, 1), ("many", streams, WINDOW)):
        with server(*command, "--sample") as there:
            peer = await checked(ours(there.port, bundle, count if many == 1 else max(1, count // 4)))
            await load(peer._replace(frames=peer.frames[:100]), many, window)
            kept: list[bytes] = []
            cpu = there.cpu_seconds
            there.sample()
            done = await load(peer, many, window, kept)
            cpu = there.cpu_seconds - cpu
            sampled = there.sampled()
        found[name] = {
            "stages_us": _stages(kept),
            "p50_us": median(done.latencies_ms) * 1000,
            "batch": _mean_batch(kept),
            "cpu_us_per_frame": cpu / done.answers * 1e6,
            "on_loop_share": sampled["on_loop"] / done.answers,
            "sampled_us_per_frame": {
                kind: {area: seconds / done.answers * 1e6 for area, seconds in areas.items()}
                for kind, areas in sampled["sampled"].items()
            },
        }
    return found


def _stages(kept: Sequence[bytes]) -> dict[str, float]:
    """Medians of what the server says of each frame; ``answer_us`` is what its other three leave of its total."""
    times = [pb.StreamResponse.FromString(data).result.times for data in kept]
    values = np.array([[t.queue_us, t.decode_us, t.tail_us, t.total_us] for t in times], float)
    values[:, 3] -= values[:, :3].sum(1)
    medians = np.median(values, axis=0)
    total = float(np.median([t.total_us for t in times]))
    return {**dict(zip(STAGES, medians.tolist(), strict=True)), "total_us": total}


def _mean_batch(kept: Sequence[bytes]) -> float:
    return float(np.mean([pb.StreamResponse.FromString(data).result.times.batch for data in kept]))


def best_direct(bundle: Bundle, threads: int, seconds: float) -> Callable[[], tuple[int, float]]:
    """ONNX Runtime in a loop: a call gives the best batch size and its frames a second."""
    tail = OnnxRuntimeTail(bundle.read("tail"), BackendSettings(threads=threads))
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


async def real(folder: Path, rounds: int, count: int, threads: int) -> dict[str, Any]:
    """ResNet-50's tail: ONNX Runtime directly, and behind the server."""
    bundle = resnet50(folder / "resnet50")
    direct = best_direct(bundle, threads, 3.0)
    size, _ = direct()
    options = ("--bundles", str(folder / "resnet50" / "models"), "--threads", str(threads), "--max-batch", str(size))
    rates: dict[str, list[float]] = {"direct": [], "server": []}
    with server("bundle", *options) as behind:
        peer = await checked(ours(behind.port, bundle, count))
        await load(peer._replace(frames=peer.frames[:4]), STREAMS, WINDOW)
        for turn in range(rounds):
            say(f"round {turn + 1} of {rounds}")
            rates["direct"].append(direct()[1])
            rates["server"].append((await load(peer, STREAMS, WINDOW)).per_second)
    say("where the time goes")
    return {
        "best_batch": size,
        "threads": threads,
        "packet_bytes": len(peer.frames[0]),
        "frames_per_second": {name: median(values) for name, values in rates.items()},
        "throughput_ratio": _ratio(rates["server"], rates["direct"]),
        "where": {"server": await where_time_goes(bundle, count, "bundle", *options)},
    }


async def ray(folder: Path, rounds: int, count: int, replicas: int) -> dict[str, Any]:
    """Raw, one plain server and Ray Serve on the same cores, with the same bundle and packets: a small real tail."""
    bundle = blank(folder / "blank", SHAPE, ALPHABET)
    threads = 1  # the tail is one small product
    with ExitStack() as stack:
        plain = stack.enter_context(server("bundle", "--bundles", str(folder / "blank"), "--threads", str(threads)))
        peers = {"plain": await checked(ours(plain.port, bundle, count))}
        say("Ray Serve starts")
        port = stack.enter_context(ray_server(folder / "blank", replicas, threads))
        peers["ray"] = await checked(ours(port, bundle, count))
        size = peers["plain"].least_bytes * 2
        raw = await raw_beside(stack, peers["plain"], size)
        result = await take_turns({"plain": peers["plain"], "ray": peers["ray"], "raw": raw}, rounds, count)
    return {
        "packet_bytes": len(raw.frames[0]),
        "answer_bytes": size,
        "cores": len(os.sched_getaffinity(0)),
        "replicas": replicas,
        "threads": threads,
        **result,
    }


async def memory(folder: Path, total: int, reconnects: int, idle: int) -> dict[str, Any]:
    """The server's memory over many frames and connections, and over idle streams."""
    bundle = blank(folder / "blank", SHAPE, ALPHABET)
    each = max(1, total // reconnects)
    with server("decode", "--bundles", str(folder / "blank")) as watched:
        peer = await checked(ours(watched.port, bundle, each))
        warm = reconnects // 10
        sizes = []
        told, began = time.monotonic(), time.monotonic()
        for k in range(0, reconnects + warm, 4):
            await load(peer, 4, WINDOW)
            if k >= warm and (k % 40 == 0 or not sizes):
                sizes.append(watched.memory_bytes)
            if time.monotonic() - told > 5:
                told = time.monotonic()
                done, seconds = k + 4, told - began
                say(
                    f"{done} of {reconnects + warm} connections, {done * each} frames, "
                    f"{watched.memory_bytes / 2**20:.1f} MiB, {seconds / done * (reconnects + warm - done):.0f} s left"
                )
        sizes.append(watched.memory_bytes)
        say(f"{idle} idle streams")
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
    channels = []
    for _ in range(count):
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{peer.port}", options=[("grpc.use_local_subchannel_pool", 1)])
        call = channel.stream_stream(peer.method)()
        await call.write(peer.opening)
        await call.read()
        channels.append(channel)
        channel.idle_call = call  # type: ignore[attr-defined]  (kept alive with its channel)
    return channels
