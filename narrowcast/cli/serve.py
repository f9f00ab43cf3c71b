"""``narrowcast serve``."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
from pathlib import Path

from narrowcast.cli.options import add_trust, at_least, seconds
from narrowcast.cli.serving import store as models
from narrowcast.cli.show import stderr
from narrowcast.transport.rpc.channels import DEFAULT_PORT, parse_address

EXAMPLES = f"""\
examples:
  narrowcast serve --bundles models/
  narrowcast serve --bundles models/ --listen 127.0.0.1:0 --json      # a free port, told as JSON on stdout
  narrowcast serve --bundles models/ --listen 0.0.0.0:{DEFAULT_PORT} --insecure

Serves the highest release of every model and codec in the folder, and follows its changes: rename a bundle into it to
publish, remove one to unload it (docs/server.md). SIGHUP looks at once, and tries again what was refused. SIGTERM and
Ctrl-C answer what was taken in, then end.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("--bundles", type=Path, required=True, metavar="DIR", help="a folder of bundles (*.ncb)")
    parser.add_argument(
        "--listen", default=f"127.0.0.1:{DEFAULT_PORT}", metavar="HOST:PORT", help="default: %(default)s"
    )
    parser.add_argument("--insecure", action="store_true", help="listen beyond this machine without encryption")
    parser.add_argument("--max-batch", type=at_least(1), default=16, metavar="N", help="frames per batch (default: 16)")
    parser.add_argument(
        "--max-delay-ms", type=seconds, default=0.0, metavar="MS", help="wait so long to fill a batch (default: 0)"
    )
    parser.add_argument("--drain-timeout", type=seconds, default=10.0, metavar="S", help="for ending (default: 10)")
    parser.add_argument("--json", action="store_true", help="tell as a JSON line on stdout when it listens")
    models.add_arguments(parser)
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO, stream=sys.stderr)
    return asyncio.run(_serve(args))


async def _serve(args: argparse.Namespace) -> int:
    from narrowcast.tail.server import TailServer

    server = TailServer(
        models.store_settings(args), parse_address(args.listen), insecure=args.insecure, max_batch=args.max_batch,
        max_delay_ms=args.max_delay_ms,
    )  # fmt: skip
    address = await server.start()
    assert server.store is not None
    served = [row for row in server.store.status() if row.state == "ready"]
    names = {str(row.name): row.release for row in sorted(served, key=lambda row: row.release or 0)}
    if args.json:
        print(json.dumps({"event": "listening", "address": str(address), "models": names}), flush=True)
    console = stderr()
    listed = ", ".join(f"{row.name} (release {row.release})" for row in served)
    console.print(f"serving {listed} on {address}")
    if args.insecure:
        console.print(
            "INSECURE: anyone who can reach this port can use it, and the traffic is not encrypted", style="bold red"
        )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, server.store.reload)
    await stop.wait()
    console.print("ending: answering what was taken in")
    await server.stop(args.drain_timeout)
    return 0
