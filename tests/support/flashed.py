"""This machine as a board over a real sshd: what tests of flashing flash."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from pathlib import Path

from PIL import Image

from narrowcast.devices.flash import FlashOptions, Observer, flash
from narrowcast.devices.flash.agent.services import Supervised
from narrowcast.devices.flash.board import layout_of
from narrowcast.devices.targets import DeployPaths
from narrowcast.transport.bundle import SecretKey
from support import bundles, sshd

OTHER = SecretKey(b"another key, that nobody trusts!", "other")


class Watching(Observer):
    """Keeps what it is told."""

    def __init__(self, *, agree: bool = True) -> None:
        self.steps: list[tuple[str, str]] = []
        self.plans, self.notes = [], []
        self.agree = agree

    def step(self, name, state, detail):
        self.steps.append((name, state))

    def note(self, line):
        self.notes.append(line)

    def confirm(self, plan):
        self.plans.append(plan)
        return self.agree


class Board:
    """A folder that is flashed over ssh, and what goes there."""

    def __init__(self, folder: Path, server: sshd.Sshd, tail: str, *, environment: str = sys.prefix) -> None:
        (folder / "frames").mkdir(parents=True)
        for number, frame in enumerate(bundles.random_frames(5)):
            Image.fromarray(frame).save(folder / "frames" / f"{number}.png")
        self.folder, self.ssh, self.tail = folder, server, tail
        self.prefix = folder / "board"
        self.layout = layout_of(str(self.prefix), DeployPaths())
        self.services = Supervised(self.layout)
        self.options = FlashOptions(
            connection=server.connection(), to=tail, trusted=[bundles.trusted_key(), OTHER.public], prefix=str(self.prefix),
            settings={"sources": [{"name": "camera", "uri": str(folder / "frames"), "watch": True}]},
            environment=environment, gate_seconds=60.0,
        )  # fmt: skip

    def flash(
        self,
        release: int = 1,
        *,
        key: SecretKey | None = bundles.KEY,
        observer: Observer | None = None,
        uncut: bool = False,
        **changes,
    ):
        """A flash of a release of the small bundle, with the uncut network in it where ``uncut``."""
        made = bundles.make(release=release)
        path = (bundles.with_whole(made) if uncut else made).write(self.folder / f"tiny-{release}.ncb", key)
        options = dataclasses.replace(self.options, **changes)
        return flash(path, "board", "x86-64", options=options, observer=observer or Watching())

    @property
    def place(self) -> dict:
        """What status, logs and trust want to know."""
        return {"connection": self.options.connection, "prefix": str(self.prefix)}

    def answering(self) -> int | None:
        """The release number of the daemon that runs; None where none does."""
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self.layout.daemon_status.read_bytes())
            return found["model"]["release"] if found["pid"] == self.services.state().pid else None
        return None

    def close(self) -> None:
        """Ends the daemon."""
        self.services.stop()
