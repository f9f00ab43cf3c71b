"""How long an answer takes over a link: locally, by sending the image, and by splitting; and which of them is best.

The model, for one frame on an idle link whose stream is open already (TCP past its slow start)::

    time = board + bytes up / uplink + round trip + server + bytes down / downlink

``board`` and ``server`` are the medians of measured stages, the board's times a factor. Bytes are those on the wire:
payload, this transport's own framing, and headers of TCP/IP for every segment. Resizing the frame, which every way needs, is
in none. Nothing waits in queues: under load a link's and a server's queues come on top, for all ways that use them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from narrowcast.transport.errors import ConfigError
from narrowcast.transport.structs import Settings
from narrowcast.transport.units import human_rate, parse_rate, parse_time_ms

# Around a packet: protobuf's fields, gRPC's prefix (5), HTTP/2's frame header (9), a TLS 1.3 record (22).
MESSAGE_BYTES = 8 + 5 + 9 + 22
# A full segment over Ethernet's 1,500 bytes, with TCP's timestamps: 20 (IPv4) + 32 (TCP) of them are headers.
SEGMENT_BYTES = 1448
SEGMENT_HEADER_BYTES = 52

WayName = Literal["local", "image", "split"]


class LinkSettings(Settings, frozen=True):
    """A link between board and server.

    Attributes:
        uplink: from the board to the server, as ``5mbit``.
        rtt: a round trip of a small packet, as ``20ms``.
        downlink: back to the board; as fast as the uplink where it is missing.
    """

    uplink: str = "5mbit"
    rtt: str = "20ms"
    downlink: str | None = None

    def __post_init__(self) -> None:
        try:
            self.link  # noqa: B018  (checks the units)
        except ConfigError as error:
            raise ValueError(str(error)) from error

    @property
    def link(self) -> Link:
        """The same in numbers."""
        up = parse_rate(self.uplink)
        return Link(up, up if self.downlink is None else parse_rate(self.downlink), parse_time_ms(self.rtt))


class PlanSettings(LinkSettings, frozen=True):
    """``[plan]``: what the planner reckons with; see :class:`LinkSettings` for the link.

    Attributes:
        keep: the part of the teacher's answers that has to stay right, for split and image alike.
        images: how many images it looks at.
        slowdown: how many times as long as here the board takes; 1 on the board itself.
        threads: that it times with, for board and server alike.
        cuts: the cuts to look at; up to 12, outer modules first, where none are named.
        seconds: after these no further cut is begun.
    """

    keep: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.97
    images: Annotated[int, msgspec.Meta(ge=2)] = 96
    slowdown: Annotated[float, msgspec.Meta(gt=0, le=1e6)] = 1.0
    threads: Annotated[int, msgspec.Meta(ge=1)] = 1
    cuts: list[str] = []
    seconds: Annotated[float, msgspec.Meta(gt=0)] = 900.0


class Link(NamedTuple):
    """A link in numbers: bits per second each way, and milliseconds."""

    uplink: float
    downlink: float
    rtt_ms: float

    def up_ms(self, payload_bytes: float) -> float:
        """How long a payload takes to leave the board."""
        return 8e3 * wire_bytes(payload_bytes) / self.uplink

    def down_ms(self, payload_bytes: float) -> float:
        """How long a payload takes to come back."""
        return 8e3 * wire_bytes(payload_bytes) / self.downlink

    def __str__(self) -> str:
        """In words."""
        down = "" if self.downlink == self.uplink else f", {human_rate(self.downlink)} down"
        return f"{human_rate(self.uplink)} up{down}, round trip {self.rtt_ms:g} ms"


def wire_bytes(payload_bytes: float) -> float:
    """What a payload is on the wire: framing, and headers for every segment of it."""
    framed = payload_bytes + MESSAGE_BYTES
    return framed + SEGMENT_HEADER_BYTES * math.ceil(framed / SEGMENT_BYTES)


class Way(NamedTuple):
    """One way of getting an answer, for one frame.

    Attributes:
        name: ``local``, ``image`` or ``split``.
        detail: the cut, or the image codec with its quality.
        board_ms: on the board.
        up_bytes: payload from the board, the packet's own header included; 0 locally.
        link_ms: on the link, the answer's way back and the round trip included; 0 locally.
        server_ms: on the server; 0 locally.
    """

    name: WayName
    detail: str
    board_ms: float
    up_bytes: float
    link_ms: float
    server_ms: float

    @property
    def total_ms(self) -> float:
        """From the frame to its answer."""
        return self.board_ms + self.link_ms + self.server_ms

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "way": self.name,
            "detail": self.detail,
            "board_ms": round(self.board_ms, 3),
            "up_bytes": round(self.up_bytes, 1),
            "link_ms": round(self.link_ms, 3),
            "server_ms": round(self.server_ms, 3),
            "total_ms": round(self.total_ms, 3),
        }


def over_link(
    link: Link, name: WayName, detail: str, *, board_ms: float, up_bytes: float, server_ms: float, answer_bytes: float
) -> Way:
    """A way that sends ``up_bytes`` and gets an answer of ``answer_bytes`` back."""
    link_ms = link.up_ms(up_bytes) + link.rtt_ms + link.down_ms(answer_bytes)
    return Way(name, detail, board_ms, up_bytes, link_ms, server_ms)


class Decision(NamedTuple):
    """Which way is best.

    Attributes:
        best: the fastest; None where no way could be measured.
        ways: all of them, fastest first.
        why: in a sentence.
    """

    best: Way | None
    ways: Sequence[Way]
    why: str

    @property
    def split(self) -> bool:
        """Whether splitting is the answer."""
        return self.best is not None and self.best.name == "split"

    @property
    def best_split(self) -> Way | None:
        """The fastest of the splits, whether or not splitting pays."""
        return next((way for way in self.ways if way.name == "split"), None)


def decide(ways: Sequence[Way]) -> Decision:
    """The fastest way; of equals, the first in the order local, image, split: what is simpler."""
    order = ("local", "image", "split")
    ranked = sorted(ways, key=lambda way: (way.total_ms, order.index(way.name)))
    if not ranked:
        return Decision(None, ranked, "Nothing could be measured: no way to choose from.")
    best = ranked[0]
    split = next((way for way in ranked if way.name == "split"), None)
    other = next((way for way in ranked if way.name != "split"), None)
    if best.name == "split":
        gain = "" if other is None else f": {_ms(other.total_ms - best.total_ms)} before {_words(other)}"
        return Decision(best, ranked, f"Split at {best.detail}{gain}.")
    if split is None:
        why = "no split can be compared: a cut's bytes and times are missing (bytes want images)"
        return Decision(best, ranked, f"Do not split: {_words(best)} takes {_ms(best.total_ms)}; {why}.")
    return Decision(best, ranked, f"Do not split: {_words(best)} takes {_ms(best.total_ms)}; {_reason(best, split)}")


def _reason(best: Way, split: Way) -> str:
    """What the best split is made of, and what it is short of."""
    parts = (
        f"{_ms(split.board_ms)} on the board, {_ms(split.link_ms)} on the link, {_ms(split.server_ms)} on the server"
    )
    if best.name == "local" and split.link_ms >= best.total_ms:
        short = "; its link alone takes longer than the whole network here"
    elif best.name == "image" and split.up_bytes >= best.up_bytes:
        short = "; it sends no fewer bytes than the image"
    else:
        short = ""
    return f"the best split ({split.detail}) takes {_ms(split.total_ms)}, {parts}{short}."


def _words(way: Way) -> str:
    return {"local": "running locally", "image": f"sending the image ({way.detail})", "split": "splitting"}[way.name]


def _ms(value: float) -> str:
    return f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"
