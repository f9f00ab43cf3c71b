"""What watching costs on the server's event loop: microseconds per call of each observer, milliseconds per answer of HTTP.

    python bench/operations.py
    python bench/operations.py --json operations.json

The least of several rounds is quoted: these are short, and whatever else runs only adds. Beside them what nobody can avoid:
making one frame's result into bytes.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from narrowcast.tail.models import ModelTable
from narrowcast.tail.observe import FrameRecord, StreamInfo
from narrowcast.tail.operations.history import History
from narrowcast.tail.operations.logs import EventLog
from narrowcast.tail.operations.prometheus import exposition
from narrowcast.tail.operations.status import status
from narrowcast.tail.operations.tally import Tally, _Sizes
from narrowcast.transport.packet import CodecId, Packet
from narrowcast.transport.rpc import tail_pb2 as pb

STREAM = StreamInfo("192.0.2.7", "model", b"s" * 16)
MODELS = 8
ROUNDS = 15


class _Table(ModelTable):
    """Names without models behind them."""

    def names(self) -> list[str]:
        return [STREAM.model, *(f"other-{k}" for k in range(MODELS - 1))]


def record() -> FrameRecord:
    """An answered frame with 1000 floats."""
    times = pb.ServerTimes(queue_us=900, decode_us=200, tail_us=3000, total_us=4500, batch=4)
    outputs = [pb.Tensor(name="output", data_type=pb.DATA_TYPE_FLOAT32, shape=[1000], data=bytes(4000))]
    result = pb.Result(frame_id=7, outputs=outputs, times=times)
    packet = Packet(CodecId.RANS, 1, 7, 0, bytes(2000), b"s" * 16, b"f" * 16)
    return FrameRecord(STREAM, 1, packet, 2024, result, result.ByteSize(), 0.02)


def least_us(call: Callable[[], object], calls: int) -> float:
    """Of several rounds, microseconds per call."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(calls):
            call()
        rounds.append((time.perf_counter() - started) / calls * 1e6)
    return min(rounds)


def measure() -> dict[str, float]:
    """Microseconds by what is done."""
    frame, tally, log = record(), Tally(_Table()), EventLog()
    logging.disable()
    for observer in (tally, log):
        observer.stream_opened(STREAM)
    tally.models[STREAM.model].sizes[1] = _Sizes(False, 224 * 224 * 3)
    history = History(tally)
    for second in range(121):
        history.tick(float(second))
    found = {
        "result to bytes": least_us(frame.result.SerializeToString, 5000),
        "count a frame": least_us(lambda: tally.frame_done(frame), 5000),
        "count a batch": least_us(lambda: tally.batch_done(STREAM.model, 8, 0), 5000),
        "log, per frame": least_us(lambda: log.frame_done(frame), 5000),
        "snapshot, per second": least_us(history.tick, 100),
        "/metrics, on the event loop": least_us(tally.figures, 5),
        f"/metrics, on a thread, {MODELS} models": least_us(lambda: exposition(tally.figures()), 5),
        f"/api/status, {MODELS} models": least_us(
            lambda: msgspec.json.encode(status(tally, history, "serving", "", 1.0)), 5
        ),
    }
    return found | traces(frame)


def traces(frame: FrameRecord) -> dict[str, float]:
    """With OpenTelemetry, where it is installed."""
    try:
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        from narrowcast.tail.operations.traces import Traces
    except ImportError:
        return {}
    found = {}
    for name, every in (("trace, a frame that is not sampled", 10**9), ("trace, a sampled frame", 1)):
        watcher = Traces(InMemorySpanExporter(), every)
        watcher.stream_opened(STREAM)
        found[name] = least_us(lambda watcher=watcher: watcher.frame_done(frame), 200)  # type: ignore[misc]
        watcher.close()
    return found


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = measure()
    for name, spent_us in found.items():
        print(f"{name:40} {spent_us:10.2f} us")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
