"""A long run of the real edge client against real servers, over links that vary, break and are cut: does every frame add up?

    python bench/soak.py [--minutes 30] [--fps 10] [--seed 0] [--json soak.json]

``narrowcast stream`` reads raw frames from a pipe and has two servers, each behind an emulated link of its own (packets that
are lost where root may, else a relay). Every few seconds something happens, by chance: a link becomes another one or is cut
for some seconds, its connections break, a server is killed and started again, or stands still for a while; in the last sixth
nothing does. What no server answers is spooled and replayed. Checked at the end:

* every frame that went in has exactly one line of its own: answered, spooled, or dropped with a reason;
* every spooled frame came back exactly once, and nothing came that was not sent;
* the client's memory: medians of the second and of the last sixth of the run; its file descriptors: their median in the
  second sixth and their least number in the last third (gRPC holds on to connections that nobody answers for some 20 s, so
  that after every cut there are more for a while).

Ends with 1 if a frame does not add up, or if memory or descriptors have grown.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from daemon import SIDE, make_bundle

from narrowcast.devices.links import Emulation, emulated

LINKS = ("ethernet", "wifi", "wifi-poor", "lte", "lte-poor", "3g", "lte-m", "200kbit,60ms,30ms,2%")
PAUSE_SECONDS = (3.0, 12.0)
SAMPLE_SECONDS = 2.0
PICTURES = 64
DRAIN_SECONDS = 180
# What may be more at the end than near the beginning.
GROWN_PART, GROWN_BYTES, GROWN_FILES = 0.05, 4 << 20, 12


class Server:
    """``narrowcast serve``, which can be killed and started again on its port."""

    def __init__(self, models: Path) -> None:
        self._models, self.address = models, "127.0.0.1:0"
        self.start()

    def start(self) -> None:
        command = [
            sys.executable, "-m", "narrowcast", "serve", "--bundles", str(self._models), "--listen", self.address, "--json",
            "--allow-unsigned", "--threads", "1",  # several would wait for work by spinning
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.address = str(json.loads(self.process.stdout.readline())["address"])

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


class Tally:
    """What the client says of each frame."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.fates: dict[int, str] = {}
        self.replayed: Counter[int] = Counter()
        self.dropped: Counter[str] = Counter()
        self.twice: list[int] = []
        self.failed_replays = 0

    def read(self, lines: Iterator[str]) -> None:
        for text in lines:
            line = json.loads(text)
            with self.lock:
                if line["from"] == "spool":
                    self.replayed[line["frame"]] += 1
                    self.failed_replays += line["error"] is not None
                    continue
                if line["frame"] in self.fates:
                    self.twice.append(line["frame"])
                self.fates[line["frame"]] = line["fate"]
                if line["fate"] == "dropped":
                    self.dropped[line["dropped"] or line["status"]] += 1

    def faults(self, frames_in: int) -> list[str]:
        """What does not add up, in words."""
        spooled = {frame for frame, fate in self.fates.items() if fate == "spooled"}
        missing = set(range(frames_in)) - set(self.fates)
        checks = {
            "frames without a line": len(missing),
            "lines of frames that did not go in": len(set(self.fates) - set(range(frames_in))),
            "frames with two lines": len(self.twice),
            "spooled frames that did not come back": len(spooled - set(self.replayed)),
            "frames that came back and were not spooled": len(set(self.replayed) - spooled),
            "frames that came back twice": sum(count > 1 for count in self.replayed.values()),
            "spooled frames that a server refused": self.failed_replays,
        }
        return [f"{count} {what}" for what, count in checks.items() if count]


class Chaos:
    """Does something to links and servers every few seconds; leaves all as it was at the end."""

    def __init__(self, servers: list[Server], links: list[Emulation], seed: int) -> None:
        self.did: Counter[str] = Counter()
        self.down_seconds = 0.0
        self._servers, self._links, self._random = servers, links, random.Random(seed)  # noqa: S311
        self._deeds: dict[str, Callable[[int], None]] = {
            "link changed": self._change, "link cut": self._cut, "connections broken": self._break,
            "server killed": self._kill, "server stopped": self._stop, "both links cut": self._cut_both,
        }  # fmt: skip

    def run(self, until: float) -> None:
        while (left := until - time.monotonic()) > 0:
            name = self._random.choice([*self._deeds, "link changed"])
            self._deeds[name](self._random.randrange(len(self._servers)))
            self.did[name] += 1
            time.sleep(min(max(0.0, left), self._random.uniform(*PAUSE_SECONDS)))
        for link in self._links:
            link.change("wifi")

    def _rest(self, least: float, most: float) -> None:
        time.sleep(self._random.uniform(least, most))

    def _change(self, which: int) -> None:
        self._links[which].change(self._random.choice(LINKS))

    def _cut(self, which: int) -> None:
        self._links[which].cut()
        self._rest(1, 15)
        self._links[which].mend()

    def _cut_both(self, _: int) -> None:
        before = time.monotonic()
        for link in self._links:
            link.cut()
        self._rest(2, 30)
        for link in self._links:
            link.mend()
        self.down_seconds += time.monotonic() - before

    def _break(self, which: int) -> None:
        self._links[which].reset()

    def _kill(self, which: int) -> None:
        self._servers[which].kill()
        self._rest(0.5, 8)
        self._servers[which].start()

    def _stop(self, which: int) -> None:
        self._servers[which].signal(signal.SIGSTOP)
        self._rest(1, 10)
        self._servers[which].signal(signal.SIGCONT)


class Samples:
    """A process's memory and file descriptors over time."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")
        self.rows: list[dict[str, float]] = []

    def take(self) -> None:
        with contextlib.suppress(OSError, StopIteration, ValueError):
            status = (self._folder / "status").read_text().splitlines()
            resident = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))
            threads = next(int(line.split()[1]) for line in status if line.startswith("Threads"))
            files = len(list((self._folder / "fd").iterdir()))
            self.rows.append({"at": time.monotonic(), "rss_bytes": resident, "files": files, "threads": threads})

    def medians(self, name: str) -> tuple[float, float]:
        """Of the second and of the last sixth of the run."""
        values = [row[name] for row in self.rows]
        sixth = max(1, len(values) // 6)
        return statistics.median(values[sixth : 2 * sixth] or values), statistics.median(values[-sixth:])

    def least(self, name: str) -> float:
        """In the last third of the run."""
        return min((row[name] for row in self.rows[-max(1, len(self.rows) // 3) :]), default=0)


def feed(pipe: Any, fps: float, until: float, failures: list[str]) -> int:
    """Writes frames, evenly; returns how many."""
    frames = np.random.default_rng(0).integers(0, 256, (PICTURES, SIDE, SIDE, 3)).astype(np.uint8)
    count, due = 0, time.monotonic()
    try:
        while time.monotonic() < until:
            pipe.write(frames[count % PICTURES].tobytes())
            pipe.flush()
            count += 1
            due = max(due + 1 / fps, time.monotonic() - 1.0)  # a client that blocked is not flooded afterwards
            time.sleep(max(0.0, due - time.monotonic()))
        pipe.close()
    except BrokenPipeError:
        failures.append("the client has ended")
    return count


def client(bundle: Path, addresses: list[str], spool: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, "-m", "narrowcast", "stream", str(bundle), "-", "--raw", f"{SIDE}x{SIDE}",
        "--to", ",".join(addresses), "--threads", "1", "--on-outage", "spool", "--spool", str(spool), "--exit-after", "2",
        "--drain", str(DRAIN_SECONDS),
        "--allow-unsigned",
    ]  # fmt: skip
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def soak(minutes: float, fps: float, seed: int, folder: Path) -> dict[str, Any]:
    bundle, failures, tally = make_bundle(folder), [], Tally()
    servers = [Server(bundle.parent) for _ in range(2)]
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.callback(server.kill)
        links = [stack.enter_context(emulated("wifi", server.address, seed=seed)) for server in servers]
        process = client(bundle, [link.address for link in links], folder / "spool")
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stderr is not None
        reading = threading.Thread(target=tally.read, args=((line.decode() for line in process.stdout),), daemon=True)
        notes: list[bytes] = []
        noting = threading.Thread(target=lambda: notes.extend(process.stderr or ()), daemon=True)
        reading.start()
        noting.start()
        samples, chaos, began = Samples(process.pid), Chaos(servers, links, seed), time.monotonic()
        ends, count = began + 60 * minutes, []
        feeding = threading.Thread(target=lambda: count.append(feed(process.stdin, fps, ends, failures)), daemon=True)
        harming = threading.Thread(target=chaos.run, args=(ends - 10 * minutes,), daemon=True)
        feeding.start()
        harming.start()
        while feeding.is_alive():
            samples.take()
            feeding.join(SAMPLE_SECONDS)
        harming.join()
        try:
            code = process.wait(DRAIN_SECONDS + 60)
        except subprocess.TimeoutExpired:
            code, failures = -1, [*failures, "the client does not end"]
        reading.join(10)
        how = links[0].how
    failures += tally.faults(count[0])
    if code:
        failures.append(f"the client ended with {code}: {b''.join(notes[-3:]).decode().strip()}")
    return report(tally, chaos, samples, failures) | {
        "minutes": minutes, "fps": fps, "seed": seed, "links": how, "frames_in": count[0],
        "client_said": b"".join(notes[-8:]).decode().splitlines(),
    }  # fmt: skip


def report(tally: Tally, chaos: Chaos, samples: Samples, failures: list[str]) -> dict[str, Any]:
    fates = Counter(tally.fates.values())
    rss, files = samples.medians("rss_bytes"), (samples.medians("files")[0], samples.least("files"))
    if rss[1] > rss[0] * (1 + GROWN_PART) + GROWN_BYTES:
        failures.append(f"memory has grown from {rss[0] / 1e6:.1f} to {rss[1] / 1e6:.1f} MB")
    if files[1] > files[0] + GROWN_FILES:
        failures.append(f"file descriptors have grown from {files[0]:.0f} to {files[1]:.0f}")
    return {
        "accounted_for": len(tally.fates),
        "fates": dict(fates),
        "replayed": sum(tally.replayed.values()),
        "dropped": dict(tally.dropped),
        "events": dict(chaos.did),
        "both_links_cut_s": round(chaos.down_seconds, 1),
        "rss_bytes": rss,
        "files": files,
        "threads": samples.medians("threads"),
        "failures": failures,
        "samples": samples.rows,
    }


def table(found: dict[str, Any]) -> str:
    fates, rss = found["fates"], [value / 1e6 for value in found["rss_bytes"]]
    events = ", ".join(f"{what} {count}" for what, count in found["events"].items())
    lines = [
        f"{found['minutes']:g} minutes at {found['fps']:g} frames a second, links of {found['links']}",
        f"happened: {events}",
        f"frames in {found['frames_in']}, accounted for {found['accounted_for']}: "
        f"answered {fates.get('answered', 0)}, spooled {fates.get('spooled', 0)}, dropped {fates.get('dropped', 0)}",
        f"of the spooled came back {found['replayed']}",
        f"client, early and late: {rss[0]:.1f} and {rss[1]:.1f} MB resident, {found['files'][0]:.0f} and "
        f"{found['files'][1]:.0f} file descriptors, {found['threads'][0]:.0f} and {found['threads'][1]:.0f} threads",
    ]
    verdict = [f"FAILED: {one}" for one in found["failures"]] or ["all adds up"]
    return "\n".join([*lines, *verdict])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--fps", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        found = soak(args.minutes, args.fps, args.seed, Path(name))
    print(table(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
