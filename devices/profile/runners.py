"""What does one frame, by each of the ways: on the board alone, by an image that is sent, or split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

from narrowcast.devices.profile.figures import Kind, StageName
from narrowcast.head.client import Client
from narrowcast.head.results import Result
from narrowcast.head.session import HeadSession
from narrowcast.head.socket_bytes import SocketBytes
from narrowcast.head.timing import Exchange
from narrowcast.head.whole import WholeSession
from narrowcast.transport.contract import Image

Array = npt.NDArray[Any]


class WayInfo(NamedTuple):
    """What a way is; see :class:`narrowcast.devices.profile.figures.Way`."""

    id: str
    kind: Kind
    title: str
    link: str | None = None
    precision: str | None = None
    backend: str | None = None
    level: int | None = None
    codec: str | None = None
    quality: int | None = None

    @property
    def name(self) -> str:
        """The id without the link."""
        return self.id.partition("@")[0]


class Sample(NamedTuple):
    """What became of one frame.

    Attributes:
        latency_ms: from handing it over to its answer.
        stages: milliseconds by stage, those that were measured.
        outputs: by name; empty where it failed.
        failed: with which status; None where it did not.
        exchange: with the server.
        up_bytes: of the packet.
        down_bytes: of the answer.
    """

    latency_ms: float
    stages: Mapping[StageName, float]
    outputs: Mapping[str, Array]
    failed: str | None = None
    exchange: Exchange | None = None
    up_bytes: int = 0
    down_bytes: int = 0


class Runner(Protocol):
    """Does frames by one way.

    Attributes:
        info: which.
    """

    info: WayInfo

    def run(self, image: Image) -> Sample:
        """One frame uint8 ``[H, W, 3]`` to its answer."""

    def run_many(self, images: Iterator[Image]) -> Iterator[Sample]:
        """Several in flight, in order; ``stages`` and ``exchange`` are missing."""

    def socket_bytes(self) -> SocketBytes | None:
        """Of its link so far; None where it has none or the system does not tell."""

    def close(self, *, hurried: bool = False) -> None:
        """Ends its link; ``hurried`` does not wait for a network that is stuck."""


class BoardRunner:
    """What needs no link; see :class:`Runner`."""

    info: WayInfo

    def run(self, image: Image) -> Sample:
        """See :class:`Runner`."""
        raise NotImplementedError

    def run_many(self, images: Iterator[Image]) -> Iterator[Sample]:
        """One after the other: a board that computes has nothing to wait for."""
        return map(self.run, images)

    def socket_bytes(self) -> SocketBytes | None:
        """See :class:`Runner`."""
        return None

    def close(self, *, hurried: bool = False) -> None:
        """See :class:`Runner`."""


class LocalRunner(BoardRunner):
    """The uncut network on the board."""

    def __init__(self, whole: WholeSession) -> None:
        choice = whole.choice
        title = f"the whole network on the board ({choice.precision})"
        self.info = WayInfo("local", "local", title, precision=choice.precision, backend=choice.backend)
        self._whole = whole

    def run(self, image: Image) -> Sample:
        """See :class:`Runner`."""
        start = perf_counter()
        found = self._whole.answer(image)
        latency_ms = (perf_counter() - start) * 1000
        return Sample(latency_ms, {"resize": found.resize_ms, "whole": found.whole_ms}, found.outputs)


class ExitRunner(BoardRunner):
    """The head and the bundle's local exit on the board."""

    def __init__(self, session: HeadSession) -> None:
        choice = session.choice
        title = f"the local exit on the board ({choice.precision})"
        self.info = WayInfo("exit", "exit", title, precision=choice.precision, backend=choice.backend)
        self._session, self._level = session, session.levels - 1
        _ = session.exit  # loaded now

    def run(self, image: Image) -> Sample:
        """See :class:`Runner`."""
        start = perf_counter()
        prepared = self._session.contract.prepare(image)
        resized = perf_counter()
        symbols = self._session.symbols(prepared.image, self._level)
        headed = perf_counter()
        outputs = self._session.answer(symbols, self._level)
        end = perf_counter()
        stages: dict[StageName, float] = {
            "resize": (resized - start) * 1000,
            "head": (headed - resized) * 1000,
            "exit": (end - headed) * 1000,
        }
        return Sample((perf_counter() - start) * 1000, stages, outputs)


class RemoteRunner:
    """The edge client, as a program would use it: packets of symbols, or images, to a server; see :class:`Runner`."""

    def __init__(self, info: WayInfo, connect: Callable[[], Client]) -> None:
        self.info = info
        self._client = connect()

    def run(self, image: Image) -> Sample:
        """See :class:`Runner`."""
        start = perf_counter()
        result = self._client.infer(image)
        return _sample(result, (perf_counter() - start) * 1000, start)

    def run_many(self, images: Iterator[Image]) -> Iterator[Sample]:
        """See :class:`Runner`."""
        for result in self._client.stream(images):
            yield _sample(result, result.latency_ms, None)

    def socket_bytes(self) -> SocketBytes | None:
        """See :class:`Runner`."""
        return self._client.socket_bytes()

    def streams(self) -> int:
        """How many were opened."""
        return self._client.counters.streams_opened

    def close(self, *, hurried: bool = False) -> None:
        """See :class:`Runner`."""
        self._client.__exit__(KeyboardInterrupt if hurried else None, None, None)


def _sample(result: Result, latency_ms: float, started: float | None) -> Sample:
    """A result's; ``started`` is when the frame was handed over, by ``time.perf_counter()``, where it was alone."""
    if result.error is not None:
        return Sample(latency_ms, {}, {}, failed=result.status)
    if started is None:
        return Sample(latency_ms, {}, result.outputs)
    times, exchange = result.times, result.exchange
    board = {"resize": times.resize_ms, "head": times.head_ms, "encode": times.encode_ms}
    other = {"wire": times.wire_ms, "queue": times.queue_ms, "decode": times.decode_ms, "tail": times.tail_ms}
    send = None
    if exchange is not None:
        send = (exchange.sent - started) * 1000 - sum(value or 0.0 for value in board.values())
    stages: dict[Any, float | None] = {**board, "send": send, **other}
    return Sample(
        latency_ms, {name: value for name, value in stages.items() if value is not None}, result.outputs, None, exchange,
        result.packet_bytes, result.answer_bytes,
    )  # fmt: skip
