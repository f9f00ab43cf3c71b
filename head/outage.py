"""What becomes of a frame that no server answers in time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal, NamedTuple, get_args

import msgspec

from narrowcast.head.spool import Spool
from narrowcast.transport.contract import Placement
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.packet import Packet
from narrowcast.transport.tasks import MAIN

OnOutage = Literal["drop", "block", "local", "spool"]
ON_OUTAGE = get_args(OnOutage)


class Policy(NamedTuple):
    """What becomes of frames that no server answers in time, as a client's settings and its bundle say.

    Attributes:
        local_exit: the bundle's local exit answers.
        gives_up: frames are not kept waiting for ever: they are answered here, dropped or spooled.
        exit_after_seconds: how long a frame then waits for the server.
        give_up_seconds: how long to wait for servers at all; None for ever.
        refusal_is_outage: servers that refuse this client are treated as if there were none.
        hold_refused: frames wait for servers that refuse this client, too.
    """

    local_exit: bool
    gives_up: bool
    exit_after_seconds: float
    give_up_seconds: float | None
    refusal_is_outage: bool
    hold_refused: bool

    @classmethod
    def of(
        cls,
        on_outage: OnOutage | None,
        local_exit: bool | None,
        spool: Spool | None,
        *,
        there_is_exit: bool,
        main_is_asked: bool,
        exit_after_seconds: float,
        give_up_seconds: float | None,
        refusal_is_outage: bool,
    ) -> Policy:
        """Of a client's settings.

        Args:
            on_outage: see :class:`narrowcast.head.client.AsyncClient`, as for all that is not said here.
            local_exit: see there.
            spool: see there.
            there_is_exit: in the bundle.
            main_is_asked: the first tail is, as which the exit answers.
            exit_after_seconds: see there.
            give_up_seconds: see there.
            refusal_is_outage: see there.

        Raises:
            ConfigError: they do not go together.
        """
        if on_outage is not None and on_outage not in ON_OUTAGE:
            raise ConfigError(f"on_outage {on_outage!r}: one of {', '.join(ON_OUTAGE)}")
        if (on_outage == "spool") != (spool is not None):
            raise ConfigError("on_outage 'spool' wants a Spool, and a Spool on_outage 'spool'")
        if on_outage is not None and local_exit is not None and local_exit != (on_outage == "local"):
            raise ConfigError(f"on_outage {on_outage!r} and local_exit {local_exit}: they say different things")
        if on_outage is not None:
            local_exit = on_outage == "local"
            give_up_seconds = None if on_outage == "block" else give_up_seconds
        if local_exit and not main_is_asked:
            raise ConfigError(f"the local exit answers as the tail {MAIN!r} does, which is not asked for")
        answers_here = there_is_exit and main_is_asked if local_exit is None else local_exit
        gives_up = answers_here or on_outage in ("drop", "spool")
        hold_refused = refusal_is_outage and on_outage == "block"
        return cls(answers_here, gives_up, exit_after_seconds, give_up_seconds, refusal_is_outage, hold_refused)


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
