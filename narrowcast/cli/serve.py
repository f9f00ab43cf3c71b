"""``narrowcast serve``."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
from pathlib import Path

from narrowcast.cli.options import add_trust, at_least, seconds, trusted
from narrowcast.cli.serving import queueing, security
from narrowcast.cli.show import stderr
from narrowcast.transport.rpc.channels import DEFAULT_PORT, parse_address

EXAMPLES = f"""\
examples:
  narrowcast serve --bundles models/
  narrowcast serve --bundles models/ --listen 127.0.0.1:0 --json      # a free port, told as JSON on stdout
  narrowcast serve --bundles models/ --listen 0.0.0.0:{DEFAULT_PORT} --tls tail-tls/      # made by narrowcast keys issue
  narrowcast serve --bundles models/ --listen 0.0.0.0:{DEFAULT_PORT} --tls tail-tls/ --tokens tokens.txt
  narrowcast serve --bundles models/ --listen 0.0.0.0:{DEFAULT_PORT} --insecure

Serves the highest release of every model in the folder. SIGTERM and Ctrl-C answer what was taken in, then end.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("--bundles", type=Path, required=True, metavar="DIR", help="a folder of bundles (*.ncb)")
    parser.add_argument(
        "--listen", default=f"127.0.0.1:{DEFAULT_PORT}", metavar="HOST:PORT", help="default: %(default)s"
    )
    parser.add_argument("--insecure", action="store_true", help="listen beyond this machine without --tls")
    parser.add_argument("--max-batch", type=at_least(1), default=16, metavar="N", help="frames per batch (default: 16)")
    parser.add_argument(
        "--max-delay-ms", type=seconds, default=0.0, metavar="MS", help="wait so long to fill a batch (default: 0)"
    )
    parser.add_argument(
        "--threads", type=at_least(0), default=0, metavar="N", help="for each model (default: the library's choice)"
    )
    parser.add_argument("--drain-timeout", type=seconds, default=10.0, metavar="S", help="for ending (default: 10)")
    parser.add_argument("--json", action="store_true", help="tell as a JSON line on stdout when it listens")
    queueing.add_arguments(parser)
    security.add_arguments(parser)
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO, stream=sys.stderr)
    return asyncio.run(_serve(args))


async def _serve(args: argparse.Namespace) -> int:
    from narrowcast.tail.server import TailServer
    from narrowcast.tail.store import load_models

    models = load_models(args.bundles, trusted=trusted(args), allow_unsigned=args.allow_unsigned, threads=args.threads)
    server = TailServer(
        models, parse_address(args.listen), access=security.build_access(args), insecure=args.insecure,
        max_batch=args.max_batch, max_delay_ms=args.max_delay_ms, **queueing.server_options(args),
    )  # fmt: skip
    address = await server.start()
    names = {name: model.manifest.release for name, model in models.items()}
    if args.json:
        print(json.dumps({"event": "listening", "address": str(address), "models": names}), flush=True)
    console = stderr()
    listed = ", ".join(f"{name} (release {release})" for name, release in names.items())
    console.print(f"serving {listed} on {address}")
    if args.insecure and args.tls is None:
        console.print(
            "INSECURE: anyone who can reach this port can use it, and the traffic is not encrypted", style="bold red"
        )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
    console.print("ending: answering what was taken in")
    await server.stop(args.drain_timeout)
    return 0
