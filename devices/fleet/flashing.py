"""Real boards of a fleet: what the inventory says of one becomes options of :mod:`narrowcast.devices.flash`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from narrowcast.devices.flash import (
    BoardStatus,
    Connection,
    FlashOptions,
    FlashReport,
    Observer,
    flash,
    rollback,
    status,
)
from narrowcast.devices.flash.agent.files import sha256_of
from narrowcast.devices.flash.given import given_in, given_of_connection
from narrowcast.devices.flash.plan import Plan
from narrowcast.devices.fleet.flasher import Done, Say
from narrowcast.devices.fleet.inventory import Board
from narrowcast.devices.targets import SUFFIX
from narrowcast.transport.bundle import Bundle

# Settings of a board that options are made of, by the same name and as they are.
_ALIKE = (
    "to", "source", "settings", "prefix", "services", "user", "extras", "environment", "precision", "whole", "gate",
    "gate_frames", "gate_seconds",
)  # fmt: skip
_FILES = ("config", "tls", "wheels")


def options_of(board: Board, given: FlashOptions, *, interactive: bool = False) -> FlashOptions:
    """The options for one board: what was given to all goes first, then the inventory, then the defaults.

    Args:
        board: of the inventory.
        given: from flags; of plain ``FlashOptions`` what is as in ``FlashOptions()`` counts as not given.
        interactive: ssh may ask on the terminal, where ``given`` lets it; several threads cannot ask one person.
    """
    said = board.settings
    found: dict[str, Any] = {name: value for name in _ALIKE if (value := getattr(said, name)) not in (None, {})}
    found |= {name: Path(value) for name in _FILES if (value := getattr(said, name)) is not None}
    connection: dict[str, Any] = {
        "config": Path(said.ssh_config) if said.ssh_config else None,
        "options": said.ssh_options or None,
        "accept_host_key": said.accept_host_key,
        "python": said.python,
        "sudo": said.sudo,
    }
    own = Connection(**{name: value for name, value in connection.items() if value is not None})
    flags = given_in(given)
    if "config" in flags:  # it says where to send what, in place of all that the inventory says of it
        found = {name: value for name, value in found.items() if name not in ("to", "source")}
    elif {"to", "source"} & flags.keys():
        found.pop("config", None)
    for one, other in (("wheels", "environment"), ("environment", "wheels")):  # wheels are for making one
        if one in flags:
            found.pop(other, None)
    own = replace(own, **given_of_connection(given.connection))
    own = own if interactive else replace(own, interactive=False)
    return FlashOptions(**{**found, **flags, "connection": own})


class _Telling(Observer):
    """Tells a rollout of the steps. An unknown host key is refused: several threads cannot ask one person."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def step(self, name: str, state: str, detail: str) -> None:
        if state == "begin":
            self._say(name, detail)

    def confirm(self, plan: Plan) -> bool:
        return True  # the whole rollout was agreed to


@dataclass(frozen=True)
class BundleFlasher:
    """Puts one bundle on boards.

    Attributes:
        bundle: open and verified.
        options: given to all boards.
    """

    bundle: Bundle
    options: FlashOptions

    def act(self, board: Board, say: Say) -> Done:
        """See :class:`narrowcast.devices.fleet.flasher.Flasher`."""
        report = flash(
            self.bundle,
            board.destination,
            board.target,
            options=options_of(board, self.options),
            observer=_Telling(say),
        )
        return done_of(report)

    def wants(self, board: Board) -> str:
        """See :class:`narrowcast.devices.fleet.flasher.Flasher`."""
        options = options_of(board, self.options)
        files = [options.config] if options.config else []
        files += sorted(options.tls.glob("*")) if options.tls else []
        files += sorted(options.wheels.glob("*.whl")) if options.wheels else []
        own_target = Path(board.target)  # no file, where it is one of ours
        files += [own_target] if own_target.suffix == SUFFIX else []
        words = [self.bundle.path.name, _digest(self.bundle.path), board.target, repr(options)]
        words += [f"{file} {_digest(file)}" for file in files if file.is_file()]
        return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]

    def still(self, board: Board, release: str) -> str:
        """See :class:`narrowcast.devices.fleet.flasher.Flasher`."""
        return why_not_running(board_status(board, self.options), release)


@dataclass(frozen=True)
class BackRoller:
    """Takes boards back to their release before; see :class:`narrowcast.devices.fleet.flasher.Flasher`.

    Attributes:
        options: given to all boards.
        afresh: those too that went back already, which takes them to what they left.
    """

    options: FlashOptions
    afresh: bool = False

    def act(self, board: Board, say: Say) -> Done:
        """Back, through the same gate. What went back before, and was not flashed since, is where it should be."""
        options = options_of(board, self.options)
        report = rollback(
            board.destination, options=options, target=board.target, once=not self.afresh, observer=_Telling(say)
        )
        done = done_of(report)
        return replace(done, detail="; ".join(report.notes)) if report.outcome == "unchanged" else done

    def wants(self, board: Board) -> str:
        """The same for all: the boards themselves know whether they went back."""
        return "back"

    def still(self, board: Board, release: str) -> str:
        """As for a flash."""
        return why_not_running(board_status(board, self.options), release)


def _digest(file: Path) -> str:
    """A file's SHA-256; of one that all boards get it is made once."""
    seen = file.stat()
    return _digest_of(file, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)


@lru_cache(maxsize=256)
def _digest_of(file: Path, *_seen: int) -> str:
    return sha256_of(file)


def done_of(report: FlashReport) -> Done:
    """A report as a rollout keeps it."""
    if report.outcome == "planned":
        plan = report.plan or {}
        return Done("planned", report.release, f"{plan.get('upload_bytes', 0) / 1e6:.1f} MB to send")
    measured = (
        f", {report.precision} {report.head_ms[report.precision]:.1f} ms" if report.precision in report.head_ms else ""
    )
    if report.outcome == "unchanged":
        return Done("unchanged", report.release, "it ran already")
    return Done("done", report.release, f"{report.uploaded_bytes / 1e6:.1f} MB sent{measured}")


def board_status(board: Board, given: FlashOptions) -> BoardStatus:
    """What runs on one; raises ``FlashError`` where it cannot be asked."""
    options = options_of(board, given)
    return status(
        board.destination,
        connection=options.connection,
        target=board.target,
        prefix=options.prefix,
        services=options.services,
    )


def why_not_running(found: BoardStatus, release: str) -> str:
    """Whether a board runs a release; why not, or nothing where it does."""
    runs = (found.current or {}).get("id")
    if runs != release:
        return f"it runs {runs or 'nothing'}"
    if not found.service.get("active"):
        return "its daemon does not run"
    if found.daemon is not None and not found.daemon.get("ready"):
        return "its daemon is not ready"
    return ""
