"""What an emulated link's process is told and says: a job on its command line, then orders and answers in lines of JSON."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from typing import Any, Literal, Protocol

import msgspec

from narrowcast.devices.links.link import Direction
from narrowcast.devices.links.shaper import Way, WayCounts

Verb = Literal["change", "cut", "mend", "reset", "counts"]


class Job(msgspec.Struct):
    """What a worker is to do.

    Attributes:
        how: ``relay`` or ``packets``.
        to: host and port of the server.
        ways: up and down.
        seed: of loss and jitter.
    """

    how: Literal["relay", "packets"]
    to: tuple[str, int]
    ways: tuple[Direction, Direction]
    seed: int | None = None


class Order(msgspec.Struct):
    """A line from the parent."""

    verb: Verb
    ways: tuple[Direction, Direction] | None = None


class Counts(msgspec.Struct):
    """What an emulation has done so far.

    Attributes:
        up: from the client to the server.
        down: back.
        connections: that were made through it.
        seconds: since it began, by its own clock.
    """

    up: WayCounts
    down: WayCounts
    connections: int
    seconds: float


class Started(msgspec.Struct):
    """A worker's first line: where it listens, or why it does not."""

    host: str = ""
    port: int = 0
    error: str = ""


class Medium(Protocol):
    """What obeys orders: the relay, or the packets' shaper."""

    up: Way[Any]
    down: Way[Any]
    connections: int

    def reset(self) -> None:
        """Breaks all connections, as a box on the way does that forgets them."""

    def wake(self) -> None:
        """The ways have changed."""


def obey(medium: Medium, line: bytes, began: float) -> None:
    """Does what a line says, and answers."""
    order, now = msgspec.json.decode(line, type=Order), time.monotonic()
    ways = (medium.up, medium.down)
    if order.verb == "change" and order.ways is not None:
        for way, settings in zip(ways, order.ways, strict=True):
            way.change(now, settings)
    elif order.verb == "cut":
        for way in ways:
            way.cut(now)
    elif order.verb == "mend":
        for way in ways:
            way.mend(now)
    elif order.verb == "reset":
        medium.reset()
    medium.wake()
    tell(Counts(medium.up.counts, medium.down.counts, medium.connections, now - began))


def break_off(writer: asyncio.StreamWriter) -> None:
    """Ends a connection so that its other end is told of an error (RST), and not of an end (FIN)."""
    found = writer.get_extra_info("socket")
    if found is not None and found.fileno() >= 0:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def send_at_once(writer: asyncio.StreamWriter) -> None:
    """Has small pieces leave without waiting for the last one's acknowledgement (no Nagle), as gRPC's own sockets do.

    asyncio asks for that itself, but not for connections that were taken from a socket of ``socket.create_server``.
    """
    found = writer.get_extra_info("socket")
    if found is not None:
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def tell(line: msgspec.Struct) -> None:
    """A line to the parent; none where it is gone, which is noticed elsewhere."""
    try:
        os.write(1, msgspec.json.encode(line) + b"\n")
    except OSError:
        return
