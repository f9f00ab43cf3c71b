"""A real daemon in a process of its own, with a socket that plays systemd."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from support import bundles
from support.waiting import until

SIDE = bundles.random_frames(1)[0].shape
RAW = f"{SIDE[1]}x{SIDE[0]}"


class DaemonProcess:
    """``narrowcast stream --config`` in a folder; what it tells systemd is written down.

    Attributes:
        folder: has its ``edge.toml``, ``state``, ``run`` and the socket.
        told: datagrams to systemd so far.
        log: the file with its stderr.
    """

    def __init__(
        self, folder: Path, config: str, *options: str, program: Sequence[str] = (), watchdog: float = 0
    ) -> None:
        self.folder, self.told = folder, []
        folder.mkdir(exist_ok=True)
        self.config = folder / "edge.toml"
        self.config.write_text(config)
        self._systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        (folder / "notify").unlink(missing_ok=True)
        self._systemd.bind(str(folder / "notify"))
        threading.Thread(target=self._listen, daemon=True).start()
        self.log = folder / "log"
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(folder / "notify"),
            "STATE_DIRECTORY": str(folder / "state"),
            "RUNTIME_DIRECTORY": str(folder / "run"),
        }
        if watchdog:
            environment["WATCHDOG_USEC"] = str(round(watchdog * 1e6))
        command = [sys.executable, *(program or ["-m", "narrowcast"]), "stream", "--config", str(self.config), *options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment
            )

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while message := self._systemd.recv(4096):
                self.told.append(message.decode())

    def count(self, word: str) -> int:
        """How often systemd was told that."""
        return sum(word in message.split("\n") for message in list(self.told))

    def wait_ready(self, times: int = 1) -> None:
        """Until it has said so."""

        def ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return self.count("READY=1") >= times

        until(ready, "the daemon is ready", 60)

    def status(self) -> dict:
        """Its ``status.json``."""
        return json.loads((self.folder / "run" / "status.json").read_text())

    def held(self, what: str) -> int:
        """How many of its ``fd`` (open files) or ``task`` (threads) there are."""
        return len(list(Path(f"/proc/{self.process.pid}/{what}").iterdir()))

    def reload(self) -> None:
        """SIGHUP, and waits for the end of it."""
        before = self.count("READY=1")
        self.signal(signal.SIGHUP)
        self.wait_ready(before + 1)

    def signal(self, number: int) -> None:
        """Sends one."""
        os.kill(self.process.pid, number)

    def end(self) -> int:
        """SIGTERM; its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """For its own end."""
        self.process.communicate(timeout=60)
        return self.process.returncode

    def close(self) -> None:
        """In any case."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        self._systemd.close()


@contextlib.contextmanager
def daemon(folder: Path, config: str, *options: str, **more) -> Iterator[DaemonProcess]:
    """A daemon for the length of the block; ready, at its beginning."""
    started = DaemonProcess(folder, config, *options, **more)
    try:
        started.wait_ready()
        yield started
    finally:
        started.close()


def lines(path: Path) -> list[dict]:
    """Whole lines of a file of JSON lines."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
