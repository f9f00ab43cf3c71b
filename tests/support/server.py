"""A real tail server, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from narrowcast.transport.rpc.channels import Address, parse_address

START_SECONDS = 60.0


class ServerProcess:
    """``narrowcast serve`` on a folder of bundles."""

    def __init__(self, folder: Path, trust: Path, *options: str, listen: str = "127.0.0.1:0") -> None:
        command = [
            sys.executable, "-m", "narrowcast", "serve", "--bundles", str(folder), "--listen", listen, "--json",
            "--trust", str(trust), *options,
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], START_SECONDS)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self.process.kill()
            raise AssertionError(f"the server did not start: {self.process.communicate()[1]}")
        self.started = json.loads(line)
        self.address: Address = parse_address(self.started["address"])

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal."""
        os.kill(self.process.pid, number)

    def end(self) -> tuple[int, str]:
        """SIGTERM; returns the exit code and what it wrote to stderr."""
        self.process.terminate()
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


@contextlib.contextmanager
def serving(folder: Path, trust: Path, *options: str, listen: str = "127.0.0.1:0") -> Iterator[ServerProcess]:
    """A server for the length of the block."""
    server = ServerProcess(folder, trust, *options, listen=listen)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.communicate()
