"""What a flash will do, before it does it: steps, commands, bytes, and what needs root."""

from __future__ import annotations

from typing import Any

import msgspec

from narrowcast.text import human_bytes

# In order. Those from `environment` on are the board's own: they go on when the link is lost.
STEPS = {
    "connect": "ssh, host key, Python and rights on the board",
    "preflight": "architecture, system, disk, clock, link to the server",
    "upload": "the head's part of the bundle, wheels, configuration; goes on where it stopped",
    "environment": "a virtual environment from the wheels, without any network",
    "verify": "signature, trusted key and hashes, by the board",
    "choose": "TensorRT engine where there is TensorRT; the fastest head whose symbols are right",
    "selftest": "known frames to symbols within the bound; golden symbols to golden bytes",
    "install": "user, unit, configuration, certificate; the daemon checks its configuration",
    "switch": "the link `current` is renamed into place",
    "restart": "the daemon starts from the new release",
    "gate": "real frames are answered by the server, and the daemon does not restart",
    "commit": "the release is confirmed; without that a board goes back by itself, also after a power cut",
    "tidy": "old releases, environments and files are removed",
}


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """One command: where it runs (``here`` or ``board``), and whether as root by ``sudo -n``."""

    text: str
    where: str = "board"
    root: bool = False


class PlannedStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step, in words and commands."""

    name: str
    what: str
    commands: list[Command] = []
    skipped: str = ""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a flash will do.

    Attributes:
        destination: the board, and ``board``: what it calls itself.
        target: kind of board.
        release: the id that the new release gets.
        replaces: the one that runs now; None on a board without any.
        model, number: of the bundle.
        signed_by: key id and name; empty for an unsigned bundle.
        enrols: whether the board will learn to trust that key.
        upload_bytes: that are not on the board yet.
        upload_files: their names and sizes.
        root: whether anything is done as root.
        steps: in order.
        warnings: what is worth a thought before it begins.
    """

    destination: str
    board: str
    target: str
    release: str
    model: str
    number: int
    steps: list[PlannedStep]
    replaces: str | None = None
    signed_by: str = ""
    enrols: bool = False
    upload_bytes: int = 0
    upload_files: list[tuple[str, int]] = []
    root: bool = False
    warnings: list[str] = []

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found

    def lines(self) -> list[str]:
        """For people."""
        found = [
            f"{self.destination} ({self.board}), target {self.target}",
            f"{self.model} release {self.number} as {self.release}"
            + (f", in place of {self.replaces}" if self.replaces else "; nothing was flashed there before"),
            f"signed by {self.signed_by}"
            + ("; the board trusts nobody yet, and will trust this key from now on" if self.enrols else ""),
            f"to send: {human_bytes(self.upload_bytes)} in {len(self.upload_files)} files",
        ]
        for step in self.steps:
            found.append(f"{step.name:<12} {step.skipped or step.what}")
            found += [f"{'':<12} {_mark(command):<6} {command.text}" for command in step.commands]
        found += [f"note: {warning}" for warning in self.warnings]
        if self.root:
            found.append("sudo$ is run as root by `sudo -n`; nothing else is")
        return found


def _mark(command: Command) -> str:
    if command.where == "here":
        return "here$"
    return "sudo$" if command.root else "board$"
