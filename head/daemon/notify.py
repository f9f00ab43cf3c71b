"""What systemd is told: sd_notify(3), which is one datagram."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress


class Notifier:
    """Tells systemd how the service is, where there is a systemd to tell (``NOTIFY_SOCKET``). Never raises, never waits.

    Args:
        environment: with ``NOTIFY_SOCKET`` and, of a unit with ``WatchdogSec``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``.

    Attributes:
        watchdog_seconds: how often the service has to say that it goes on; None where nobody waits for that.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        path = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if path else None
        if self._socket is not None:
            self._socket.setblocking(False)
        usec, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
        mine = self._socket is not None and pid in ("", str(os.getpid()))
        self.watchdog_seconds = int(usec) / 1e6 if mine and usec.isdigit() and int(usec) else None

    def starting(self, status: str) -> None:
        """It takes its time to start, and goes on with it: systemd waits for another minute."""
        self._send("EXTEND_TIMEOUT_USEC=60000000", f"STATUS={status}")

    def ready(self, status: str) -> None:
        """It serves; or it does so again, after :meth:`reloading`."""
        self._send("READY=1", f"STATUS={status}")

    def status(self, line: str) -> None:
        """A line for people, shown by ``systemctl status``."""
        self._send(f"STATUS={line}")

    def reloading(self) -> None:
        """It reads its settings again; :meth:`ready` must follow."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """It has begun to end."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """It goes on."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if self._socket is not None:
            message = "\n".join(" ".join(line.splitlines()) for line in lines)
            with suppress(OSError):
                self._socket.sendto(message.encode("utf-8", "replace"), self._address)

    def close(self) -> None:
        """Says nothing more."""
        if self._socket is not None:
            self._socket.close()
