"""The edge client for asyncio: frames in, the tail's outputs out.

:class:`AsyncClient` keeps one stream to one of the servers that it is given, with several frames in flight; results come in
the order of the frames, each exactly once, over any number of broken links and lost servers. Where the bundle has a local
exit, it answers the frames that no server answers in time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from narrowcast.head.accounting import Ledger
from narrowcast.head.ahead import Ready
from narrowcast.head.answers import AnswerReader
from narrowcast.head.audit import AuditConsent
from narrowcast.head.encoder import FrameEncoder, ImageCodec, Sending, check_images
from narrowcast.head.endpoints import To
from narrowcast.head.errors import LinkError
from narrowcast.head.link import Link, Priority
from narrowcast.head.offload import Offload, OffloadControl, Way, check_offload
from narrowcast.head.outage import OnOutage, Policy, SpoolWriter
from narrowcast.head.outcome import Outcomes, why_dropped
from narrowcast.head.rate.budget import DailyCap
from narrowcast.head.rate.control import RateControl
from narrowcast.head.rate.offload import WayName
from narrowcast.head.replay import ReplayCounters, Replayed, Replayer
from narrowcast.head.results import Result
from narrowcast.head.session import Encoded, HeadSession
from narrowcast.head.socket_bytes import SocketBytes
from narrowcast.head.spool import Spool
from narrowcast.head.unanswered import LinkCounters
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.contract import Image
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.packet import Packet
from narrowcast.transport.rpc.credentials import ClientTls, client_tls
from narrowcast.transport.tasks import MAIN

Array = npt.NDArray[np.generic]


class AsyncClient:
    """A client for asyncio. Use it as a context, or call :meth:`close`.

    Args:
        model: a bundle opened for the role ``device``, or a :class:`HeadSession` that is already loaded.
        address: of the server, ``HOST:PORT``; or of several (a list, or with commas between), of which one that serves is
            used; a name stands for all addresses that it resolves to.
        level: the rate point where a call names none; the one with the most bytes if None. ``auto``: chosen frame by frame
            (``docs/rate-control.md``).
        tails: of a bundle with several, those to run; all if None.
        window: how many frames may be unanswered.
        give_up_seconds: how long to wait for a server that does not answer; None for ever.
        on_trouble: told, in a line, whenever the link breaks.
        local_exit: whether the bundle's local exit answers what the server does not, with the first tail's outputs alone;
            None where the bundle has one and the first tail is asked for. The link is then tried for ever: no frame fails
            for want of a server.
        exit_after_seconds: how long a frame may wait for the server before the exit answers it. While the link is known to
            be down, it answers at once.
        deadline_ms: how long after handing a frame over its answer is still wanted, where a call says nothing else; None
            for ever. Servers do not compute what is too old; the local exit, where there is one, answers instead, and
            otherwise the result's ``status`` is DEADLINE_EXCEEDED.
        priority: which frames go first where they have to wait on a server: ``background``, ``normal`` or ``urgent``.
        tls: a folder as ``narrowcast keys issue`` makes it, or a :class:`ClientTls`; plain TCP without.
        way: what is sent: ``symbols``, or each frame as an ``image`` file, scaled to the network's input, which the uncut
            network answers on servers whose bundle has it (``[export] whole``).
        image_codec: ``jpeg`` or ``webp``.
        image_quality: 1..100, as Pillow understands it.
        audit: whether the server's operator may have images: the last frames, scaled to the network's input, are held, and
            those that a server asks for are sent (``docs/drift.md``). An :class:`AuditConsent` says how. Images that are
            sent anyhow (``way``) are not sent twice.
        budget_kbit: kbit/s on the socket, both ways, on average; frames that would pass it are not sent. None for no limit.
        data_cap: the same for a day's bytes.
        max_packet_bytes: no packet has more: a frame whose packet would is sent at a lower level, or not at all. None: with
            ``level="auto"`` twice what the highest level takes on average, otherwise no limit.
        on_outage: what becomes of a frame that no server answers within ``exit_after_seconds`` or by its deadline: ``drop``;
            ``block``, which waits for ever; ``local``, the exit's answer; ``spool``, on disk, and sent when there is one.
            None: the exit's answer where there is one, else what ``give_up_seconds`` says.
        spool: where to, with ``on_outage="spool"``. The client does not close it.
        video: send frames by reference to earlier ones that the server has answered, or not at all where nothing has changed
            (``docs/video.md``); servers that cannot do that get key frames. Pays where frames are a camera's, one after the
            other.
        on_replayed: told, on the client's event loop, what a server says of a spooled frame, of this run or an earlier one.
            Where it returns something to wait for, the spool forgets the frame after that.
            Must not block.
        ledger: goes on with the account of a client before; a new one if None.
        refusal_is_outage: treat servers that refuse this client as if there were none, where somebody else answers or keeps
            its frames: for what runs unattended. ``failure`` says so then. With ``block`` frames wait for them, and they are
            asked again.
        offload: where frames are answered (``docs/rate-control.md``): ``split`` and ``image`` are ``way``; ``local``: by the
            bundle's uncut network here, and nothing is sent; ``auto``: frame by frame where most is answered rightly in
            time, of what is as good the cheapest.
        way_joules: what the board spends on a frame, by way; with it ``auto`` goes by energy where it may choose.

    Attributes:
        ledger: what became of every frame.
        offload: what the offload decision has done; None where there is none.

    Raises:
        AddressError: ``address`` is none.
        ConfigError: no such tail, way, image codec or quality; or the local exit is asked for and the first tail is not.
        MissingPartError: there is no local exit, or there are no video tables, and they are asked for.
        CertificateError, KeyFileError, TokenError: TLS files that cannot be used.
    """

    def __init__(
        self,
        model: Bundle | HeadSession,
        address: To,
        *,
        level: int | Literal["auto"] | None = None,
        tails: Sequence[str] | None = None,
        window: int = 8,
        give_up_seconds: float | None = 30.0,
        on_trouble: Callable[[str], None] | None = None,
        local_exit: bool | None = None,
        exit_after_seconds: float = 2.0,
        deadline_ms: float | None = None,
        priority: Priority = "normal",
        tls: str | Path | ClientTls | None = None,
        way: Way = "symbols",
        image_codec: ImageCodec = "jpeg",
        image_quality: int = 75,
        audit: bool | AuditConsent = False,
        budget_kbit: float | None = None,
        data_cap: DailyCap | None = None,
        max_packet_bytes: int | None = None,
        on_outage: OnOutage | None = None,
        spool: Spool | None = None,
        on_replayed: Callable[[Replayed], Awaitable[None] | None] | None = None,
        ledger: Ledger | None = None,
        refusal_is_outage: bool = False,
        offload: Offload | None = None,
        way_joules: Mapping[WayName, float] | None = None,
        video: bool = False,
    ) -> None:
        self.session = model if isinstance(model, HeadSession) else HeadSession(model)
        self.level = self.session.levels - 1 if level is None or level == "auto" else level
        self.deadline_ms = deadline_ms
        self._expires_at(0.0, None)  # what is wrong with it is said here
        way = check_offload(offload, way, way_joules)
        check_images(way, image_codec, image_quality)
        manifest, fingerprint = self.session.bundle.manifest, self.session.codec.fingerprint
        answers = AnswerReader(manifest, tails)
        main_is_asked = any(tail.name == MAIN for tail in answers.tails)
        policy = Policy.of(
            on_outage, local_exit, spool, there_is_exit=self.session.has_exit,
            main_is_asked=main_is_asked, exit_after_seconds=exit_after_seconds,
            give_up_seconds=give_up_seconds, refusal_is_outage=refusal_is_outage,
        )  # fmt: skip
        self.local_exit, self._gives_up = policy.local_exit, policy.gives_up
        if self.local_exit:
            _ = self.session.exit  # now, and not when the link is down
        self.ledger = ledger or Ledger()
        self._tasks: set[asyncio.Task[Result]] = set()
        self._room = asyncio.Semaphore(max(1, window))  # the link's own is not held by what the exit answers
        if level == "auto" and way == "image":
            raise ConfigError("images have no levels to choose from: level='auto' is for way='symbols'")
        self.rate: RateControl | None = None
        automatic = level == "auto" or offload == "auto"
        if automatic or budget_kbit is not None or data_cap is not None or max_packet_bytes is not None:
            self.rate = RateControl(
                manifest, automatic=automatic, with_exit=self.local_exit, keeps_late=spool is not None,
                budget=None if budget_kbit is None else budget_kbit * 1000 / 8, data_cap=data_cap,
                max_packet_bytes=max_packet_bytes, on_socket=self.socket_bytes,
            )  # fmt: skip
        tls = client_tls(tls)
        link = partial(Link, address, manifest.name, tails=[tail.name for tail in answers.tails], tls=tls)
        self._link = link(
            fingerprint, window=window, give_up_seconds=policy.give_up_seconds, keep_trying=policy.gives_up,
            hold_refused=policy.hold_refused,
            on_trouble=on_trouble, priority=priority, audit=(AuditConsent() if audit is True else audit) or None,
            may_audit=None if self.rate is None else self.rate.may_replay, listener=self.rate,
            video=self.session.video_codec(way) if video else None,
        )  # fmt: skip
        self._spool = None if spool is None else SpoolWriter(spool)
        self._outcomes = Outcomes(self.session, self._link, answers, policy, self._spool, self.level)
        self.offload: OffloadControl | None = None
        if offload in ("auto", "local"):
            self.offload = OffloadControl(
                self.session, offload, self.rate if offload == "auto" else None, image_codec=(image_codec, image_quality),
                joules=way_joules, link_is_down=self._outcomes.link_is_down, main_is_asked=main_is_asked,
            )  # fmt: skip
        exit_after = exit_after_seconds if self.local_exit else None
        sending = Sending(
            way, image_codec, image_quality, self.level, deadline_ms, exit_after, self._link.audit is not None
        )  # fmt: skip
        self._encoder = FrameEncoder(
            self.session, sending, named_level=level if isinstance(level, int) else None, rate=self.rate,
            offload=self.offload, ledger=self.ledger,
        )  # fmt: skip
        self._replayer: Replayer | None = None
        if spool is not None:
            self._replayer = Replayer(
                spool, partial(link, fingerprint, keep_trying=True, priority="background"), answers,
                manifest.input.size, fingerprint, is_busy=self._is_busy, limits=self.rate,
                live=lambda: self.ledger.account.answered, on_replayed=on_replayed,
            )  # fmt: skip
        self._next_id = 0
        self._given_up = False

    @property
    def counters(self) -> LinkCounters:
        """What the link has done so far."""
        return self._link.counters

    @property
    def replay_counters(self) -> ReplayCounters | None:
        """What became of spooled frames; None without a spool."""
        return None if self._replayer is None else self._replayer.counters

    @property
    def stream_id(self) -> bytes:
        """What the frames of this client are called by, 16 bytes; see ``frame_id`` of their results."""
        return self._link.context.stream_id

    @property
    def server(self) -> str | None:
        """``HOST:PORT`` that frames go to now; None while there is no link."""
        current = self._link.endpoints.current
        return str(current.address) if self._link.connected and current is not None else None

    @property
    def failure(self) -> LinkError | None:
        """Why no server will answer this client any more; None where one may."""
        return self._link.failure

    def capture_us(self, captured_at: float) -> int:
        """As packets have it: microseconds since 1970 UTC, of seconds of ``time.monotonic()``."""
        return self._link.us_at(captured_at)

    def socket_bytes(self) -> SocketBytes | None:
        """Bytes on the link's sockets so far; None where the system does not tell."""
        return self._link.socket_bytes()

    async def infer(self, frame: Image, level: int | None = None, *, deadline_ms: float | None = None) -> Result:
        """One frame, uint8 ``[H, W, 3]`` RGB of any size, to its result; calls may overlap.

        Args:
            frame: as above.
            level: its rate point; the client's if None.
            deadline_ms: how long its answer is wanted; the client's if None.

        Raises:
            FrameError, SymbolsError, BackendError: the frame cannot be encoded.
            LinkError: no server, or none that does not refuse.
        """
        return await (await self.submit(frame, level, deadline_ms=deadline_ms))

    async def submit(
        self,
        frame: Image,
        level: int | None = None,
        *,
        deadline_ms: float | None = None,
        captured_at: float | None = None,
    ) -> asyncio.Task[Result]:
        """Encodes and queues a frame; waits while the window is full. The task gives the result.

        Args:
            frame: see :meth:`infer`.
            level: see there.
            deadline_ms: see there.
            captured_at: when it was captured, in seconds of ``time.monotonic()``; now if None.
        """
        started = time.perf_counter()
        encoded = await asyncio.to_thread(self.prepare, frame, level, started, deadline_ms)
        return await self.submit_encoded(encoded, started, deadline_ms=deadline_ms, captured_at=captured_at)

    def encode(self, frame: Image | Ready, level: int | None = None) -> Encoded:
        """What is to be sent of a frame; safe to call on any thread."""
        return self._encoder.encode(frame, level)

    def prepare(
        self, frame: Image | Ready, level: int | None, started: float, deadline_ms: float | None = None
    ) -> Encoded:
        """As :meth:`encode`, by rate control where there is any: at the level that it chooses, or as a dropped frame.

        A call that names a level has it, within the limits.
        """
        return self._encoder.prepare(frame, level, started, deadline_ms)

    async def submit_encoded(
        self, encoded: Encoded, started: float, *, deadline_ms: float | None = None, captured_at: float | None = None
    ) -> asyncio.Task[Result]:
        """Queues a frame that is encoded already; ``started`` is its ``time.perf_counter()``."""
        number = self.ledger.capture()
        try:
            task = await self._queued(encoded, started, deadline_ms, captured_at)
        except BaseException as error:
            self.ledger.end(number, "dropped", why_dropped(error))
            raise
        if self.offload is not None:
            self.offload.follow(encoded, task)
        self._tasks.add(task)
        task.add_done_callback(partial(self._end, number))
        return task

    def _end(self, number: int, task: asyncio.Task[Result]) -> None:
        """A frame's one end, in the ledger."""
        self._tasks.discard(task)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            self.ledger.end(number, "dropped", why_dropped(error))
            return
        result = task.result()
        self.ledger.end(number, result.fate, (result.dropped or result.status) if result.fate == "dropped" else "")

    async def _queued(
        self, encoded: Encoded, started: float, deadline_ms: float | None, captured_at: float | None
    ) -> asyncio.Task[Result]:
        expires_at = self._expires_at(started, deadline_ms)
        frame_id, self._next_id = self._next_id, self._next_id + 1
        if encoded.outputs is not None:
            return asyncio.create_task(
                self._outcomes.from_whole(encoded, frame_id, started, follows_link=self.rate is not None)
            )
        if encoded.dropped is not None and not encoded.payload:
            return asyncio.create_task(self._outcomes.not_sent(encoded, frame_id, started))
        context = self._link.context
        capture_us = self._link.now_us() if captured_at is None else self._link.us_at(captured_at)
        packet = Packet(
            encoded.codec, encoded.level, frame_id, capture_us, encoded.payload, context.stream_id,
            context.fingerprint, encoded.kind,
        )  # fmt: skip
        if encoded.source is not None and encoded.dropped is None and self._link.audit is not None:
            self._link.audit.remember(frame_id, packet.capture_us, encoded.source)
        if self._gives_up:
            await self._room.acquire()
            ends = self._outcomes.answered if encoded.dropped is None else self._outcomes.kept
            task = asyncio.create_task(ends(packet, encoded, started, expires_at))
            task.add_done_callback(lambda _: self._room.release())
            return task
        return await self._outcomes.queued(packet, encoded, started, expires_at)

    def _is_busy(self) -> bool:
        """Whether live frames want for room, here or on the link."""
        return self._room.locked() or (self.rate is not None and self.rate.is_short)

    def _expires_at(self, started: float, deadline_ms: float | None) -> float | None:
        """A frame's deadline, in seconds of ``time.monotonic()``."""
        limit_ms = self.deadline_ms if deadline_ms is None else deadline_ms
        if limit_ms is not None and not 0 < limit_ms < math.inf:
            raise ConfigError(f"a deadline of {limit_ms} ms; it is above 0, or None for none")
        return None if limit_ms is None else time.monotonic() + limit_ms / 1000 - (time.perf_counter() - started)

    async def retire(self) -> None:
        """Another client takes over, and the spool: no more spooled frames are sent.

        Frames under way are answered; where they wait for servers that refuse them, they fail.
        """
        self._link.hold_refused = False
        if self._replayer is not None:
            await self._replayer.close()

    async def give_up(self) -> None:
        """Ends the link: frames without an answer, and those that are still handed over, are spooled, or fail."""
        if self._given_up:
            return
        self._given_up = True
        if self.rate is not None:
            await asyncio.to_thread(self.rate.count)
        if self._replayer is not None:
            await self._replayer.close()
        await self._link.close()
        if self.rate is not None:
            await asyncio.to_thread(self.rate.close)

    async def close(self) -> None:
        """Ends all; unanswered frames fail, or are spooled."""
        await self.give_up()
        if self._spool is not None:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._spool.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
