"""Keeps the daemon running where there is no systemd: starts it from ``current``, and again when it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from narrowcast.devices.flash.agent.files import write_json
from narrowcast.devices.flash.agent.layout import Layout
from narrowcast.devices.flash.agent.services import SUPERVISOR

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
STEADY_SECONDS = 60.0
END_SECONDS = 10.0
# Of what the daemon writes: nobody else shortens it. As much again lies beside it.
LOG_BYTES = 16 * 1024 * 1024


class _Supervisor:
    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.restarts = 0
        self.why = ""
        self.child: subprocess.Popen[bytes] | None = None
        self.ending = False

    def tell(self) -> None:
        """For who asks how the daemon is."""
        child = self.child.pid if self.child is not None and self.child.poll() is None else None
        entry: dict[str, Any] = {"pid": os.getpid(), "child": child, "restarts": self.restarts, "why": self.why}
        with suppress(OSError):  # a full disk is no reason to end a daemon that runs
            write_json(Path(self.layout.run) / "supervisor.json", entry)

    def end(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM goes on to the daemon."""
        self.ending = True
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()

    def run(self) -> None:
        """Until SIGTERM."""
        pause = FIRST_PAUSE
        while not self.ending:
            started = time.monotonic()
            self.child = subprocess.Popen(command(self.layout), env=environment(self.layout))
            self.tell()
            code = self._wait()
            if self.ending:
                break
            self.why = f"the daemon ended with {code}"
            print(f"{SUPERVISOR}{self.why}; it is started again in {pause:.1f} s", flush=True)
            self.restarts += 1
            self.tell()
            self._rest(pause)
            steady = time.monotonic() - started > STEADY_SECONDS
            pause = FIRST_PAUSE if steady else min(2 * pause, LONGEST_PAUSE)
        (Path(self.layout.run) / "supervisor.json").unlink(missing_ok=True)

    def _wait(self) -> int:
        assert self.child is not None
        while not self.ending:
            try:
                return self.child.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                self._shorten()
        try:
            return self.child.wait(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            self.child.kill()
            return self.child.wait()

    def _shorten(self) -> None:
        """The daemon's output begins anew where it has grown long: it is open for appending, so it can be cut under it."""
        log = Path(self.layout.run) / "edge.log"
        with suppress(OSError):
            if log.stat().st_size <= LOG_BYTES:
                return
            with suppress(OSError):  # on a full disk there is no room for what was before
                shutil.copyfile(log, log.with_name("edge.log.1"))
            os.truncate(log, 0)

    def _rest(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.ending and time.monotonic() < end:
            time.sleep(0.05)


def command(layout: Layout) -> list[str]:
    """As the systemd unit starts it."""
    return [f"{layout.current}/venv/bin/narrowcast", "stream", "--config", str(layout.edge)]


def environment(layout: Layout) -> dict[str, str]:
    """As the systemd unit gives it."""
    return {
        **os.environ,
        "RUNTIME_DIRECTORY": layout.run,
        "STATE_DIRECTORY": layout.state,
        "NARROWCAST_CACHE": layout.cache,
        "PYTHONUNBUFFERED": "1",
    }


def supervise(layout_json: str) -> None:
    """Runs the supervisor in this process."""
    layout = Layout(**json.loads(layout_json))
    Path(layout.run).mkdir(parents=True, exist_ok=True)
    Path(layout.state).mkdir(parents=True, exist_ok=True)
    supervisor = _Supervisor(layout)
    signal.signal(signal.SIGTERM, supervisor.end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        supervisor.run()
    except OSError as error:
        sys.exit(f"supervisor: {error}")
