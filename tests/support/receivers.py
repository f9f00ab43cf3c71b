"""Where sinks deliver to in tests: a real HTTP server, and a real MQTT broker."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from support.waiting import until


class Receiver:
    """A webhook's receiver on this machine.

    Attributes:
        requests: (headers, body) of all posts.
        script: statuses to answer with, one after the other; then 200.

    Where it ``hangs_up``, connections are closed behind each answer without a word, as idle ones are.
    """

    def __init__(self, *statuses: int, headers: dict[str, str] | None = None, tls: ssl.SSLContext | None = None,
                 hangs_up: bool = False):  # fmt: skip
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.script = list(statuses)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append((dict(self.headers), body))
                self.send_response(receiver.script.pop(0) if receiver.script else 200)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()
                self.close_connection = self.close_connection or hangs_up

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def records(self) -> list[dict]:
        """All that were delivered, as often as they were."""
        return [record for _, body in list(self.requests) for record in json.loads(body)["records"]]

    def close(self) -> None:
        """Ends it."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)


@contextlib.contextmanager
def receiving(*statuses: int, **options) -> Iterator[Receiver]:
    """A receiver for the length of the block."""
    receiver = Receiver(*statuses, **options)
    try:
        yield receiver
    finally:
        receiver.close()


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Broker:
    """A real mosquitto on this machine; may be stopped and started again."""

    def __init__(self, folder: Path, *settings: str) -> None:
        program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
        if program is None:
            pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        lines = [f"listener {self.port} 127.0.0.1", *(settings or ["allow_anonymous true"])]
        self._config.write_text("\n".join(lines) + "\n")
        self._program = program
        self.start()

    def start(self) -> None:
        """Starts it, and waits until it listens."""
        self.process = subprocess.Popen([self._program, "-c", str(self._config)], stderr=subprocess.DEVNULL)

        def listens() -> bool:
            assert self.process.poll() is None, "mosquitto has ended"
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        until(listens, "mosquitto listens")

    def stop(self) -> None:
        """Ends it."""
        self.process.terminate()
        self.process.wait(10)


@contextlib.contextmanager
def brokering(folder: Path, *settings: str) -> Iterator[Broker]:
    """A broker for the length of the block."""
    broker = Broker(folder, *settings)
    try:
        yield broker
    finally:
        if broker.process.poll() is None:
            broker.stop()


@contextlib.contextmanager
def subscribed(port: int, topic: str) -> Iterator[list[tuple[str, dict]]]:
    """What a subscriber gets: (topic, record)."""
    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion

    got: list[tuple[str, dict]] = []
    ready = threading.Event()
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.on_connect = lambda c, *rest: c.subscribe(topic, qos=1)
    client.on_subscribe = lambda *rest: ready.set()
    client.on_message = lambda c, data, message: got.append((message.topic, json.loads(message.payload)))
    client.connect("127.0.0.1", port)
    client.loop_start()
    assert ready.wait(20)
    try:
        yield got
    finally:
        client.disconnect()
        client.loop_stop()
