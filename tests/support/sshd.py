"""A real sshd on a loopback port, with keys of its own: this machine as a board."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from narrowcast.devices.flash import Connection
from support.waiting import until

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")


class Sshd:
    """One server.

    Attributes:
        folder: for its files and the client's configuration.
        port: that it listens on.
        fingerprint: of its host key.
        known_hosts: the client's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known_hosts = folder / "known_hosts"
        self.user = getpass.getuser()
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        shutil.copy(folder / "user.pub", folder / "authorized_keys")
        self.fingerprint = self._fingerprint(folder / "host.pub")
        self.port = self._free_port()
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\n"
            f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\nPermitRootLogin yes\n"
            "PidFile none\nMaxStartups 50\nMaxSessions 50\nLogLevel ERROR\n"
            f"SetEnv HOME={folder}\n"  # what this user's own shell does at every login takes longer than the tests
        )
        self.config = folder / "ssh_config"
        self.write_config()
        self.process: subprocess.Popen[bytes] | None = None

    def write_config(self, extra: str = "") -> None:
        """The client's configuration; ``board`` is this server."""
        self.config.write_text(
            f"Host board\n HostName 127.0.0.1\n Port {self.port}\n User {self.user}\n IdentityFile {self.folder}/user\n"
            f" IdentitiesOnly yes\n UserKnownHostsFile {self.known_hosts}\n GlobalKnownHostsFile /dev/null\n{extra}"
        )

    def connection(self, **changes) -> Connection:
        """Settings for this server; its host key is accepted."""
        return Connection(
            config=self.config, **{"accept_host_key": self.fingerprint, "python": sys.executable, **changes}
        )

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        with (self.folder / "sshd.log").open("ab") as log:
            command = [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(self._answers, "sshd answers")

    def stop(self) -> None:
        """Ends the server, and with it all connections to it."""
        if self.process is None:
            return
        children = self._connections()
        self.process.terminate()
        self.process.wait()
        for child in children:
            for number in (signal.SIGTERM, signal.SIGCONT):  # those that are frozen as well
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, number)
        self.process = None

    def freeze(self) -> None:
        """All connections that there are die without a word, on both ends: what they ran goes on, and hears of nothing."""
        for child in self._connections():
            os.kill(child, signal.SIGSTOP)

    def _connections(self) -> list[int]:
        assert self.process is not None
        words = ["pgrep", "-P", str(self.process.pid)]
        return [int(one) for one in subprocess.run(words, capture_output=True, check=False).stdout.split()]

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "sshd.log").read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as link:
            return link.recv(4) == b"SSH-"
        return False

    @staticmethod
    def _fingerprint(path: Path) -> str:
        shown = subprocess.run(["ssh-keygen", "-l", "-f", path], capture_output=True, text=True, check=True).stdout
        return shown.split()[1]

    @staticmethod
    def _free_port() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Sshd]:
    """A server for the length of the block; skips where there is none to start."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("OpenSSH's server or client is not installed (Debian: openssh-server, openssh-client)")
    server = Sshd(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
