"""What the verbs that reach boards share: options of connection and flash, and a terminal that is told of every step."""

from __future__ import annotations

import argparse
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from narrowcast.cli.options import PRECISIONS, at_least, seconds, trusted
from narrowcast.cli.show import Task, TerminalProgress, stderr
from narrowcast.devices.flash.given import GivenOptions
from narrowcast.devices.flash.observer import Observer
from narrowcast.devices.flash.options import Connection
from narrowcast.devices.flash.report import BoardStatus, FlashReport
from narrowcast.text import human_bytes
from narrowcast.transport.errors import ConfigError

if TYPE_CHECKING:
    from narrowcast.devices.flash.plan import Plan


def add_connection(parser: argparse.ArgumentParser) -> None:
    """How to get to a board."""
    group = parser.add_argument_group("connection (your own ssh: ~/.ssh/config, agent, ProxyJump, known hosts)")
    group.add_argument(
        "--accept-host-key", default="", metavar="SHA256:...", help="the fingerprint that an unknown board may show"
    )
    group.add_argument("--ssh", default="ssh", metavar="PROGRAM", help="OpenSSH's client (default: ssh)")
    group.add_argument("--ssh-config", type=Path, metavar="FILE", help="in place of ~/.ssh/config")
    group.add_argument("--ssh-option", action="append", default=[], metavar="NAME=VALUE", help="as ssh -o takes it")
    group.add_argument("--python", default="", metavar="PATH", help="the board's Python, 3.10 or later")
    group.add_argument("--no-sudo", action="store_true", help="nothing is done as root")


def add_place(parser: argparse.ArgumentParser, *, services: bool = True) -> None:
    """Where things lie on a board, and who runs the daemon, where that counts."""
    group = parser.add_argument_group("on the board")
    group.add_argument("--target", metavar="T", help="kind of board, or a file of your own (default: recognised)")
    group.add_argument("--prefix", default="", metavar="DIR", help="everything below this folder: no root needed")
    if not services:
        return
    group.add_argument(
        "--services", choices=["auto", "systemd", "supervised"],
        help="who keeps the daemon running (default: systemd where it is, and root is at hand)",
    )  # fmt: skip


def add_gate(parser: argparse.ArgumentParser) -> None:
    """When a release is healthy. None stands for what is not given, so that a flag can take an inventory's word back."""
    group = parser.add_argument_group("health gate")
    group.add_argument(
        "--gate", choices=["frames", "ready"],
        help="frames: answered by the server; ready: the daemon says so (default: frames)",
    )  # fmt: skip
    group.add_argument("--gate-frames", type=at_least(1), metavar="N", help="answers wanted (default: 3)")
    group.add_argument("--gate-seconds", type=seconds, metavar="S", help="within (default: 120)")


def add_contents(parser: argparse.ArgumentParser) -> None:
    """What is put on a board."""
    group = parser.add_argument_group("what the board gets; what is left out stays as it is there")
    group.add_argument("--to", default="", metavar="HOST:PORT[,...]", help="the tail server of its frames, or several")
    group.add_argument("--source", default="", metavar="SOURCE", help="of its frames; DIR/ is watched")
    group.add_argument("--config", type=Path, metavar="EDGE.toml", help="the daemon's settings (docs/daemon.md)")
    group.add_argument("--tls", type=Path, metavar="DIR", help="its certificate: of narrowcast keys issue BOARD")
    group.add_argument("--precision", choices=["auto", *PRECISIONS], help="of the head (auto: measured; at first auto)")
    group.add_argument(
        "--whole", action="store_true", help="the uncut network too: to answer without a server, to measure beside it"
    )
    group.add_argument(
        "--user",
        metavar="NAME",
        help="whom the daemon runs as, with systemd (default: who it is already, at first narrowcast)",
    )
    group.add_argument("--wheels", type=Path, metavar="DIR", help="all wheels of the board, instead of fetching them")
    group.add_argument(
        "--extra",
        action="append",
        metavar="NAME",
        help="of narrowcast, for the board, beside what its sources and outputs need",
    )
    group.add_argument(
        "--environment", default="", metavar="DIR", help="a virtual environment that is on the board already"
    )
    group.add_argument("--keep", type=at_least(2), metavar="N", help="releases that stay there (default: 3)")
    group = parser.add_argument_group("what is refused unless told")
    group.add_argument(
        "--allow-downgrade", action="store_true", help="an older release of the model than the board ran"
    )
    group.add_argument("--allow-target", action="store_true", help="a bundle, or a board, of another kind")
    group.add_argument("--no-link-check", action="store_true", help="although the board does not reach its server now")
    group.add_argument("--no-enrol", action="store_true", help="a board that trusts nobody yet does not learn this key")


def connection_of(args: argparse.Namespace) -> Connection:
    """The options of :func:`add_connection`."""
    return Connection(
        ssh=args.ssh, config=args.ssh_config, options=args.ssh_option, accept_host_key=args.accept_host_key,
        interactive=sys.stdin.isatty(), python=args.python, sudo=False if args.no_sudo else None,
    )  # fmt: skip


def options_of(args: argparse.Namespace) -> GivenOptions:
    """All options of a flash; those that a verb has not, or that were not given, are as they are by default.

    Raises:
        ConfigError: one of them would do nothing beside another.
    """
    given = vars(args)
    if given.get("wheels") and given.get("environment"):
        raise ConfigError(
            f"--wheels {given['wheels']} makes an environment, --environment {given['environment']} is there already: "
            "one of them"
        )
    names = (
        "to", "source", "config", "tls", "prefix", "services", "user", "wheels", "environment", "precision", "whole", "gate",
        "gate_frames", "gate_seconds", "keep", "allow_downgrade", "allow_target", "allow_unsigned", "dry_run",
    )  # fmt: skip
    settings: dict[str, Any] = {name: given[name] for name in names if given.get(name) not in (None, "", False)}
    said = frozenset(settings)
    if "trust" in given:
        settings["trusted"] = trusted(args)
    return GivenOptions(
        connection=connection_of(args), extras=given.get("extra"), enrol=not given.get("no_enrol", False),
        link_check=not given.get("no_link_check", False), said=said, **settings,
    )  # fmt: skip


class TerminalObserver(Observer):
    """Steps as lines, files as bars, questions where there is a terminal.

    Args:
        progress: where to.
        yes: the plan is agreed to without a question.
    """

    def __init__(self, progress: TerminalProgress, *, yes: bool) -> None:
        self._progress = progress
        self._yes = yes
        self._bar: AbstractContextManager[Task] | None = None
        self._task: Task | None = None
        self._file, self._done = "", 0

    def step(self, name: str, state: str, detail: str) -> None:
        """See :class:`Observer`."""
        if state != "begin":
            self._close()
            self._progress.note(f"{name:<12} {detail if state == 'done' else f'{state}: {detail}'}")

    def progress(self, name: str, done_bytes: int, total_bytes: int) -> None:
        """See :class:`Observer`."""
        if name != self._file:
            self._close()
            self._file, self._done = name, 0
            self._bar = self._progress.task(f"{name} ({human_bytes(total_bytes)})", total_bytes, "bytes")
            self._task = self._bar.__enter__()
        if self._task is not None:
            self._task.advance(done_bytes - self._done)
        self._done = done_bytes
        if done_bytes >= total_bytes:
            self._close()

    def note(self, line: str) -> None:
        """See :class:`Observer`."""
        self._close()
        self._progress.note(line)

    def confirm(self, plan: Plan) -> bool:
        """Shows the plan, and asks."""
        for line in plan.lines():
            self._progress.note(line)
        return self._yes or asked("Carry this out?")

    def accept_host(self, host: str, kind: str, fingerprint: str) -> bool:
        """Shows the fingerprint, and asks; never agreed to by ``--yes``."""
        if not sys.stdin.isatty():
            return False
        stderr().print(f"The host key of {host} is not known: {kind} {fingerprint}", soft_wrap=True)
        stderr().print("The board itself says it by: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub", soft_wrap=True)
        return asked("Is it the same?")

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
        self._bar, self._task, self._file = None, None, ""


def asked(question: str) -> bool:
    """A question on the terminal; whether the answer was yes."""
    stderr().print(f"{question} [y/N] ", end="")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def report_line(report: FlashReport) -> str:
    """What a flash came to, in a line."""
    what = {"committed": "runs", "unchanged": "ran already; nothing was done", "planned": "was planned only"}
    word = what.get(report.outcome, report.outcome)
    sent = f", {human_bytes(report.uploaded_bytes)} sent" if report.uploaded_bytes else ""
    head = f", head in {report.precision} on {report.backend}" if report.precision else ""
    return f"{report.destination}: {report.release} {word}{sent}{head}"


def status_rows(status: BoardStatus) -> list[list[str]]:
    """What a board says, for a table of two columns."""
    current, daemon, service = status.current or {}, status.daemon or {}, status.service
    ledger, head = daemon.get("ledger") or {}, current.get("head") or {}
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted((ledger.get("dropped") or {}).items()))
    rows = [
        ["board", f"{status.facts.get('model') or status.facts.get('hostname')}, {status.facts.get('os')}"],
        ["runs", f"{current.get('id')}" if current else "nothing was flashed yet"],
        ["signed by", str(current.get("signed_by") or "nobody") if current else "-"],
        ["head", str(head.get("words") or "-")],
        ["rollback to", status.previous or "-"],
        ["unconfirmed", str((status.pending or {}).get("release") or "-")],
        ["service", _service(service)],
        ["server", str(daemon.get("server") or "none") if daemon else "-"],
        [
            "frames",
            f"{ledger.get('answered', 0)} of {ledger.get('captured', 0)} answered, dropped: {dropped or 'none'}"
            if daemon
            else "-",
        ],
        ["trusts", ", ".join(f"{key['name']} ({key['id']})" for key in status.trusted) or "nobody yet"],
        ["last flash", _last(status.last)],
        ["free", human_bytes(status.facts.get("free_bytes"))],
    ]
    if status.flashing:
        rows.append(["flashed by", status.flashing])
    return rows


def _service(service: dict[str, Any]) -> str:
    state = f"runs, process {service.get('pid')}" if service.get("active") else "does not run"
    return f"{state}, {service.get('restarts', 0)} restarts, by {service.get('manager')}"


def _last(last: dict[str, Any] | None) -> str:
    if last is None:
        return "-"
    return f"{last.get('release')} {last.get('outcome')}" + (f": {last['reason']}" if last.get("reason") else "")
