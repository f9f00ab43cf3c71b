"""``narrowcast serve``."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import time
from pathlib import Path

from narrowcast.cli.options import add_trust, at_least, seconds
from narrowcast.cli.serving import config, drift, operations, queueing, security, sinks, store
from narrowcast.cli.serving.signals import end_in_any_case, stop_on_signals
from narrowcast.transport.rpc.channels import DEFAULT_PORT, parse_address

EXAMPLES = f"""\
examples:
  narrowcast serve --bundles models/
  narrowcast serve --config server.toml --log json                    # options as keys; flags win over them
  narrowcast serve --bundles models/ --listen 127.0.0.1:0 --json      # a free port, told as JSON on stdout
  narrowcast serve --bundles models/ --listen 0.0.0.0:{DEFAULT_PORT} --tls tail-tls/      # made by narrowcast keys issue
  narrowcast serve --bundles models/ --listen 0.0.0.0:{DEFAULT_PORT} --tls tail-tls/ --tokens tokens.txt
  narrowcast serve --bundles models/ --listen 0.0.0.0:{DEFAULT_PORT} --insecure
  narrowcast serve --bundles models/ --webhook https://example.org/results --webhook-secret secret.txt
  narrowcast serve --bundles models/ --mqtt 127.0.0.1:1883/site/cameras --audit samples/ --audit-key audit.key.pub
  narrowcast serve --bundles models/ --http 127.0.0.1:7480 --log json   # http://127.0.0.1:7480/ shows what happens

Serves the highest release of every model and codec in the folder, and follows its changes: rename a bundle into it to
publish, remove one to unload it (docs/server.md). SIGHUP looks at once, and tries again what was refused. SIGTERM and
Ctrl-C answer what was taken in, then end; a second one ends at once.
"""

defaults_from_file = config.defaults_from_file  # the verb's options may come from a file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("--bundles", type=Path, required=True, metavar="DIR", help="a folder of bundles (*.ncb)")
    config.add_arguments(parser)
    parser.add_argument(
        "--listen", default=f"127.0.0.1:{DEFAULT_PORT}", metavar="HOST:PORT", help="default: %(default)s"
    )
    parser.add_argument("--insecure", action="store_true", help="listen beyond this machine without --tls")
    parser.add_argument("--max-batch", type=at_least(1), default=16, metavar="N", help="frames per batch (default: 16)")
    parser.add_argument(
        "--max-delay-ms", type=seconds, default=0.0, metavar="MS", help="wait so long to fill a batch (default: 0)"
    )
    parser.add_argument("--drain-timeout", type=seconds, default=10.0, metavar="S", help="for ending (default: 10)")
    parser.add_argument("--json", action="store_true", help="tell as a JSON line on stdout when it listens")
    store.add_arguments(parser)
    queueing.add_arguments(parser)
    security.add_arguments(parser)
    operations.add_arguments(parser)
    drift.add_arguments(parser)
    sinks.add_arguments(parser)
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from narrowcast.tail.operations.logs import set_up

    set_up(args.log)
    return asyncio.run(_serve(args))


async def _serve(args: argparse.Namespace) -> int:
    from narrowcast.tail.observe import Observers
    from narrowcast.tail.operations.logs import tell
    from narrowcast.tail.server import TailServer

    observers = Observers()
    server = TailServer(
        store.store_settings(args), parse_address(args.listen), access=security.build_access(args), insecure=args.insecure,
        max_batch=args.max_batch, max_delay_ms=args.max_delay_ms, observer=observers, **queueing.server_options(args),
    )  # fmt: skip
    frames = drift.Watching(args, server.table.manifest)
    for observer in frames.observers:
        observers.add(observer)
    if frames.audit is not None:
        server.audit_by(frames.audit)
    watching = operations.Operations(args, observers, server, frames.drift)
    frames.tell_figures(watching.tally)
    address = await server.start()
    http = await watching.start(address)
    frames.start()
    assert server.store is not None
    names = store.served(server.store)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, server.store.reload)
    stop = stop_on_signals(lambda number, again: _tell_signal(number, args.drain_timeout, again))
    if args.json:
        where = {"address": str(address), **({"http": str(http)} if http else {})}
        print(json.dumps({"event": "listening", **where, "models": names}), flush=True)
    tell("listening", address=str(address), http=str(http) if http else None, models=names)
    watching.warn()
    await stop.wait()
    began = time.monotonic()
    end_in_any_case(args.drain_timeout, lambda: tell("drain_timeout", logging.WARNING, seconds=args.drain_timeout))
    await server.stop(args.drain_timeout * 0.9)  # the rest is for what comes after
    left = max(0.5, began + args.drain_timeout * 0.98 - time.monotonic())
    # Side by side, whatever becomes of the other: a collector that hangs or fails costs no baselines.
    ended = await asyncio.gather(frames.stop(left), watching.stop(), return_exceptions=True)
    for error in ended:
        if error is not None:
            raise error
    tell("ended", seconds=round(time.monotonic() - began, 3))
    return 0


def _tell_signal(number: signal.Signals, timeout_seconds: float, again: bool) -> None:
    from narrowcast.tail.operations.logs import tell

    if again:
        tell("killed", logging.WARNING, signal=number.name, reason="a second signal")
    else:
        tell("draining", signal=number.name, timeout_seconds=timeout_seconds)
