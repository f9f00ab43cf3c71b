"""How long a daemon takes to be ready, and the memory that it then has.

    python bench/daemon_start.py --bundle model.ncb --trust release.pub [--runs 7] [--json FILE]

From starting the process to its READY=1, as systemd would see it: interpreter, libraries, the bundle's signature and parts,
the head, its self-check. Beside it, in turns: the same interpreter that only imports NumPy, gRPC and ONNX Runtime, which no
client can do without. No server is needed. Processor time is given, too: where other things run, it tells more.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

IMPORTS = "import numpy, grpc.aio, onnxruntime"
SETTINGS = """
bundle = {bundle}
trust = [{trust}]
to = "127.0.0.1:9"
[[sources]]
name = "inbox"
uri = "inbox"
watch = true
[[outputs]]
kind = "socket"
path = "results.sock"
[metrics]
listen = "unix:metrics.sock"
"""


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def bare() -> dict[str, float]:
    before, started = children_seconds(), time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return {"seconds": time.perf_counter() - started, "cpu_seconds": children_seconds() - before}


def ready(folder: Path) -> dict[str, float]:
    """One start, and its end."""
    address = folder / "notify"
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(address))
        systemd.settimeout(120)
        environment = {**os.environ, "NOTIFY_SOCKET": str(address), "STATE_DIRECTORY": str(folder / "state")}
        command = [sys.executable, "-m", "narrowcast", "stream", "--quiet", "--config", str(folder / "edge.toml")]
        started = time.perf_counter()
        process = subprocess.Popen(command, env=environment)
        try:
            while not systemd.recv(4096).startswith(b"READY=1"):
                pass
            seconds = time.perf_counter() - started
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            cpu_seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "rss_bytes": pages * os.sysconf("SC_PAGE_SIZE")}


def median(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--trust", type=Path, required=True, metavar="FILE.pub")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures as JSON")
    args = parser.parse_args()
    daemons: list[dict[str, float]] = []
    imports: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = {
            key: json.dumps(str(value.absolute())) for key, value in (("bundle", args.bundle), ("trust", args.trust))
        }
        (folder / "edge.toml").write_text(SETTINGS.format(**paths))
        ready(folder)  # what is measured once, and kept
        for _ in range(args.runs):
            daemons.append(ready(folder))
            imports.append(bare())
    found: dict[str, Any] = {"daemon": median(daemons), "imports alone": median(imports)}
    for what, row in found.items():
        memory = f", {row['rss_bytes'] / 2**20:.0f} MiB resident" if "rss_bytes" in row else ""
        print(f"{what}: {row['seconds']:.2f} s, of the processor {row['cpu_seconds']:.2f} s{memory}")
    print(f"ratio of processor time: {found['daemon']['cpu_seconds'] / found['imports alone']['cpu_seconds']:.2f}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
