"""A link of one's choice between a real client and a real server: ``with emulated("lte", to="HOST:PORT") as link: ...``."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Literal, TypeVar

import msgspec

from narrowcast.devices.errors import LinkUnavailableError
from narrowcast.devices.links.link import Link, parse_link
from narrowcast.devices.links.orders import Counts, Job, Order, Started, Verb
from narrowcast.devices.links.relay import UNMODELLED
from narrowcast.transport.rpc.channels import parse_address

How = Literal["auto", "packets", "relay"]
START_SECONDS = 20.0
ANSWER_SECONDS = 10.0
T = TypeVar("T")


class Emulation:
    """A link that is being emulated, by a process of its own. Made by :func:`emulated`.

    Attributes:
        address: what to connect to instead of the server, ``HOST:PORT``.
        how: ``packets`` or ``relay``.
        link: as it is now.
        unmodelled: what of it is not emulated, in words; empty for packets.
        why_relay: why there are no packets, where they were wanted if possible; empty otherwise.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], started: Started, job: Job, link: Link, why_relay: str
    ) -> None:
        self.address = f"{started.host}:{started.port}"
        self.how: Literal["packets", "relay"] = job.how
        self.link = link
        self.why_relay = why_relay
        self._process, self._lock = process, threading.Lock()

    @property
    def unmodelled(self) -> tuple[str, ...]:
        """What of the link is not emulated."""
        return UNMODELLED if self.how == "relay" else ()

    def counts(self) -> Counts:
        """What it has done so far."""
        return self._order("counts")

    def change(self, link: Link | str) -> None:
        """The link is another one from now; connections stay."""
        self.link = link if isinstance(link, Link) else parse_link(link)
        self._order("change")

    def cut(self) -> None:
        """Nothing passes any more, and nobody is told: packets are lost; a relay holds its bytes."""
        self._order("cut")

    def mend(self) -> None:
        """Ends a cut."""
        self._order("mend")

    def reset(self) -> None:
        """Breaks the connections, as a box on the way does that forgets them; new ones can be made."""
        self._order("reset")

    def _order(self, verb: Verb) -> Counts:
        ways = self.link.directions() if verb == "change" else None
        with self._lock:
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(msgspec.json.encode(Order(verb, ways)) + b"\n")
                self._process.stdin.flush()
                return _read(self._process, Counts, ANSWER_SECONDS)
            except (OSError, ValueError) as error:
                raise LinkUnavailableError(f"the emulated link {self.link} is gone: {error}") from error


@contextlib.contextmanager
def emulated(link: Link | str, to: str, *, how: How = "auto", seed: int | None = None) -> Iterator[Emulation]:
    """A link to a server for the length of the block.

    Args:
        link: or the name of a preset, or a link of one's own (:func:`narrowcast.devices.links.parse_link`).
        to: the server, ``HOST:PORT``.
        how: ``packets``, which can be lost (root, Linux); ``relay``, for everybody; ``auto``: packets where possible.
        seed: of loss and jitter; by chance if None.

    Raises:
        LinkSettingsError: no such link.
        AddressError: ``to`` is no address.
        LinkUnavailableError: it cannot be emulated here so; says what is missing.
    """
    link = link if isinstance(link, Link) else parse_link(link)
    process, started, job, why = _start(link, to, how, seed)
    try:
        yield Emulation(process, started, job, link, why)
    finally:
        _end(process)


def _start(link: Link, to: str, how: How, seed: int | None) -> tuple[subprocess.Popen[bytes], Started, Job, str]:
    host, port = parse_address(to)
    why = ""
    for choice in ("packets", "relay"):
        if how not in (choice, "auto"):
            continue
        job = Job("packets" if choice == "packets" else "relay", (host, port), link.directions(), seed)
        command = [sys.executable, "-m", "narrowcast.devices.links.worker", msgspec.json.encode(job).decode()]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603
        try:
            started = _read(process, Started, START_SECONDS)
            if not started.error:
                return process, started, job, why
            why = started.error
        except ValueError as error:
            why = f"its process {error}"
        except BaseException:
            _end(process)
            raise
        _end(process)
    raise LinkUnavailableError(f"{link} cannot be emulated: {why}")


def _read(process: subprocess.Popen[bytes], kind: type[T], seconds: float) -> T:
    """A line of the worker's.

    Raises:
        ValueError: there is none, in a few words.
    """
    assert process.stdout is not None
    file, line, ends = process.stdout.fileno(), b"", time.monotonic() + seconds
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([file], [], [], max(0.0, ends - time.monotonic()))
        if not ready:
            raise ValueError(f"said nothing for {seconds:.0f} s")
        piece = os.read(file, 65_536)
        if not piece:
            raise ValueError("has ended")
        line += piece
    return msgspec.json.decode(line, type=kind)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its standard input closes, upon which it ends by itself; and if it does not, it is ended."""
    with contextlib.suppress(OSError):
        if process.stdin is not None:
            process.stdin.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
