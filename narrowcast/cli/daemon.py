"""``narrowcast stream --config FILE.toml``: the edge client as a service (docs/daemon.md)."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from narrowcast.cli import error_line
from narrowcast.cli.serving.config import path_in
from narrowcast.cli.serving.signals import end_in_any_case, stop_on_signals
from narrowcast.text import escaped
from narrowcast.transport.errors import ConfigError

if TYPE_CHECKING:
    from narrowcast.head.daemon.config import DaemonConfig

log = logging.getLogger(__name__)
USAGE = 2

# Flags that go with a file, and the key that each stands for; those of sources count for every source.
_KEYS = {
    "bundle": "bundle", "to": "to", "tls": "tls.dir", "tls_name": "tls.name", "token_file": "tls.token_file",
    "trust": "trust", "allow_unsigned": "allow_unsigned", "backend": "runtime.backend",
    "precision": "runtime.precision", "threads": "runtime.threads", "cpus": "runtime.cpus", "watch": "sources.watch",
    "raw": "sources.raw", "fps": "sources.fps", "camera_size": "sources.camera_size",
    "watchdog": "sources.watchdog_seconds", "level": "sources.level", "deadline_ms": "sources.deadline_ms",
    "budget": "sources.budget", "data_cap": "sources.data_cap", "max_packet_bytes": "sources.max_packet_bytes",
    "window": "sources.window", "priority": "sources.priority", "way": "sources.way",
    "image_codec": "sources.image_codec", "image_quality": "sources.image_quality", "tail": "sources.tails",
    "on_outage": "sources.on_outage", "exit_after": "sources.exit_after_seconds",
    "video": "sources.video", "offload": "sources.offload", "way_joules": "sources.way_joules",
}  # fmt: skip
_OWN = {"config", "check", "quiet", "debug"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--config`` and ``--check``."""
    group = parser.add_argument_group("as a service (docs/daemon.md)")
    group.add_argument(
        "--config", type=Path, metavar="FILE.toml",
        help="run what the file says, for ever: no MODEL.ncb and SOURCE then; flags and NARROWCAST_* win over it",
    )  # fmt: skip
    group.add_argument(
        "--check", action="store_true", help="with --config: say what it would do, and whether it could (0) or not (2)"
    )


def defaults_from_file(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """With a file, nothing is required, and nothing has a default: what a flag does not say, the file does."""
    if path_in(words) is None:
        return
    for option in parser._actions:  # noqa: SLF001  (argparse has no public way to list them)
        if option.dest in _OWN or option.dest == "help":
            continue
        option.default, option.required = None, False
        if not option.option_strings:
            option.nargs = "?"


def overrides(args: argparse.Namespace) -> dict[str, Any]:
    """What flags and variables say, by key of the file.

    Raises:
        ConfigError: a flag that does not go with a file.
    """
    found: dict[str, Any] = {}
    for dest, value in vars(args).items():
        if value is None or dest in _OWN:
            continue
        if dest not in _KEYS:
            name = "SOURCE" if dest == "source" else f"--{dest.replace('_', '-')}"
            raise ConfigError(f"{name} does not go with --config: the file says it, for each source or output")
        found[_KEYS[dest]] = str(value.absolute()) if isinstance(value, Path) else value
    if "bundle" in found:
        found["bundle"] = str(Path(found["bundle"]).absolute())
    if "trust" in found:
        found["trust"] = [found["trust"]]
    return found


def run(args: argparse.Namespace) -> int:
    """Runs a daemon, or checks its settings."""
    from narrowcast.head.affinity import run_on
    from narrowcast.head.daemon.config import load_config
    from narrowcast.head.daemon.logs import set_up

    flags = overrides(args)

    def read() -> DaemonConfig:
        return load_config(args.config, flags)

    if args.check:
        return _check(args)
    set_up(quiet=args.quiet)
    try:
        config = read()
        _ = config.state_folder
    except ConfigError as error:  # systemd does not try again
        log.error("%s", error)
        return USAGE
    if config.runtime.cpus is not None:
        run_on(config.runtime.cpus)
    return asyncio.run(_serve(config, read))


def _check(args: argparse.Namespace) -> int:
    from narrowcast.head.daemon.check import check
    from narrowcast.head.daemon.config import load_config

    try:
        found = check(load_config(args.config, overrides(args)), _preferred)
    except ConfigError as error:
        print(error_line(str(error)), file=sys.stderr)
        return USAGE
    for fact in found.facts:
        print(escaped(fact))
    for problem in found.problems:
        print(error_line(problem), file=sys.stderr)
    return USAGE if found.problems else 0


def _preferred() -> Sequence[str]:
    from narrowcast.devices.probe import preferred_backends

    return preferred_backends()


async def _serve(config: DaemonConfig, read: Any) -> int:
    from narrowcast.head.daemon.daemon import Daemon
    from narrowcast.head.daemon.notify import Notifier

    daemon = Daemon(config, read, _preferred, Notifier())
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, daemon.reload)

    def tell(number: signal.Signals, again: bool) -> None:
        if again:
            log.warning("a second %s: ends at once", number.name)
            return
        seconds = daemon.drain_seconds
        log.info("%s: what is under way is finished, within %g s", number.name, seconds)
        end_in_any_case(2 * seconds + 15.0, lambda: log.error("something hangs: ends without it"))

    return await daemon.run(stop_on_signals(tell))
