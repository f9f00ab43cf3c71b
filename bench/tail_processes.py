"""The processes that ``bench/tail.py`` measures: started, watched and ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple


class Server(NamedTuple):
    """A server's process."""

    process: subprocess.Popen[str]
    port: int

    @property
    def memory_bytes(self) -> int:
        """Resident now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE")

    @property
    def cpu_seconds(self) -> float:
        """Used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def sample(self) -> None:
        """From now on, it notes what its threads are at (started with ``--sample``)."""
        self.process.send_signal(signal.SIGUSR1)

    def sampled(self) -> dict[str, Any]:
        """Ends it; what it noted."""
        assert self.process.stdout is not None
        self.process.send_signal(signal.SIGTERM)
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        self.process.wait(30)
        return found


@contextmanager
def server(kind: str, *options: str) -> Iterator[Server]:
    """One of ``bench/tail_servers.py``."""
    command = [sys.executable, str(Path(__file__).with_name("tail_servers.py")), kind, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the server did not start: {' '.join(command)}")
        yield Server(process, json.loads(line)["port"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@contextmanager
def ray_server(bundles: Path, replicas: int, threads: int) -> Iterator[int]:
    """Ray Serve behind HAProxy, in a cluster of its own; gives its port."""
    with tempfile.TemporaryDirectory(
        prefix="nc-", ignore_cleanup_errors=True
    ) as folder:  # its sockets have short names
        arguments = [str(bundles.resolve()), folder, str(_free_port()), str(_free_port()), str(replicas), str(threads)]
        environment = {
            **os.environ,
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_enable_worker_prestart": "0",
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
        }
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("tail_ray.py")), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for line in process.stdout:  # Ray prints other things as well
                if line.startswith('{"port"'):
                    break
            else:
                raise SystemExit("Ray Serve did not start; see above")
            yield json.loads(line)["port"]
        finally:
            process.stdin.close()  # tells it to end
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
