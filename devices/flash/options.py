"""What a flash is told: how to get to the board, what to put there, and when to call it healthy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from narrowcast.transport.bundle import PublicKey
from narrowcast.transport.errors import ConfigError

USER = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,31}")
Services = Literal["auto", "systemd", "supervised"]
Gate = Literal["frames", "ready"]


@dataclass(frozen=True)
class Connection:
    """How to get to the board: by the user's own ssh, with ``~/.ssh/config``, agent, jump hosts and known hosts.

    Attributes:
        ssh: the command.
        config: another file than ``~/.ssh/config`` (ssh's ``-F``).
        options: further ones, as ssh's ``-o`` takes them.
        accept_host_key: the fingerprint (``SHA256:...``) that an unknown board may show; empty asks the observer.
        interactive: ssh may ask for passwords and passphrases on the terminal.
        connect_seconds: for the connection to stand.
        python: the board's interpreter (3.10 or later); empty looks for one.
        sudo: None takes it where the paths need it, and never asks for a password.
    """

    ssh: str = "ssh"
    config: Path | None = None
    options: Sequence[str] = ()
    accept_host_key: str = ""
    interactive: bool = False
    connect_seconds: int = 15
    python: str = ""
    sudo: bool | None = None


@dataclass(frozen=True)
class FlashOptions:
    """What is put on a board, and how.

    Attributes:
        connection: to the board.
        to: the tail server or servers that its daemon sends to, ``HOST:PORT[,...]``; empty keeps what the board has.
        source: of its frames, as ``narrowcast stream`` takes it; a folder with ``/`` at its end is watched; empty keeps what
            the board has.
        config: a daemon's configuration (TOML) in place of ``to`` and ``source``; its bundle is set by flash.
        settings: further keys of the configuration, as ``narrowcast stream --config`` takes them.
        tls: the board's folder of ``narrowcast keys issue``; None keeps what the board has.
        allow_unsigned: a bundle without any signature may go out, and the board takes it.
        trusted: keys whose bundles may go out; those of the keys folder if None.
        enrol: a board that trusts nobody yet is told to trust the key that signed this bundle.
        prefix: everything below this folder of the board instead of the target's paths: no root needed.
        services: who runs the daemon: ``systemd``, or ``supervised``: a plain process that flash starts.
        user: whom the daemon runs as, with systemd; made where there is none. None is who it is already, at first
            ``narrowcast``. Without systemd it is who flashes.
        wheels: a folder with all wheels instead of fetching them.
        extras: of narrowcast, for the board, beside what its sources and outputs need.
        environment: a virtual environment that is on the board already, instead of wheels.
        precision: of the head; ``auto`` is measured there; None keeps what the board has, at first ``auto``.
        whole: the board gets the uncut network too: to answer by itself, and to be measured beside the split.
        gate: ``frames``: answered by the server; ``ready``: the daemon says that it is, no frame is waited for.
        gate_frames: answers that count as healthy.
        gate_seconds: within which they must come.
        keep: releases that stay on the board, the running one included.
        allow_downgrade: a lower ``release`` of the same model may go out.
        link_check: with the gate ``frames``, a board that reaches none of its servers is refused before anything is sent.
        allow_target: a bundle compiled for other targets, or a board that is recognised as another kind, is taken.
        dry_run: plan only; nothing is left on the board.
        drill: ``kill STEP STATE`` or ``halt STEP STATE``: the board's own worker (with ``halt`` its guardian too) is killed
            after that line of its journal, to prove that the board recovers; ``stop STEP STATE``: it stays there, until its
            power is taken away.
    """

    connection: Connection = field(default_factory=Connection)
    to: str = ""
    source: str = ""
    config: Path | None = None
    settings: dict[str, object] = field(default_factory=dict)
    tls: Path | None = None
    trusted: Sequence[PublicKey] | None = None
    allow_unsigned: bool = False
    enrol: bool = True
    prefix: str = ""
    services: Services = "auto"
    user: str | None = None
    wheels: Path | None = None
    extras: Sequence[str] | None = None
    environment: str = ""
    precision: Literal["auto", "fp32", "fp16", "int8"] | None = None
    whole: bool = False
    gate: Gate = "frames"
    gate_frames: int = 3
    gate_seconds: float = 120.0
    keep: int = 3
    allow_downgrade: bool = False
    allow_target: bool = False
    link_check: bool = True
    dry_run: bool = False
    drill: str = ""

    def __post_init__(self) -> None:
        if self.user and not USER.fullmatch(self.user):
            raise ConfigError(
                f"--user {self.user!r}: letters, digits, '.', '_' and '-', beginning with a letter or '_'"
            )

    def for_gate(self) -> dict[str, object]:
        """The gate's settings, for the board."""
        return {"kind": self.gate, "frames": self.gate_frames, "seconds": self.gate_seconds}
