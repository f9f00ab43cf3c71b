"""The profiler beside an independent measure, and what profiling itself costs.

    python bench/profiler.py                       about three minutes
    python bench/profiler.py --frames 1000 --json profile.json

truth     A process of its own does frames by the profiler's ways (whole network on the board, JPEG sent, split), one by one,
          when this process says so over a pipe. This process times each by its own clock, from its word to the answer, and
          so knows nothing of how the profiler measures. A word that does nothing is timed in turn and taken off: it is what
          the pipe costs. The same frames, timed twice: medians, and the median of the pairs' ratios. Goal: within 3 %.
          Where Linux' perf is there, `perf stat` times runs of the whole network as well (duration_time of a long run less
          that of a short one), beside the mean that the profiler's way says of the same run.
overhead  A frame by a plain call (`client.infer(frame)` and nothing else) and one as the profiler's turns do it (tally,
          observer, clock), one each in turn, the order drawn anew for each pair: the median of the pairs' ratios. Where
          other programs run, that is more noise than figure; so the same turns are also run around a client that answers
          at once, which shows what they add ("hooks"), in microseconds. A power sampler runs at 10 Hz beside all of it, on a
          recorded board; what it takes of the machine's cores is told. Goal: hooks, of the plain frame, and sampler
          together at most 2 %.

The networks are drawn, of sizes as boards run them (tens of milliseconds here); server and client share this machine's
cores, with whatever else runs on it. One run's figures are quoted; the ratios count.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from narrowcast.devices.machine import Folder
from narrowcast.devices.power.sampler import Sampler
from narrowcast.devices.profile.connections import Connection
from narrowcast.devices.profile.engine import Engine, Timing
from narrowcast.devices.profile.frames import FrameSet
from narrowcast.devices.profile.observer import Silent
from narrowcast.devices.profile.runners import RemoteRunner, Runner, WayInfo
from narrowcast.devices.profile.settings import ProfileSettings
from narrowcast.devices.profile.starting import make_runners
from narrowcast.transport.bundle import Bundle, Manifest, OutputSpec, describe_part, write_bundle
from narrowcast.transport.codec import CodecSpec
from narrowcast.transport.contract import InputContract
from narrowcast.transport.selfcheck import reference_frames

SIDE, CLASSES, SHAPE = 160, 10, (8, 20, 20)
TRUTH_GOAL, OVERHEAD_GOAL = 0.03, 0.02
NOTHING = 0xFF
WAYS = ("local", "jpeg-75", "split-0")


def make_bundle(folder: Path) -> Path:
    """A drawn network: whole, and cut after its first layers."""
    from profiler_networks import head, tables, tail, whole

    spec = CodecSpec(name="rans", shape=SHAPE, alphabet=16, levels=1, quantizer="0" * 64)
    data = tables(spec)
    contents = {"head.onnx": head(), "tail.onnx": tail(), "tables": data, "whole.onnx": whole()}
    parts = [
        describe_part("head.onnx", contents["head.onnx"], "head", ["device"], precision="fp32"),
        describe_part("tail.onnx", contents["tail.onnx"], "tail", ["server"], precision="fp32"),
        describe_part("tables", data, "tables", ["device", "server"]),
        describe_part(
            "whole.onnx", contents["whole.onnx"], "whole", ["device", "server"], precision="fp32", optional=True
        ),
    ]
    manifest = Manifest(
        schema=1, name="drawn", release=1, created="2026-01-01T00:00:00Z", tool="bench", codec=spec,
        input=InputContract(size=(SIDE, SIDE)), fingerprint=spec.fingerprint(data).hex(), parts=parts,
        outputs=[OutputSpec(name="output", dtype="float32", shape=[CLASSES])],
    )  # fmt: skip
    path = folder / "drawn.ncb"
    write_bundle(path, manifest, contents, None)
    return path


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A tail server; gives its address."""
    command = [
        sys.executable,
        "-m",
        "narrowcast",
        "serve",
        "--bundles",
        str(folder),
        "--listen",
        "127.0.0.1:0",
        "--json",
    ]
    process = subprocess.Popen([*command, "--allow-unsigned", "--quiet"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield str(json.loads(process.stdout.readline())["address"])
    finally:
        process.terminate()
        process.wait(30)


def runners_of(bundle: Path, address: str) -> list[Runner]:
    """The profiler's ways."""
    settings = ProfileSettings(codecs=["jpeg"], qualities=[75], threads=1)
    links = [Connection("real", address, None)]
    opened = Bundle.open(bundle, "device", allow_unsigned=True)
    return make_runners(opened, ("local", "image", "split"), links, settings, ["onnxruntime"], lambda line: None)


def frames() -> FrameSet:
    """Drawn ones, larger than the network's input: they are resized."""
    return FrameSet("drawn", images=list(reference_frames((240, 320), 8)))


# The other process


def subject(bundle: Path, address: str) -> None:
    """Does a frame for each byte on stdin (the way's number), and answers with the milliseconds that the profiler says."""
    runners, images = runners_of(bundle, address), frames()
    os.write(1, b"\0")
    number = 0
    while word := os.read(0, 1):
        if word[0] == NOTHING:
            os.write(1, struct.pack("d", 0.0))
            continue
        image, _ = images.get(number)
        number += 1
        os.write(1, struct.pack("d", runners[word[0]].run(image).latency_ms))


def one_long_run(bundle: Path, count: int) -> None:
    """Frames by the whole network, and the mean that the profiler's way says of them: for ``perf stat``."""
    (runner, *_), images = runners_of(bundle, "127.0.0.1:9"), frames()
    for _ in range(5):
        runner.run(images.get(0)[0])
    told = [runner.run(images.get(k)[0]).latency_ms for k in range(count)]
    print(json.dumps({"mean_ms": float(np.mean(told))}))


def truth(bundle: Path, address: str, count: int) -> dict[str, Any]:
    """Each frame timed by the profiler there, and by this process."""
    words = [sys.executable, __file__, "--subject", str(bundle), "--address", address]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    there, back = process.stdin.fileno(), process.stdout.fileno()
    os.read(back, 1)

    def timed(word: int) -> tuple[float, float]:
        start = time.perf_counter()
        os.write(there, bytes([word]))
        told = struct.unpack("d", os.read(back, 8))[0]
        return (time.perf_counter() - start) * 1000, told

    rows: dict[int, list[tuple[float, float]]] = {k: [] for k in range(len(WAYS))}
    pipe: list[float] = []
    for number in range(count + 10):
        for way in random.Random(number).sample(range(len(WAYS)), len(WAYS)):  # noqa: S311
            empty = min(timed(NOTHING)[0] for _ in range(2))
            seen, told = timed(way)
            if number >= 10:
                pipe.append(empty)
                rows[way].append((seen, told))
    process.stdin.close()
    process.wait(30)
    cost = float(np.median(pipe))
    found: dict[str, Any] = {"pipe_ms": cost}
    for way, name in enumerate(WAYS):
        seen, told = np.array(rows[way]).T
        ratios = told / (seen - cost)
        found[name] = {
            "frames": count, "profiler_ms": float(np.median(told)), "observer_ms": float(np.median(seen)) - cost,
            "ratio": float(np.median(ratios)), "worst_5_percent": float(np.percentile(np.abs(ratios - 1), 95)),
        }  # fmt: skip
    return found


def perf(bundle: Path, count: int) -> dict[str, Any]:
    """The whole network's mean by ``perf stat``, beside the profiler's; or why not."""
    if shutil.which("perf") is None:
        return {"why_not": "perf is not installed (Debian: linux-perf)"}

    def measure(frames_done: int) -> tuple[float, float]:
        command = ["perf", "stat", "-e", "duration_time", "--", sys.executable, __file__, "--long", str(frames_done)]
        done = subprocess.run([*command, "--bundle", str(bundle)], capture_output=True, text=True, check=False)
        match = re.search(r"([\d.,]+)\s+ns\s+duration_time", done.stderr)
        if done.returncode or match is None:
            raise RuntimeError((done.stderr.strip().splitlines() or ["nothing"])[-1])
        return float(match[1].replace(",", "")) / 1e6, float(json.loads(done.stdout)["mean_ms"])

    try:
        pairs = [(measure(count), measure(5 * count)) for _ in range(3)]
    except RuntimeError as error:
        return {"why_not": f"perf stat does not run here: {error}"}
    seen = float(np.median([(long[0] - short[0]) / (4 * count) for short, long in pairs]))
    # The longer run less the shorter one, by what the profiler said of each.
    told = float(np.median([(5 * long[1] - short[1]) / 4 for short, long in pairs]))
    return {"perf_ms": seen, "profiler_ms": told, "ratio": told / seen}


def overhead(bundle: Path, address: str, count: int) -> dict[str, Any]:
    """What a frame takes with and without the profiler around the same client, one frame each in turn."""
    found: dict[str, Any] = {}
    images = frames()
    clock = Folder(Path("/"))
    with Sampler("jetson-orin-nano", _recorded_board(Path(tempfile.mkdtemp())), hz=10) as sampler:
        for runner, name in zip(runners_of(bundle, address), WAYS, strict=True):
            act = _plain_act(runner)
            engine = Engine([runner], images, Timing(), clock, Silent(), lambda: sampler.newest)
            tally = engine.measured.tallies[runner.info.id]
            rows: list[tuple[float, float]] = []
            for number in range(count + 10):
                took = {}
                for kind in random.Random(number).sample(["plain", "profiled"], 2):  # noqa: S311
                    start = time.perf_counter()
                    if kind == "plain":
                        act(images.images[number % len(images)])
                    else:
                        engine.count_one(runner, tally, 0)
                    took[kind] = (time.perf_counter() - start) * 1000
                if number >= 10:
                    rows.append((took["plain"], took["profiled"]))
            runner.close()
            plain, profiled = np.array(rows).T
            ratios = profiled / plain - 1
            found[name] = {
                "frames": count, "plain_ms": float(np.median(plain)), "profiled_ms": float(np.median(profiled)),
                "cost": float(np.median(ratios)), "quartiles": [float(np.percentile(ratios, p)) for p in (25, 75)],
            }  # fmt: skip
        percent = sampler.stop().cost.cpu_percent
    cores = len(os.sched_getaffinity(0))
    hooks = hooks_us(bundle, address)
    return found | {"sampler_cpu_percent_of_one_core": percent, "cores": cores, "hooks_us": hooks}


def hooks_us(bundle: Path, address: str) -> float:
    """What profiling adds to a frame: real turns around a client that gives an answer of earlier at once."""

    class Answered:
        def __init__(self) -> None:
            *_, split = runners_of(bundle, address)
            client: Any = split._client  # type: ignore[attr-defined]  # noqa: SLF001
            self.result = client.infer(frames().images[0])
            split.close()

        def infer(self, image: Any) -> Any:
            return self.result

    client: Any = Answered()
    runner = RemoteRunner(WayInfo("split-0@real", "split", "answered", "real"), lambda: client)
    images = frames()
    engine = Engine([runner], images, Timing(), Folder(Path("/")), Silent())
    tally = engine.measured.tallies[runner.info.id]
    plain, profiled = list[float](), list[float]()
    for number in range(20_000):
        start = time.perf_counter()
        client.infer(images.images[number % len(images)])
        middle = time.perf_counter()
        engine.count_one(runner, tally, 0)
        plain.append(middle - start)
        profiled.append(time.perf_counter() - middle)
    return 1e6 * float(np.median(profiled) - np.median(plain))


def _plain_act(runner: Runner) -> Callable[[Any], object]:
    """What a program would call itself."""
    client = getattr(runner, "_client", None)
    return client.infer if client is not None else runner._whole.answer  # type: ignore[attr-defined]  # noqa: SLF001


def _recorded_board(root: Path) -> Path:
    """Files of a sensor: what sampling costs does not depend on what they say."""
    sensor = root / "sys/class/hwmon/hwmon3"
    sensor.mkdir(parents=True)
    (sensor / "name").write_text("ina3221\n")
    for number, label in enumerate(("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"), 1):
        for name, text in (
            (f"in{number}_label", label),
            (f"in{number}_input", "5072"),
            (f"curr{number}_input", "1312"),
        ):
            (sensor / name).write_text(f"{text}\n")
    return root


def show(result: dict[str, Any]) -> None:
    """The tables."""
    measured = result["truth"]
    print(f"\nprofiler beside another process (its pipe, {measured['pipe_ms']:.3f} ms, taken off); goal: within 3 %")
    print(f"{'way':<10} {'profiler':>12} {'observer':>12} {'median ratio':>13}")
    for name in WAYS:
        row = measured[name]
        good = "met" if abs(row["ratio"] - 1) <= TRUTH_GOAL else "MISSED"
        print(f"{name:<10} {row['profiler_ms']:>9.3f} ms {row['observer_ms']:>9.3f} ms {row['ratio']:>13.4f}  {good}")
    seen = result["perf"]
    print(
        f"perf stat: {seen.get('why_not') or '{profiler_ms:.3f} ms by the profiler, {perf_ms:.3f} by perf'.format(**seen)}"
    )
    costs = result["overhead"]
    share = (costs["sampler_cpu_percent_of_one_core"] or 0.0) / costs["cores"] / 100
    print(f"\nprofiling beside plain calls; goal: with the sampler at most {100 * OVERHEAD_GOAL:.0f} %")
    for name in WAYS:
        row = costs[name]
        hooks = costs["hooks_us"] / 1000 / row["plain_ms"]
        good = "met" if hooks + share <= OVERHEAD_GOAL else "MISSED"
        low, high = (100 * part for part in row["quartiles"])
        took = f"{row['plain_ms']:>8.3f} ms plain {row['profiled_ms']:>8.3f} ms profiled"
        pairs = f"pairs {100 * row['cost']:.2f} % (quartiles {low:.1f} to {high:.1f})"
        print(f"{name:<10} {took}: {pairs}; hooks and sampler {100 * (hooks + share):.2f} %  {good}")
    print(
        f"hooks: {costs['hooks_us']:.1f} us a frame; "
        f"the power sampler at 10 Hz: {100 * share:.2f} % of this machine's {costs['cores']} cores"
    )


def main() -> None:
    """All parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=300, help="of each way (default 300)")
    parser.add_argument("--json", type=Path, help="the figures")
    parser.add_argument("--subject", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("--long", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--bundle", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.subject:
        subject(args.subject, args.address)
        return
    if args.long:
        one_long_run(args.bundle, args.long)
        return
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(Path(folder))
        with serving(Path(folder)) as address:
            result: dict[str, Any] = {"load_average": os.getloadavg()[0], "truth": truth(bundle, address, args.frames)}
            result["perf"] = perf(bundle, min(60, args.frames))
            result["overhead"] = overhead(bundle, address, args.frames)
        show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
