"""What each client may: rate, priority, models, streams."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from narrowcast.tail.frame import Priority
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.pki.names import NAME_RULE, is_name
from narrowcast.transport.structs import Settings, from_toml

LONGEST_WAIT_MS = 2**32 - 1  # what a result can say
PRIORITIES = {priority.name.lower(): priority for priority in Priority}


class Limits(Settings, frozen=True):
    """What one client may. What is not set is not limited.

    Attributes:
        rate: frames per second, in the long run; one second's worth may come at once.
        mbit: million bits per second of packets, likewise.
        streams: open at once, calls included.
        priority: the highest that it gets: ``background``, ``normal`` or ``urgent``.
        models: those that it may use.
    """

    rate: float | None = None
    mbit: float | None = None
    streams: int | None = None
    priority: str | None = None
    models: list[str] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be; msgspec names the place."""
        for name in ("rate", "mbit"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} = {value}: it is more than 0; to shut a client out, revoke it")
        if self.streams is not None and self.streams < 1:
            raise ValueError(f"streams = {self.streams}: it is 1 or more")
        if self.priority is not None and self.priority not in PRIORITIES:
            raise ValueError(f"priority = {self.priority!r}: it is one of {', '.join(PRIORITIES)}")

    def over(self, default: Limits) -> Limits:
        """These, and the default's where these say nothing."""
        given = {name: getattr(self, name) for name in self.__struct_fields__}
        return msgspec.structs.replace(default, **{name: value for name, value in given.items() if value is not None})


class ClientLimits(Settings, frozen=True):
    """A file of limits (TOML): ``[default]``, and ``[clients.NAME]`` for those that are treated otherwise.

    Attributes:
        default: for whoever is not named.
        clients: by name, with what the default says where they say nothing (:func:`read_limits` sees to that).
        only_listed: serve nobody else.
    """

    default: Limits = Limits()
    clients: dict[str, Limits] = {}
    only_listed: bool = False

    def of(self, client: str) -> Limits:
        """A client's."""
        return self.clients.get(client, self.default)


def read_limits(path: Path, default: Limits) -> ClientLimits:
    """The limits in a file.

    Args:
        path: TOML, see :class:`ClientLimits`.
        default: from the command line; goes where the file's ``[default]`` says nothing.

    Raises:
        ConfigError: no file, no TOML, an unknown key, or a value that cannot be.
    """
    try:
        found = from_toml(ClientLimits, path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    for name in found.clients:
        if not is_name(name) and ":" not in name:  # an IPv6 address, where there are no other names
            raise ConfigError(f"{path}: [clients.{name[:80]}] is no client's name: {NAME_RULE}")
    default = found.default.over(default)
    clients = {name: limits.over(default) for name, limits in found.clients.items()}
    return msgspec.structs.replace(found, default=default, clients=clients)


class Bucket:
    """A token bucket: ``rate`` a second, filled with one second's worth (one at least)."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._clock = clock
        self._room = max(1.0, rate)
        self._level = self._room
        self._at = clock()

    def wait_ms(self, amount: float) -> int:
        """0 if ``amount`` may be taken now, else milliseconds until it may.

        What is larger than the bucket may be taken from a full one, and is owed: a large packet, or a request of many
        frames, is late, never impossible.
        """
        now = self._clock()
        self._level = min(self._room, self._level + max(0.0, now - self._at) * self.rate)
        self._at = now
        missing = min(amount, self._room) - self._level
        return 0 if missing <= 1e-9 else max(1, round(min(1000 * missing / self.rate, LONGEST_WAIT_MS)))

    def take(self, amount: float) -> None:
        """Takes it, after :meth:`wait_ms` gave 0."""
        self._level -= amount

    @property
    def is_full(self) -> bool:
        """Whether it is as good as a new one."""
        return self.wait_ms(self._room) == 0


class RateLimiter:
    """The buckets of all clients."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, tuple[Bucket | None, Bucket | None]] = {}

    def wait_ms(self, client: str, limits: Limits, packet_bytes: int, frames: int = 1) -> int:
        """0, and the frames are counted; or milliseconds until it is worth trying again with all of them."""
        if limits.rate is None and limits.mbit is None:
            return 0
        number, volume = self._of(client, limits)
        wait = max(number.wait_ms(frames) if number else 0, volume.wait_ms(packet_bytes * 8) if volume else 0)
        if wait == 0:
            if number:
                number.take(frames)
            if volume:
                volume.take(packet_bytes * 8)
        return wait

    def forget_idle(self) -> None:
        """Drops the buckets of those who have sent nothing lately."""
        self._buckets = {
            client: pair
            for client, pair in self._buckets.items()
            if not all(one is None or one.is_full for one in pair)
        }

    def _of(self, client: str, limits: Limits) -> tuple[Bucket | None, Bucket | None]:
        wanted = limits.rate, None if limits.mbit is None else limits.mbit * 1e6
        there = self._buckets.get(client)
        if there is None or tuple(one and one.rate for one in there) != wanted:
            there = self._new(wanted[0]), self._new(wanted[1])
            self._buckets[client] = there
        return there

    def _new(self, rate: float | None) -> Bucket | None:
        return None if rate is None else Bucket(rate, self._clock)
