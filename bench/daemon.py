"""The edge client's pipeline beside its stages alone: does it overlap what can overlap, and what does it add?

    python bench/daemon.py [--frames 300] [--rounds 5] [--cores 2] [--json daemon.json]

Frames are JPEG files of 640 x 480, decoded by the client's own source; the head is three convolutions (some 500 M
multiplications, one thread), with random weights; the server is ``narrowcast serve`` on a tail of one small matrix product,
in a process of its own on the last core. Each round measures, one after the other on the same frames:

* each stage **alone**, one frame after the other on one thread: capture (decoding), resize, head, encode; and the link
  (sending packets that are ready, receiving results) with 8 frames under way;
* the **pipeline**: ``Client.stream`` over the source. Its throughput is compared with that of the slowest stage alone
  (target: 0.95 of it). Cores that share caches, or are two threads of one, slow each other down: what remains of the head
  while another thread captures and resizes is told beside it, and what client and server spend of the CPU on a frame;
* **one frame at a time**: ``Client.infer``, beside resize, head and encode and then the packet's way there and back, each by
  itself; every frame goes both ways in turn. Medians are compared (target: at most 10 % more).

Ratios are taken within a round, and their median over the rounds is told. On a machine that is busy with other programs this
measures those, unless root puts ``chrt -r 1`` in front.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tail_bundles import matrix

from narrowcast.compiler.tables import fit_tables
from narrowcast.head import background
from narrowcast.head.ahead import take_turns_quickly
from narrowcast.head.client import AsyncClient, Client
from narrowcast.head.session import Encoded, HeadSession
from narrowcast.head.sources import Feed, open_source
from narrowcast.transport.bundle import Bundle, Manifest, OutputSpec, describe_part, write_bundle
from narrowcast.transport.codec import CodecSpec
from narrowcast.transport.contract import InputContract

SIDE, SHAPE, ALPHABET = 224, (48, 28, 28), 16
WIDTHS = (3, 48, 96, SHAPE[0])
WINDOW = 8
PICTURES = 16
T = TypeVar("T")


def head_model() -> bytes:
    """uint8 [1, 224, 224, 3], level [1] -> uint8 [1, 48, 28, 28]: three convolutions with random weights."""
    random = np.random.default_rng(0)
    value, nodes, constants = helper.make_tensor_value_info, [], []
    nodes.append(helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]))
    nodes.append(helper.make_node("Cast", ["planes"], ["raw"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Div", ["raw", "white"], ["x0"]))
    constants.append(numpy_helper.from_array(np.array(255, np.float32), "white"))
    for k, (inner, outer) in enumerate(itertools.pairwise(WIDTHS)):
        weights = random.normal(0, (2 / (inner * 25)) ** 0.5, (outer, inner, 5, 5)).astype(np.float32)
        constants.append(numpy_helper.from_array(weights, f"w{k}"))
        nodes.append(helper.make_node("Conv", [f"x{k}", f"w{k}"], [f"c{k}"], strides=[2, 2], pads=[2] * 4))
        nodes.append(helper.make_node("Relu", [f"c{k}"], [f"x{k + 1}"]))
    constants.append(numpy_helper.from_array(np.array(0, np.float32), "low"))
    constants.append(numpy_helper.from_array(np.array(ALPHABET - 1, np.float32), "high"))
    constants.append(numpy_helper.from_array(np.zeros(1, np.float32), "none"))
    nodes.append(helper.make_node("Cast", ["level"], ["shift"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Mul", ["shift", "none"], ["nothing"]))
    nodes.append(helper.make_node("Add", [f"x{len(WIDTHS) - 1}", "nothing"], ["moved"]))
    nodes.append(helper.make_node("Clip", ["moved", "low", "high"], ["clipped"]))
    nodes.append(helper.make_node("Cast", ["clipped"], ["symbols"], to=TensorProto.UINT8))
    inputs = [value("image", TensorProto.UINT8, [1, SIDE, SIDE, 3]), value("level", TensorProto.INT64, [1])]
    graph = helper.make_graph(nodes, "head", inputs, [value("symbols", TensorProto.UINT8, [1, *SHAPE])], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def make_bundle(folder: Path) -> Path:
    spec = CodecSpec(name="rans", shape=SHAPE, alphabet=ALPHABET, levels=1, quantizer="0" * 64)
    density = 0.3 ** np.arange(ALPHABET)
    tables = fit_tables(np.tile(density / density.sum(), (1, SHAPE[0], 1)), None).to_bytes()
    contents = {"head.onnx": head_model(), "tail.onnx": matrix(SHAPE), "tables": tables}
    parts = [
        describe_part("head.onnx", contents["head.onnx"], "head", ["device"], precision="fp32"),
        describe_part("tail.onnx", contents["tail.onnx"], "tail", ["server"], precision="fp32"),
        describe_part("tables", tables, "tables", ["device", "server"]),
    ]
    manifest = Manifest(
        schema=1, name="bench", release=1, created="2026-01-01T00:00:00Z", tool="bench",
        input=InputContract(size=(SIDE, SIDE)), codec=spec, fingerprint=spec.fingerprint(tables).hex(), parts=parts,
        outputs=[OutputSpec(name="output", dtype="float32", shape=[1000])],
    )  # fmt: skip
    path = folder / "models" / "bench.ncb"
    path.parent.mkdir()
    write_bundle(path, manifest, contents, None)
    return path


def make_pictures(folder: Path, count: int) -> Path:
    """``count`` names for a few JPEG files of 640 x 480."""
    random, pictures = np.random.default_rng(0), folder / "pictures"
    pictures.mkdir()
    for k in range(count):
        path = pictures / f"{k:05d}.jpg"
        if k < PICTURES:
            rough = Image.fromarray(random.integers(0, 256, (24, 32, 3)).astype(np.uint8))
            rough.resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
        else:
            os.link(pictures / f"{k % PICTURES:05d}.jpg", path)
    return pictures


def start_server(models: Path, core: int) -> tuple[subprocess.Popen[str], str]:
    command = [
        sys.executable, "-m", "narrowcast", "serve", "--bundles", str(models), "--listen", "127.0.0.1:0", "--json",
        "--allow-unsigned", "--threads", "1",  # several would wait for work by spinning
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    os.sched_setaffinity(process.pid, {core})
    assert process.stdout is not None
    return process, str(json.loads(process.stdout.readline())["address"])


def each_ms(items: Iterable[T], work: Callable[[T], Any]) -> list[float]:
    """Milliseconds of each call."""
    took = []
    for item in items:
        before = time.perf_counter()
        work(item)
        took.append((time.perf_counter() - before) * 1000)
    return took


def capture_ms(pictures: Path) -> tuple[list[Any], float]:
    """The frames, and milliseconds for one."""
    before = time.perf_counter()
    frames = [frame.image for frame in open_source(str(pictures)).frames()]
    return frames, (time.perf_counter() - before) * 1000 / len(frames)


async def link_ms(session: HeadSession, address: str, packets: Sequence[Encoded]) -> float:
    """Milliseconds a frame for packets that are ready, with several under way."""
    async with AsyncClient(session, address, window=WINDOW) as client:
        await there_and_back_ms(client, packets[0])
        before = time.perf_counter()
        tasks = [await client.submit_encoded(encoded, time.perf_counter()) for encoded in packets]
        await asyncio.gather(*tasks)
        return (time.perf_counter() - before) * 1000 / len(packets)


async def there_and_back_ms(client: AsyncClient, encoded: Encoded) -> float:
    """Milliseconds from a packet that is ready to its result."""
    started = time.perf_counter()
    result = await (await client.submit_encoded(encoded, started))
    assert result.error is None, result.error
    return (time.perf_counter() - started) * 1000


def one_at_a_time(session: HeadSession, address: str, frames: Sequence[Any]) -> dict[str, float]:
    """Medians: of ``infer``, and of its stages, one after the other by themselves; each frame in both ways, in turn."""

    async def connect() -> AsyncClient:
        return AsyncClient(session, address, window=1)

    link = background.start(connect()).result()
    encoding, sending, whole = [], [], []
    with Client(session, address, window=1) as client:
        for frame in [frames[0], *frames]:
            before = time.perf_counter()
            encoded = session.encode(frame, 0)
            encoding.append((time.perf_counter() - before) * 1000)
            sending.append(background.start(there_and_back_ms(link, encoded)).result())
            before = time.perf_counter()
            assert client.infer(frame).error is None
            whole.append((time.perf_counter() - before) * 1000)
    background.start(link.close()).result()
    parts, found = [a + b for a, b in zip(encoding, sending, strict=True)][1:], whole[1:]
    middle = {"sum_ms": parts, "single_ms": found, "there_and_back_ms": sending[1:]}
    return {
        **{name: statistics.median(values) for name, values in middle.items()},
        "overhead": statistics.median(found) / statistics.median(parts) - 1,
    }


def cpu_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def beside_ms(session: HeadSession, pictures: Path, images: Sequence[Any]) -> float:
    """Milliseconds a frame of the head while another thread captures and resizes as many frames: no pipeline at all."""

    def capture() -> None:
        for frame in open_source(str(pictures)).frames():
            session.contract.prepare(frame.image)

    other = threading.Thread(target=capture)
    before = time.perf_counter()
    other.start()
    for image in images:
        session.symbols(image, 0)
    other.join()
    return (time.perf_counter() - before) * 1000 / len(images)


def pipeline(session: HeadSession, address: str, pictures: Path, count: int, server: int) -> tuple[float, float]:
    """Milliseconds and CPU milliseconds, also of the server, a frame; the first frames, which open the stream, apart."""
    skipped = WINDOW * 2
    with Client(session, address, window=WINDOW) as client, Feed(open_source(str(pictures)), queue=2) as feed:
        before = cpu = 0.0
        for k, result in enumerate(client.stream(feed)):
            assert result.error is None, result.error
            if k + 1 == skipped:
                before, cpu = time.perf_counter(), time.process_time() + cpu_seconds(server)
        passed, used = time.perf_counter() - before, time.process_time() + cpu_seconds(server) - cpu
        assert client.ledger.account.answered == count
    return passed * 1000 / (count - skipped), used * 1000 / (count - skipped)


def measure(session: HeadSession, address: str, pictures: Path, server: int) -> dict[str, Any]:
    """One round."""
    frames, capture = capture_ms(pictures)
    contract = session.contract
    resize = each_ms(frames, contract.prepare)
    images = [contract.prepare(frame).image for frame in frames]
    head = each_ms(images, lambda image: session.symbols(image, 0))
    symbols = [session.symbols(image, 0) for image in images[:PICTURES]]
    encode = each_ms((symbols[k % PICTURES] for k in range(len(frames))), lambda one: session.codec.encode(one, 0))
    packets = [session.encode(frames[k % PICTURES], 0) for k in range(len(frames))]
    link = background.start(link_ms(session, address, packets)).result()
    whole, cpu = pipeline(session, address, pictures, len(frames), server)
    means = {"capture": capture}
    means |= {name: statistics.mean(took) for name, took in (("resize", resize), ("head", head), ("encode", encode))}
    slowest, beside = max([*means.values(), link]), beside_ms(session, pictures, images)
    return {
        "stages_ms": {**means, "link": link},
        "slowest_ms": slowest,
        "pipeline_ms": whole,
        "pipeline_cpu_ms": cpu,
        "of_slowest": slowest / whole,
        "cores_ms": cpu / (os.cpu_count() or 1),
        "beside_ms": beside,
        "of_beside": beside / whole,
        **one_at_a_time(session, address, frames),
        "packet_bytes": len(packets[0].payload),
    }


def table(rounds: list[dict[str, Any]]) -> str:
    def middle(name: str) -> float:
        return statistics.median(one[name] for one in rounds)

    stages = {name: statistics.median(one["stages_ms"][name] for one in rounds) for name in rounds[0]["stages_ms"]}
    alone = ", ".join(f"{name} {ms:.2f}" for name, ms in stages.items())
    return (
        f"stages alone, ms a frame: {alone}\n"
        f"pipeline: {middle('pipeline_ms'):.2f} ms a frame, {middle('of_slowest'):.3f} of the slowest stage's throughput "
        f"(target 0.95); {middle('of_beside'):.3f} of head and capture on two threads without a pipeline "
        f"({middle('beside_ms'):.2f} ms); CPU of client and server {middle('pipeline_cpu_ms'):.2f} ms a frame, "
        f"{middle('cores_ms'):.2f} on each core\n"
        f"one at a time: {middle('single_ms'):.2f} ms; the sum of its stages {middle('sum_ms'):.2f} ms (there and back "
        f"{middle('there_and_back_ms'):.2f}); overhead {100 * middle('overhead'):.1f} % (target 10)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="that the client may use (default: all)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    last = (os.cpu_count() or 1) - 1
    take_turns_quickly()  # as `narrowcast stream` does
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = make_bundle(folder)
        pictures = make_pictures(folder, args.frames)
        process, address = start_server(bundle.parent, last)
        try:
            os.sched_setaffinity(0, range(args.cores))
            session = HeadSession(Bundle.open(bundle, "device", allow_unsigned=True), threads=1)
            rounds = [measure(session, address, pictures, process.pid) for _ in range(args.rounds)]
        finally:
            process.terminate()
            process.communicate()
    size = rounds[0]["packet_bytes"]
    print(f"{args.frames} frames, {args.rounds} rounds; {size} bytes a packet; client on {args.cores} cores")
    print(table(rounds))
    if args.json:
        args.json.write_text(
            json.dumps({"frames": args.frames, "cores": args.cores, "rounds": rounds}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
