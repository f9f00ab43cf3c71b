"""Links as data: presets in one TOML file each, beside this one, and links of one's own on the command line."""

from __future__ import annotations

import math
from importlib import resources

import msgspec

from narrowcast.devices.errors import LinkSettingsError
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.structs import Settings, from_mapping, from_toml, nearest
from narrowcast.transport.units import human_rate, parse_rate, parse_time_ms

SUFFIX = ".toml"
# A queue holds at least so many full packets, however slow the link: TCP must be able to fill it.
LEAST_QUEUE_BYTES = 3 * 1500
SHAPE = "UP[/DOWN],DELAY[,JITTER[,LOSS[,QUEUE]]], such as 2mbit/512kbit,40ms,5ms,1%"


class Direction(msgspec.Struct, frozen=True):
    """One way of a link, in numbers.

    Attributes:
        bits_per_second: of IP packets, their headers included.
        delay_ms: from the end of sending to arrival.
        jitter_ms: the delay varies evenly by so much to either side; the order is kept.
        loss: the fraction of packets that do not arrive, each by itself.
        queue_bytes: what may wait to be sent; what comes on top is lost.
    """

    bits_per_second: float
    delay_ms: float
    jitter_ms: float
    loss: float
    queue_bytes: int


class Link(Settings, frozen=True):
    """A link between a board and a server.

    Attributes:
        title: what people call it.
        up: from the board to the server, as ``5mbit``.
        down: back to the board.
        delay: one way, each way, as ``20ms``.
        jitter: the delay varies evenly by so much to either side.
        loss: of IP packets, each by itself, each way, as ``1%``.
        queue: how long what waits to be sent may take: the buffer in front of the link.
        name: what the command line calls it.
        sources: where its figures are from.
        note: what an engineer should know.
    """

    up: str
    down: str
    delay: str = "0ms"
    jitter: str = "0ms"
    loss: str = "0%"
    queue: str = "250ms"
    title: str = ""
    name: str = ""
    sources: list[str] = []
    note: str = ""

    def __post_init__(self) -> None:
        try:
            self.directions()
        except ConfigError as error:
            raise ValueError(str(error)) from error

    @property
    def up_bits_per_second(self) -> float:
        """From the board to the server."""
        return parse_rate(self.up)

    @property
    def down_bits_per_second(self) -> float:
        """Back to the board."""
        return parse_rate(self.down)

    @property
    def delay_ms(self) -> float:
        """One way."""
        return parse_time_ms(self.delay)

    @property
    def rtt_ms(self) -> float:
        """There and back, apart from what bytes take."""
        return 2 * self.delay_ms

    @property
    def jitter_ms(self) -> float:
        """To either side."""
        return parse_time_ms(self.jitter)

    @property
    def loss_fraction(self) -> float:
        """Of packets, each way."""
        return parse_loss(self.loss)

    def directions(self) -> tuple[Direction, Direction]:
        """Up and down, in numbers.

        Raises:
            ConfigError: a rate, time or loss that is none.
        """
        up, down = (self._direction(rate) for rate in (self.up, self.down))
        return up, down

    def _direction(self, rate: str) -> Direction:
        if self.jitter_ms > self.delay_ms:
            raise ConfigError(f"a jitter of {self.jitter} around a delay of {self.delay}: some would arrive too early")
        bits_per_second = parse_rate(rate)
        waiting = bits_per_second / 8 * parse_time_ms(self.queue) / 1000
        return Direction(
            bits_per_second, self.delay_ms, self.jitter_ms, self.loss_fraction, max(LEAST_QUEUE_BYTES, round(waiting))
        )

    def __str__(self) -> str:
        """In words, for reports: ``lte: 12 Mbit/s up, 12 Mbit/s down, 35 ms one way, ...``."""
        parts = [
            f"{human_rate(self.up_bits_per_second)} up, {human_rate(self.down_bits_per_second)} down",
            f"{self.delay_ms:g} ms one way",
        ]
        if self.jitter_ms:
            parts[-1] += f" ± {self.jitter_ms:g}"
        if self.loss_fraction:
            parts.append(f"{100 * self.loss_fraction:g} % of packets lost")
        known = self.name if self.name in link_names() else "a link of its own"
        return f"{known}: {', '.join(parts)}"


def link_names() -> list[str]:
    """All presets' names."""
    return sorted(
        f.name.removesuffix(SUFFIX) for f in resources.files(__package__).iterdir() if f.name.endswith(SUFFIX)
    )


def parse_link(text: str) -> Link:
    """``lte``, the name of a preset; or a link of one's own: ``2mbit/512kbit,40ms,5ms,1%``.

    The latter is rate up and down (one rate serves for both), one-way delay, jitter, loss, and how long the queue in front
    of it may be.

    Raises:
        LinkSettingsError: neither; says what is wrong.
    """
    text = text.strip()
    if "," not in text:
        return load_link(text)
    parts = [part.strip() for part in text.split(",")]
    keys = ("delay", "jitter", "loss", "queue")
    if len(parts) > 1 + len(keys) or not all(parts):
        raise LinkSettingsError(f"the link {text!r}: a link is a preset ({', '.join(link_names())}) or {SHAPE}")
    up, _, down = parts[0].partition("/")
    settings = dict(zip(keys, parts[1:], strict=False), name=text, up=up.strip(), down=down.strip() or up.strip())
    try:
        return from_mapping(Link, settings, f"the link {text!r}")
    except ConfigError as error:
        raise LinkSettingsError(f"{error} (a link is {SHAPE})") from error


def load_link(name: str) -> Link:
    """The preset called ``name``.

    Raises:
        LinkSettingsError: there is none.
    """
    known = link_names()
    if name not in known:
        raise LinkSettingsError(f"no link {name!r}{nearest(name, known)}; a link of your own is {SHAPE}")
    text = resources.files(__package__).joinpath(name + SUFFIX).read_text("utf-8")
    return msgspec.structs.replace(from_toml(Link, text, name + SUFFIX), name=name)


def parse_loss(text: str) -> float:
    """``1%`` or ``0.01`` as a fraction.

    Raises:
        ConfigError: it is none, or all packets.
    """
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        loss = float(number) / (100 if percent else 1)
    except ValueError:
        loss = math.nan
    if not 0 <= loss < 1:
        raise ConfigError(f"a loss of {text!r}; it is a part of the packets, below all of them: 1%, 0.5% or 0.01")
    return loss
