"""The edge client for asyncio: frames in, the tail's outputs out.

:class:`AsyncClient` keeps one stream to one of the servers that it is given, with several frames in flight; results come in
the order of the frames, each exactly once, over any number of broken links and lost servers. Where the bundle has a local
exit, it answers the frames that no server answers in time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from narrowcast.head.accounting import Ledger
from narrowcast.head.ahead import Ready, made_ready
from narrowcast.head.answers import AnswerReader
from narrowcast.head.audit import AuditConsent
from narrowcast.head.endpoints import To
from narrowcast.head.errors import LinkClosedError, LinkError, RefusedError
from narrowcast.head.link import Link, Priority
from narrowcast.head.offload import Offload, OffloadControl, Way, check_offload, whole_result
from narrowcast.head.outage import OnOutage, SpoolWriter, Turns, check_policy
from narrowcast.head.rate.budget import DailyCap
from narrowcast.head.rate.control import RateControl
from narrowcast.head.rate.offload import WayName
from narrowcast.head.replay import ReplayCounters, Replayed, Replayer
from narrowcast.head.results import PUT_OFF, STATUS, Result, finish, not_sent
from narrowcast.head.session import Encoded, HeadSession
from narrowcast.head.socket_bytes import SocketBytes
from narrowcast.head.spool import Spool
from narrowcast.head.timing import FrameTimes
from narrowcast.head.unanswered import LinkCounters
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.contract import Image
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.packet import CodecId, Packet
from narrowcast.transport.rpc.credentials import ClientTls, client_tls
from narrowcast.transport.tasks import MAIN

Array = npt.NDArray[np.generic]

WAYS = get_args(Way)
IMAGE_CODECS = {"jpeg": CodecId.JPEG, "webp": CodecId.WEBP}


class _PutOffError(Exception):
    """The server does not answer this frame for now."""


def _reason(error: BaseException) -> str:
    """Why a frame has no result, in a few words."""
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    reasons = {LinkClosedError: "closed", RefusedError: "refused", LinkError: "no server"}
    return next((reason for kind, reason in reasons.items() if isinstance(error, kind)), "failed")


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
            Must not block.
        ledger: goes on with the account of a client before; a new one if None.
        refusal_is_outage: treat servers that refuse this client as if there were none, where somebody else answers or keeps
            its frames: for what runs unattended. ``failure`` says so then.
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
        image_codec: Literal["jpeg", "webp"] = "jpeg",
        image_quality: int = 75,
        audit: bool | AuditConsent = False,
        budget_kbit: float | None = None,
        data_cap: DailyCap | None = None,
        max_packet_bytes: int | None = None,
        on_outage: OnOutage | None = None,
        spool: Spool | None = None,
        on_replayed: Callable[[Replayed], None] | None = None,
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
        if way not in WAYS or image_codec not in IMAGE_CODECS or not 1 <= image_quality <= 100:
            raise ConfigError(
                f"way {way!r}, image codec {image_codec!r}, quality {image_quality}: one of {', '.join(WAYS)}; one of "
                f"{', '.join(IMAGE_CODECS)}; 1..100"
            )
        self._way, self._image = way, (IMAGE_CODECS[image_codec], image_quality)
        manifest, fingerprint = self.session.bundle.manifest, self.session.codec.fingerprint
        self._answers = AnswerReader(manifest, tails)
        asked = any(tail.name == MAIN for tail in self._answers.tails)
        check_policy(on_outage, local_exit, spool)
        if on_outage is not None:
            local_exit = on_outage == "local"
            give_up_seconds = None if on_outage == "block" else give_up_seconds
        if local_exit and not asked:
            raise ConfigError(f"the local exit answers as the tail {MAIN!r} does, which is not asked for")
        self.local_exit = self.session.has_exit and asked if local_exit is None else local_exit
        if self.local_exit:
            _ = self.session.exit  # now, and not when the link is down
        self._exit_after_seconds = exit_after_seconds
        self._gives_up = self.local_exit or on_outage in ("drop", "spool")
        self.ledger = ledger or Ledger()
        self._refusal_is_outage = refusal_is_outage
        self._turns = Turns()
        self._tasks: set[asyncio.Task[Result]] = set()
        self._room = asyncio.Semaphore(max(1, window))  # the link's own is not held by what the exit answers
        if level == "auto" and way == "image":
            raise ConfigError("images have no levels to choose from: level='auto' is for way='symbols'")
        self.rate: RateControl | None = None
        automatic = level == "auto" or offload == "auto"
        self._named_level = level if isinstance(level, int) else None
        if automatic or budget_kbit is not None or data_cap is not None or max_packet_bytes is not None:
            self.rate = RateControl(
                manifest, automatic=automatic, with_exit=self.local_exit, data_cap=data_cap,
                budget=None if budget_kbit is None else budget_kbit * 1000 / 8, max_packet_bytes=max_packet_bytes,
                on_socket=self.socket_bytes,
            )  # fmt: skip
        self._video = self.session.video_codec(way) if video else None
        self._offline = False  # a frame has waited in vain for a link that is still down
        tls = client_tls(tls)
        link = partial(Link, address, manifest.name, tails=[tail.name for tail in self._answers.tails], tls=tls)
        self._link = link(
            fingerprint, window=window, give_up_seconds=give_up_seconds, keep_trying=self._gives_up,
            on_trouble=on_trouble, priority=priority, audit=(AuditConsent() if audit is True else audit) or None,
            listener=self.rate, video=self._video,
        )  # fmt: skip
        self.offload: OffloadControl | None = None
        if offload in ("auto", "local"):
            self.offload = OffloadControl(
                self.session, offload, self.rate if offload == "auto" else None, image_codec=(image_codec, image_quality),
                joules=way_joules, link_is_down=self._link_is_down,
            )  # fmt: skip
        self._spool = self._replayer = None
        if spool is not None:
            self._spool = SpoolWriter(spool)
            self._replayer = Replayer(
                spool, partial(link, fingerprint, keep_trying=True, priority="background"), self._answers,
                manifest.input.size, fingerprint, is_busy=self._room.locked, on_replayed=on_replayed,
            )  # fmt: skip
        self._next_id = 0

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
        try:
            if self._way == "image":
                return self.session.encode_image(frame, *self._image)
            level = self.level if level is None else level
            return self.session.encode(frame, level, keep_source=self._link.audit is not None)
        except Exception:
            self.ledger.drop("not encoded")
            raise

    def prepare(
        self, frame: Image | Ready, level: int | None, started: float, deadline_ms: float | None = None
    ) -> Encoded:
        """As :meth:`encode`, by rate control where there is any: at the level that it chooses, or as a dropped frame.

        A call that names a level has it, within the limits.
        """
        limit_ms = self._limit_ms(deadline_ms)
        if self.offload is None:
            return self._split(frame, level, started, limit_ms)
        wanted = self._named_level if level is None else level
        return self.offload.prepare(
            frame, started, limit_ms, split=lambda one: self._split(one, wanted, started, limit_ms), image=self._as_image
        )  # fmt: skip

    def _limit_ms(self, deadline_ms: float | None) -> float | None:
        """By when a frame's answer is wanted, or is given here."""
        limits = [self.deadline_ms if deadline_ms is None else deadline_ms]
        if self.local_exit:
            limits.append(self._exit_after_seconds * 1000)
        return min((one for one in limits if one is not None), default=None)

    def _split(self, frame: Image | Ready, level: int | None, started: float, limit_ms: float | None) -> Encoded:
        if self.rate is None:
            return self.encode(frame, level)
        return self.rate.encode(
            frame, level, self.level, started, limit_ms, encode=self.encode, drop=self._dropped
        )  # fmt: skip

    def _as_image(self, frame: Image | Ready) -> Encoded:
        assert self.rate is not None
        return self.rate.encode_image(
            frame, encode=lambda one: self.session.encode_image(one, *self._image), drop=self._dropped
        )

    def _link_is_down(self) -> bool:
        """Whether there was a stream, and is none."""
        return not self._link.connected and (self._offline or self._link.counters.streams_opened > 0)

    def _dropped(self, frame: Image | Ready, reason: str) -> Encoded:
        """What stands for a frame that is not sent: for the local exit, its symbols."""
        ready = made_ready(frame, self.session.contract)
        prepared, resized, times = ready.prepared, time.perf_counter(), FrameTimes(resize_ms=ready.resize_ms)
        symbols = None
        if self.local_exit:
            symbols = self.session.symbols(prepared.image, self.level)
            times.head_ms = (time.perf_counter() - resized) * 1000
        return Encoded(
            b"", self.level, prepared.placement, times, symbols, self.session.codec.codec_id, dropped=reason
        )  # fmt: skip

    async def submit_encoded(
        self, encoded: Encoded, started: float, *, deadline_ms: float | None = None, captured_at: float | None = None
    ) -> asyncio.Task[Result]:
        """Queues a frame that is encoded already; ``started`` is its ``time.perf_counter()``."""
        number = self.ledger.capture()
        try:
            task = await self._queued(encoded, started, deadline_ms, captured_at)
        except BaseException as error:
            self.ledger.end(number, "dropped", _reason(error))
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
            self.ledger.end(number, "dropped", _reason(error))
            return
        result = task.result()
        self.ledger.end(number, result.fate, (result.dropped or result.status) if result.fate == "dropped" else "")

    async def _queued(
        self, encoded: Encoded, started: float, deadline_ms: float | None, captured_at: float | None
    ) -> asyncio.Task[Result]:
        expires_at = self._expires_at(started, deadline_ms)
        frame_id, self._next_id = self._next_id, self._next_id + 1
        if encoded.outputs is not None:
            return asyncio.create_task(self._from_whole(encoded, frame_id, started))
        if encoded.dropped is not None:
            return asyncio.create_task(self._not_sent(encoded, frame_id, started))
        context = self._link.context
        capture_us = self._link.now_us() if captured_at is None else self._link.us_at(captured_at)
        packet = Packet(
            encoded.codec, encoded.level, frame_id, capture_us, encoded.payload, context.stream_id,
            context.fingerprint, encoded.kind,
        )  # fmt: skip
        if encoded.source is not None and self._link.audit is not None:
            self._link.audit.remember(frame_id, packet.capture_us, encoded.source)
        if self._gives_up:
            await self._room.acquire()
            task = asyncio.create_task(self._answered(packet, encoded, started, expires_at))
            task.add_done_callback(lambda _: self._room.release())
            return task
        answer = await self._link.send(packet, expires_at, encoded.symbols)
        return asyncio.create_task(finish(encoded, frame_id, answer, started, self._answers))

    def _expires_at(self, started: float, deadline_ms: float | None) -> float | None:
        """A frame's deadline, in seconds of ``time.monotonic()``."""
        limit_ms = self.deadline_ms if deadline_ms is None else deadline_ms
        if limit_ms is not None and not 0 < limit_ms < math.inf:
            raise ConfigError(f"a deadline of {limit_ms} ms; it is above 0, or None for none")
        return None if limit_ms is None else time.monotonic() + limit_ms / 1000 - (time.perf_counter() - started)

    async def _answered(self, packet: Packet, encoded: Encoded, started: float, expires_at: float | None) -> Result:
        """The server's result where it comes in time, else what ``on_outage`` says."""
        with self._turns.taken(packet.frame_id):
            try:
                result = await self._answered_in_time(packet, encoded, started, expires_at)
                trouble = "no server answered in time"
            except LinkError as error:
                if self.local_exit and (not self._refusal_is_outage or isinstance(error, LinkClosedError)):
                    raise
                result, trouble = None, str(error)
            if result is None and self.local_exit:
                return await self._from_exit(encoded, packet.frame_id, started)
            if result is None:
                return await self._given_up(packet, encoded, started, trouble)
            return result

    async def _given_up(self, packet: Packet, encoded: Encoded, started: float, trouble: str) -> Result:
        """Spooled, or dropped."""
        failed = "dropped"
        if self._spool is not None:
            await self._turns.come(packet.frame_id)
            reason = await self._spool.append(packet, encoded.placement)
            failed = "spooled" if reason is None else f"dropped (spool: {reason})"
        return Result(
            frame_id=packet.frame_id, outputs={}, error=f"{failed}: {trouble}", level=encoded.level, packet_bytes=0,
            times=encoded.times, latency_ms=(time.perf_counter() - started) * 1000, placement=encoded.placement,
            status="UNAVAILABLE", spooled=failed == "spooled",
        )  # fmt: skip

    async def _answered_in_time(
        self, packet: Packet, encoded: Encoded, started: float, expires_at: float | None
    ) -> Result | None:
        """The server's result; None where there is none in time."""
        if self._link.failure is not None:  # refused while nothing was sent
            raise self._link.failure
        self._offline = self._offline and not self._link.connected
        if self._offline:
            self._link.want()
        else:
            latest = time.monotonic() + self._exit_after_seconds
            expires_at = latest if expires_at is None else min(latest, expires_at)
            try:
                left = max(0.0, expires_at - time.monotonic())
                return await asyncio.wait_for(self._sent(packet, encoded, started, expires_at), left)
            except (asyncio.TimeoutError, _PutOffError):  # TimeoutError itself from Python 3.11 on
                self._offline = not self._link.connected and time.monotonic() >= expires_at
        return None

    async def _not_sent(self, encoded: Encoded, frame_id: int, started: float) -> Result:
        """The answer to a frame that rate control dropped."""
        if self._link.failure is not None and not self._refusal_is_outage:
            raise self._link.failure
        if self.local_exit:
            return await self._from_exit(encoded, frame_id, started)
        return not_sent(encoded, frame_id, started)

    async def _from_exit(self, encoded: Encoded, frame_id: int, started: float) -> Result:
        """The local exit's result."""
        before = time.perf_counter()
        outputs, level = await asyncio.to_thread(self._answer_here, encoded)
        now = time.perf_counter()
        encoded.times.exit_ms = (now - before) * 1000
        return Result(
            frame_id=frame_id, outputs=outputs, error=None, level=level, packet_bytes=0,
            times=encoded.times, latency_ms=(now - started) * 1000, placement=encoded.placement, source="exit",
            dropped=encoded.dropped,
        )  # fmt: skip

    async def _from_whole(self, encoded: Encoded, frame_id: int, started: float) -> Result:
        """The result of a frame that was answered here by the uncut network; a lost link is taken up for later ones."""
        if self.rate is not None and self._link_is_down():
            self._link.want()
        assert encoded.outputs is not None
        return whole_result(encoded, frame_id, started, self._answers.answers(encoded.outputs, encoded.placement))

    def _answer_here(self, encoded: Encoded) -> tuple[dict[str, npt.NDArray[Any]], int]:
        """The local exit's outputs, and the level of the symbols that it saw."""
        if encoded.symbols is not None:
            return self.session.answer(encoded.symbols, encoded.level), encoded.level
        assert encoded.image is not None
        return self.session.answer(self.session.symbols(encoded.image, self.level), self.level), self.level

    async def _sent(self, packet: Packet, encoded: Encoded, started: float, expires_at: float) -> Result:
        answer = await self._link.send(packet, expires_at, encoded.symbols)
        result = (await answer).result
        if STATUS.get(result.code) in PUT_OFF:
            raise _PutOffError
        return await finish(encoded, packet.frame_id, answer, started, self._answers)

    async def retire(self) -> None:
        """No more spooled frames are sent, so that another client may take the spool over; those under way are answered."""
        if self._replayer is not None:
            await self._replayer.close()

    async def close(self) -> None:
        """Ends the link; unanswered frames fail, or are spooled."""
        if self.rate is not None:
            self.rate.close()
        if self._replayer is not None:
            await self._replayer.close()
        await self._link.close()
        if self._spool is not None:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._spool.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
