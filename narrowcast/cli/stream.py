"""``narrowcast stream``."""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from narrowcast.cli import daemon, rating, sources
from narrowcast.cli.answers import answers, write_masks
from narrowcast.cli.consent import add_audit, audit_consent
from narrowcast.cli.options import PRECISIONS, add_tls, add_trust, at_least, open_bundle, seconds
from narrowcast.cli.show import TerminalProgress
from narrowcast.head.affinity import run_on
from narrowcast.text import human_bytes
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.frames import SUFFIXES
from narrowcast.transport.tasks import MAIN, DetectTask, SegmentTask

if TYPE_CHECKING:
    from narrowcast.head.client import Client
    from narrowcast.head.replay import Replayed
    from narrowcast.head.results import Result
    from narrowcast.head.spool import Spool
    from narrowcast.transport.bundle import Bundle, TailSpec

EXAMPLES = """\
examples:
  narrowcast stream model.ncb photos/ --to 127.0.0.1:7433
  narrowcast stream model.ncb photos/ --to tail.example:7433 --tls board-7/
  narrowcast stream model.ncb frame.jpg --to server:7433 --level 0 | jq .outputs
  narrowcast stream model.ncb photos/ --to one:7433,two:7433 --deadline-ms 500
  narrowcast stream model.ncb photos/ --to server:7433 --level auto --deadline-ms 300 --data-cap 1GB/day
  narrowcast stream detector.ncb photos/ --to server:7433 | jq .detections
  narrowcast stream both.ncb photos/ --to server:7433 --tail segment --masks masks/
  narrowcast stream model.ncb photos/ --to server:7433 --audit          # its operator may have some of the images
  narrowcast stream model.ncb rtsp://camera/1 --to server:7433 --fps 5 --on-outage spool --spool /var/lib/camera-1
  narrowcast stream model.ncb inbox/ --watch --to server:7433
  narrowcast stream model.ncb frames/ --to server:7433 --video on       # one after the other, from a camera
  capture | narrowcast stream model.ncb - --raw 640x480:nv12 --to server:7433
  narrowcast stream --config /etc/narrowcast/edge.toml            # as a service: docs/daemon.md
  narrowcast stream --config edge.toml --check

SOURCE is an image or video file, a folder of images, a camera (/dev/video0), a stream (rtsp://, http://), or raw frames
from stdin (-) or a socket (unix:PATH). One JSON line per frame goes to stdout, in the order of the frames. Where
the bundle has a local exit, it answers while there is no server ("from": "exit"), and the server is tried for ever. Of
several servers (or addresses of one name) one is used, and another when it dies, hangs, drains or refuses.
"""
TOP = 5

defaults_from_file = daemon.defaults_from_file  # with --config, nothing else is required


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("bundle", type=Path, metavar="MODEL.ncb")
    parser.add_argument("source", metavar="SOURCE", help="a file, folder, camera, stream, - or unix:PATH")
    parser.add_argument(
        "--to",
        required=True,
        metavar="HOST:PORT[,...]",
        help="the tail server, or several; a name may have several addresses",
    )
    parser.add_argument(
        "--window", type=at_least(1), default=8, metavar="N", help="frames under way at once (default: 8)"
    )
    parser.add_argument(
        "--threads", type=at_least(0), default=0, metavar="N", help="for the head (default: the library's choice)"
    )
    parser.add_argument(
        "--cpus", metavar="LIST", help="run on these processors only, such as 2-3 or 0,2 (default: all)"
    )
    parser.add_argument(
        "--precision",
        choices=["auto", *PRECISIONS],
        default="auto",
        help="of the head (default: auto, the fastest here; measured once, or at every start with NARROWCAST_CACHE=off)",
    )
    parser.add_argument(
        "--backend",
        choices=["auto", "onnxruntime", "tensorrt"],
        default="auto",
        help="runs the head (default: auto, the best for this board that loads; TensorRT builds an engine first, once)",
    )
    parser.add_argument("--give-up", type=seconds, default=30.0, metavar="S", help="without any answer (default: 30)")
    parser.add_argument(
        "--deadline-ms",
        type=at_least(1),
        metavar="MS",
        help="how long after a frame is read its answer is wanted; servers do not compute what is older (default: for ever)",
    )
    parser.add_argument(
        "--priority",
        choices=["background", "normal", "urgent"],
        default="normal",
        help="which frames go first where they have to wait on the server (default: normal)",
    )
    parser.add_argument(
        "--way",
        choices=["symbols", "image"],
        default="symbols",
        help="what is sent: symbols, or scaled images for the uncut network, where the server has it (default: symbols)",
    )
    parser.add_argument(
        "--image-codec", choices=["jpeg", "webp"], default="jpeg", help="with --way image; default: jpeg"
    )
    parser.add_argument(
        "--image-quality", type=at_least(1), default=75, metavar="Q", help="with --way image: 1..100 (default: 75)"
    )
    parser.add_argument("--no-exit", action="store_true", help="never answer by the bundle's local exit")
    parser.add_argument(
        "--exit-after",
        type=sources.positive,
        default=2.0,
        metavar="S",
        help="what the server does not answer in time is answered by the local exit, where the bundle has one (default: 2)",
    )
    parser.add_argument(
        "--tail", action="append", metavar="NAME", help="of a bundle with several, only this one (may be repeated)"
    )
    parser.add_argument(
        "--masks", type=Path, metavar="DIR", help="write maps of classes there as PNG, of the source's size"
    )
    add_audit(parser)
    parser.add_argument(
        "--video",
        choices=["auto", "on", "off"],
        default="auto",
        help="send frames by reference to earlier ones, and only word of those that show nothing new (default: auto, on "
        "where the bundle has video tables and SOURCE is a camera, a stream, a video file or raw frames)",
    )
    parser.add_argument("--full", action="store_true", help="outputs with all their values")
    rating.add_arguments(parser)
    sources.add_arguments(parser)
    daemon.add_arguments(parser)
    add_tls(parser)
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from narrowcast.head.ahead import take_turns_quickly

    take_turns_quickly()
    if args.config is not None:
        return daemon.run(args)
    if args.check:
        raise ConfigError("--check is for a service: it goes with --config FILE.toml")
    if args.cpus is not None:
        cpus = run_on(args.cpus)
        args.threads = args.threads or cpus  # by itself the library would count all of them
    from narrowcast.devices.probe import preferred_backends
    from narrowcast.head.client import Client
    from narrowcast.head.session import HeadSession
    from narrowcast.head.video.wanted import by_reference
    from narrowcast.transport.rpc.credentials import client_tls

    progress = TerminalProgress(quiet=args.quiet)
    source = sources.source_of(args, progress.note)
    tls = client_tls(args.tls, token_file=args.token_file, server_name=args.tls_name)
    bundle = open_bundle(args, "device")
    if args.masks is not None:
        _check_masks(args, bundle)
    backends = preferred_backends() if args.backend == "auto" else [args.backend]
    session = HeadSession(bundle, backend=backends, precision=args.precision, threads=args.threads)
    if session.choice.head_ms:
        progress.note(str(session.choice))
    if isinstance(args.level, int) and not 0 <= args.level < session.levels:
        raise ConfigError(f"--level {args.level}; {bundle.manifest.name} has levels 0..{session.levels - 1}")
    labels = {tail.name: _labels(bundle, tail) for tail in bundle.manifest.all_tails()}
    names: dict[int, str] = {}
    lock = threading.Lock()  # what was spooled is told by another thread

    def tell(line: dict[str, Any]) -> None:
        with lock:
            print(json.dumps(line), flush=True)

    started = time.perf_counter()
    with sources.spool_of(args) as spool, Client(
        session, args.to, tails=args.tail, window=args.window, give_up_seconds=args.give_up,
        on_trouble=progress.note, local_exit=False if args.no_exit else None, exit_after_seconds=args.exit_after,
        deadline_ms=args.deadline_ms, priority=args.priority, way=args.way, image_codec=args.image_codec,
        image_quality=args.image_quality, audit=audit_consent(args), on_outage=args.on_outage, spool=spool,
        video=by_reference(
            args.video, bundle, args.source, watch=args.watch, way=args.way, offload=args.offload
        ),
        on_replayed=lambda replayed: tell(_replayed_line(replayed, labels, full=args.full)), tls=tls,
        **rating.client_options(args),
    ) as client, sources.feed_of(source, args, client, progress.note) as feed:  # fmt: skip
        failed, here = 0, Counter[str]()
        for result in client.stream(sources.named(feed, names)):
            name = names.pop(result.frame_id)
            found = answers(result)
            if args.masks is not None:
                found["masks"] = write_masks(result, args.masks, Path(name), Path(args.source))
            tell(_line(result, name, labels, full=args.full) | found)
            failed += result.fate == "dropped" and result.dropped is None
            here[result.source] += result.fate == "local"
        if spool is not None:
            _drain(spool, args.drain)
        _summary(client, time.perf_counter() - started, here, progress)
        if spool is not None and spool.waiting:
            progress.note(
                f"{spool.waiting} frames wait in {spool.folder}: they are sent when there is a server, also by a later run"
            )
    return 1 if failed or getattr(source, "skipped", 0) else 0


def _drain(spool: Spool, seconds: float) -> None:
    """Waits for the spool to be sent."""
    end = time.monotonic() + seconds
    while spool.waiting and time.monotonic() < end:
        time.sleep(0.05)


def _check_masks(args: argparse.Namespace, bundle: Bundle) -> None:
    """Whether ``--masks`` has something to write, and nothing of the user's to write over."""
    source = Path(args.source)
    if not source.is_dir() and source.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--masks: maps are written for image files; {args.source} is none, and no folder")
    folder = source.parent if source.is_file() else source
    if args.masks.resolve() == folder.resolve():
        raise ConfigError(f"--masks {args.masks} is where the images are: maps would be written over them")
    tails = [tail for tail in bundle.manifest.all_tails() if not args.tail or tail.name in args.tail]
    if not any(isinstance(tail.task, SegmentTask) for tail in tails):
        raise ConfigError(f'--masks: {bundle.manifest.name} gives no map of classes ([task] kind = "segment")')


def _labels(bundle: Bundle, tail: TailSpec) -> list[str] | None:
    """The names of a tail's classes, where the bundle has them; None where its outputs are no class scores."""
    if isinstance(tail.task, DetectTask | SegmentTask):
        return None
    if tail.task is not None and tail.task.classes:
        return tail.task.classes
    return bundle.read("labels").decode().splitlines() if tail.name == MAIN and bundle.has("labels") else []


def _outputs(outputs: Mapping[str, Any], labels: dict[str, list[str] | None], *, full: bool) -> dict[str, Any]:
    def of(output: str) -> list[str] | None:
        tail = output.partition("/")[0]
        return labels[tail if tail in labels and "/" in output else MAIN]

    return {name: _output(values, of(name), full=full) for name, values in outputs.items()}


def _replayed_line(replayed: Replayed, labels: dict[str, list[str] | None], *, full: bool) -> dict[str, Any]:
    """What a server says of a frame that was spooled, by this run or an earlier one."""
    return {
        "frame": replayed.frame_id,
        "stream_id": replayed.stream_id.hex(),
        "captured_us": replayed.capture_us,
        "from": "spool",
        "level": replayed.level,
        "error": replayed.error,
        "status": replayed.status,
        "outputs": _outputs(replayed.outputs, labels, full=full),
        **answers(replayed),
    }


def _line(result: Result, name: str, labels: dict[str, list[str] | None], *, full: bool) -> dict[str, Any]:
    return {
        "frame": result.frame_id,
        "source": name,
        "from": result.source,
        "fate": result.fate,
        "level": result.level,
        "kind": result.kind,
        "reference": result.reference,
        "packet_bytes": result.packet_bytes,
        "latency_ms": round(result.latency_ms, 3),
        "times_ms": {stage: round(value, 3) for stage, value in result.times.stages().items()},
        "error": result.error,
        "status": result.status,
        "dropped": result.dropped,
        "outputs": _outputs(result.outputs, labels, full=full),
    }


def _output(values: Any, labels: list[str] | None, *, full: bool) -> dict[str, Any]:
    """Class scores as the top classes; everything else as its shape; ``--full`` as it is."""
    found: dict[str, Any] = {"dtype": str(values.dtype), "shape": list(values.shape)}
    if full:
        finite: Any = values if values.dtype.kind != "f" else np.where(np.isfinite(values), values, None)
        found["values"] = finite.tolist()
    if labels is not None and values.ndim == 1 and len(values) > 1 and values.dtype.kind == "f":
        if not np.isfinite(values).all():  # JSON has no word for what is no number
            return found | {"top": None}
        scores = np.exp(values.astype(np.float64) - values.max())
        scores /= scores.sum()
        found["top"] = [
            {
                "class": int(k),
                "softmax": round(float(scores[k]), 4),
                **({"label": labels[k]} if k < len(labels) else {}),
            }
            for k in np.argsort(-scores)[:TOP]
        ]
    return found


def _summary(client: Client, seconds: float, here: Counter[str], progress: TerminalProgress) -> None:
    """Tells how it went; ``here`` are answers of the board's own, by what gave them."""
    counters, account, replays = client.counters, client.ledger.account, client.replay_counters
    frames = account.captured
    line = (
        f"{frames} frames in {seconds:.2f} s ({frames / seconds:.1f} a second), "
        f"{human_bytes(counters.packet_bytes_sent / max(1, counters.packets_sent))} a packet"
    )
    on_socket = client.socket_bytes()
    if on_socket is not None:
        line += f"; on the socket {human_bytes(on_socket.sent)} up, {human_bytes(on_socket.received)} down"
    if counters.packets_predicted or counters.packets_skipped:
        line += f"; {counters.packets_predicted} predicted from an earlier frame, {counters.packets_skipped} skipped"
    if counters.packets_resent:
        line += f"; {counters.packets_resent} packets sent again over {counters.streams_opened} streams"
    if counters.results_put_off:
        line += f"; put off by a full server {counters.results_put_off} times"
    if counters.audit_sent:
        line += f"; {counters.audit_sent} images for the server's operator, who asked for them"
    if counters.results_late:
        line += f"; {counters.results_late} answers came too late"
    progress.note(line)
    if (rated := rating.summary(client)) is not None:
        progress.note(rated)
    for who, count in (("the local exit", here["exit"]), ("the uncut network here", here["whole"])):
        if count:
            progress.note(f"{count} of {frames} frames answered by {who}")
    ends = [f"{count} {reason}" for reason, count in sorted(account.dropped.items())]
    if ends or account.spooled:
        progress.note(f"{account.answered} answered, {account.spooled} spooled, dropped: {', '.join(ends) or 'none'}")
    if replays is not None and (replays.answered or replays.dropped):
        progress.note(f"of spooled frames {replays.answered} answered, {sum(replays.dropped.values())} given up")
