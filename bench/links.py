"""What emulated links do beside what they are told to: rate each way, round trip, loss, and what this machine adds.

    python bench/links.py [--links lte,3g,...] [--how packets,relay] [--seconds 5] [--json links.json]

Four connections send as fast as they are let, up and then down, to a server in this process; what arrived is counted by the
emulation, between two moments of its own clock. Round trips are of one byte on an idle link (median of 15). Loss is of all
packets that were offered (their acknowledgements are among them). ``late`` is by how much the emulation delivered after the
moment that it had computed, on average and at worst: what a busy machine adds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from narrowcast.devices.errors import LinkUnavailableError
from narrowcast.devices.links import Emulation, emulated, link_names, parse_link
from narrowcast.devices.links.shaper import WayCounts

CONNECTIONS = 4
PINGS = 15
WARM_SECONDS = 1.0
PIECE = bytes(16_384)
# What a connection says first: what it wants.
ECHO, SINK, SOURCE = b"e", b"s", b"S"


def serve(listening: socket.socket) -> None:
    """Echoes, swallows or sends, as each connection wants."""

    def one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            wanted = connection.recv(1)
            if wanted == SOURCE:
                while True:
                    connection.sendall(PIECE)
            while data := connection.recv(65_536):
                if wanted == ECHO:
                    connection.sendall(data)

    with contextlib.suppress(OSError):
        while True:
            threading.Thread(target=one, args=(listening.accept()[0],), daemon=True).start()


def connect(link: Emulation, wanted: bytes) -> socket.socket:
    host, _, port = link.address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(wanted)
    return connection


def round_trip_ms(link: Emulation) -> float:
    with connect(link, ECHO) as connection:
        took = []
        for _ in range(PINGS):
            before = time.perf_counter()
            connection.sendall(b"?")
            assert connection.recv(1) == b"?"
            took.append((time.perf_counter() - before) * 1000)
    return statistics.median(took[1:])


def flood(link: Emulation, wanted: bytes, seconds: float, way: Callable[[], WayCounts]) -> tuple[float, WayCounts]:
    """Bits a second that arrive on one way while it is full, and its counts."""
    connections = [connect(link, wanted) for _ in range(CONNECTIONS)]

    def work(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                if wanted == SINK:
                    connection.sendall(PIECE)
                elif not connection.recv(65_536):
                    return

    threads = [threading.Thread(target=work, args=(one,), daemon=True) for one in connections]
    for thread in threads:
        thread.start()
    time.sleep(WARM_SECONDS + 4 * link.link.rtt_ms / 1000)
    first = way()
    time.sleep(seconds)
    last = way()
    for one in connections:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
    assert first.last_s is not None
    assert last.last_s is not None
    passed = last.last_s - first.last_s
    return (last.delivered_bytes - first.delivered_bytes) * 8 / passed if passed > 0 else 0.0, last


def measure(name: str, how: Any, to: str, seconds: float) -> dict[str, Any]:
    link = parse_link(name)
    with emulated(link, to, how=how, seed=1) as emulation:
        rtt = round_trip_ms(emulation)
        up, up_counts = flood(emulation, SINK, seconds, lambda: emulation.counts().up)
    with emulated(link, to, how=how, seed=2) as emulation:
        down, down_counts = flood(emulation, SOURCE, seconds, lambda: emulation.counts().down)
    lost = up_counts.lost + down_counts.lost
    return {
        "link": name,
        "how": how,
        "up_bits_per_second": link.up_bits_per_second,
        "measured_up_bits_per_second": round(up),
        "down_bits_per_second": link.down_bits_per_second,
        "measured_down_bits_per_second": round(down),
        "rtt_ms": link.rtt_ms,
        "measured_rtt_ms": round(rtt, 2),
        "loss": link.loss_fraction,
        "measured_loss": lost / (up_counts.offered + down_counts.offered) if how == "packets" else None,
        "packets": up_counts.offered + down_counts.offered,
        "overflowed": up_counts.overflowed + down_counts.overflowed,
        "mean_late_ms": round(
            (up_counts.late_sum_ms + down_counts.late_sum_ms) / max(1, up_counts.delivered + down_counts.delivered), 3
        ),
        "worst_late_ms": round(max(up_counts.late_ms, down_counts.late_ms), 2),
    }


def row(one: dict[str, Any]) -> str:
    loss = "-" if one["measured_loss"] is None else f"{100 * one['measured_loss']:.2f} %"
    up, down = (one[f"measured_{way}_bits_per_second"] / one[f"{way}_bits_per_second"] for way in ("up", "down"))
    return (
        f"{one['link']:10} {one['how']:8} {one['up_bits_per_second'] / 1e3:9.0f} {100 * up:6.1f} %"
        f" {one['down_bits_per_second'] / 1e3:9.0f} {100 * down:6.1f} % {one['rtt_ms']:8.1f} {one['measured_rtt_ms']:9.2f}"
        f" {100 * one['loss']:7.2f} % {loss:>8} {one['mean_late_ms']:8.2f} {one['worst_late_ms']:6.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--links", default=",".join(link_names()))
    parser.add_argument("--how", default="packets,relay")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    listening = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve, args=(listening,), daemon=True).start()
    to = f"127.0.0.1:{listening.getsockname()[1]}"
    found = []
    print(
        "link       how      up kbit/s  there  down kbit/s  there   rtt ms  measured    loss   measured   late ms  worst"
    )
    for how in args.how.split(","):
        for name in args.links.split(","):
            try:
                one = measure(name, how, to, args.seconds)
            except LinkUnavailableError as error:
                print(f"{name:10} {how:8} {error}")
                continue
            found.append(one)
            print(row(one), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"seconds": args.seconds, "links": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
