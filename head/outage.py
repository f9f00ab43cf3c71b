"""What becomes of a frame that no server answers in time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal, get_args

import msgspec

from narrowcast.head.spool import Spool
from narrowcast.transport.contract import Placement
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.packet import Packet

OnOutage = Literal["drop", "block", "local", "spool"]
ON_OUTAGE = get_args(OnOutage)


def check_policy(on_outage: OnOutage | None, local_exit: bool | None, spool: Spool | None) -> None:
    """Whether a client's settings go together.

    Raises:
        ConfigError: they do not.
    """
    if on_outage is not None and on_outage not in ON_OUTAGE:
        raise ConfigError(f"on_outage {on_outage!r}: one of {', '.join(ON_OUTAGE)}")
    if (on_outage == "spool") != (spool is not None):
        raise ConfigError("on_outage 'spool' wants a Spool, and a Spool on_outage 'spool'")
    if on_outage is not None and local_exit is not None and local_exit != (on_outage == "local"):
        raise ConfigError(f"on_outage {on_outage!r} and local_exit {local_exit}: they say different things")


class Note(msgspec.Struct, frozen=True):
    """What a client keeps with a packet on disk (``docs/spool-format.md``).

    Attributes:
        placement: where the frame lies in the network's input, one number after the other; None where nobody knows.
    """

    placement: list[int] | None = None

    @classmethod
    def of(cls, placement: Placement) -> Note:
        """As it is kept."""
        return cls([int(number) for pair in placement for number in pair])

    @classmethod
    def read(cls, data: bytes) -> Note:
        """An empty one where it cannot be read: the packet is worth more than the note."""
        try:
            note = msgspec.msgpack.decode(data, type=cls) if data else cls()
        except msgspec.MsgspecError:
            return cls()
        return note if note.placement is None or len(note.placement) == 12 else cls()

    def to_bytes(self) -> bytes:
        """As msgpack."""
        return msgspec.msgpack.encode(self)

    def placed(self, size: tuple[int, int]) -> Placement:
        """The placement; as if the frame were the network's input, of ``size``, where it is not known."""
        if self.placement is None:
            return Placement(size, size, (0, 0), (0, 0), size, size)
        numbers = iter(self.placement)
        return Placement(*zip(numbers, numbers, strict=True))


class Turns:
    """Frames that are given up are so in their order, though a later one may know earlier that nobody answers."""

    def __init__(self) -> None:
        self._open: dict[int, asyncio.Event] = {}

    @contextmanager
    def taken(self, frame_id: int) -> Iterator[None]:
        """While a frame has no end."""
        event = self._open[frame_id] = asyncio.Event()
        try:
            yield
        finally:
            del self._open[frame_id]
            event.set()

    async def come(self, frame_id: int) -> None:
        """Waits for the end of all frames before."""
        while (first := min(self._open)) < frame_id:
            await self._open[first].wait()


class SpoolWriter:
    """Spools from an event loop, in order, without holding it up while the disk takes its time."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self._thread = ThreadPoolExecutor(1, "narrowcast-spool")

    async def append(self, packet: Packet, placement: Placement) -> str | None:
        """See :meth:`Spool.append`."""
        note = Note.of(placement).to_bytes()
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.spool.append, packet, note)

    def close(self) -> None:
        """No more packets."""
        self._thread.shutdown(wait=False)
