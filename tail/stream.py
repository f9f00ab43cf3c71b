"""One open stream (``docs/protocol.md``)."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError

from narrowcast.tail.access import Context, Gate
from narrowcast.tail.clock import stamp
from narrowcast.tail.credits import MAX_WINDOW, Credits
from narrowcast.tail.errors import FrameRefusedError
from narrowcast.tail.frame import MAIN_ALONE, Frame, Priority, priority_of
from narrowcast.tail.models import ModelTable, Slot
from narrowcast.tail.observe import Auditor, Observer, Silent, StreamInfo, record_of
from narrowcast.tail.opening import (
    NO_MESSAGE,
    EndedError,
    admit,
    choose_tails,
    find_slot,
    first_message,
    rate_refusal,
    references_for,
    refusal_of,
    resumed_behind,
)
from narrowcast.tail.references import References, Room
from narrowcast.transport.errors import PacketError
from narrowcast.transport.packet import Kind, Packet, StreamContext
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.channels import MAX_PACKET_BYTES

LEAST_SILENCE_SECONDS = 1.0
# So long TCP takes to find that what was written arrives nowhere (docs/protocol.md); sooner there is nothing new to learn.
KNOCK_EVERY_SECONDS = 20.0
# A client that reads no answers must not fill the memory with what it sends.
MAX_PENDING_BYTES = 64 * 1024 * 1024
_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


@dataclass(frozen=True)
class Ageing:
    """When a stream is asked to move.

    Attributes:
        max_age_seconds: after so long, a tenth more or less; None: never.
        grace_seconds: how long it then has.
    """

    max_age_seconds: float | None = None
    grace_seconds: float = 30.0


class OpenStream:
    """A reader, which takes packets in, and a writer, which sends answers out in the order of the packets.

    The reader is a task of its own; the writer is gRPC's handler. A frame costs neither a task nor a future: when the
    batcher has finished one, the writer is woken. A frame that is answered at once, while the writer has nothing to do, the
    reader answers itself.
    """

    def __init__(
        self,
        models: ModelTable,
        gate: Gate,
        observer: Observer,
        ageing: Ageing,
        context: Context,
        auditor: Auditor | None = None,
        room: Room | None = None,
    ) -> None:
        self._models = models
        self._gate = gate
        self._observer = observer
        self._observed = type(observer) is not Silent
        self._ageing = ageing
        self._context = context
        self._auditor = auditor
        self._room = room or Room()
        self._references: References | None = None
        self._loop = asyncio.get_running_loop()
        self._pending: deque[Frame] = deque()
        self._awake: asyncio.Future[None] | None = None
        self._ending: EndedError | None = None  # once what is pending is answered
        self._no_more = False  # the reader has ended
        self._end_now: EndedError | None = None
        self._pong: int | None = None
        self._knocking = False
        self._knocked = float("-inf")
        self._drain: pb.Drain | None = None  # to be sent
        self._draining = False
        self._writer: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._taking = False  # the reader is handing a frame to the batcher
        self._reader_writes = False
        self._timers: list[asyncio.TimerHandle] = []
        self._heard = time.monotonic()
        self._silence_limit: float | None = None
        self.info = StreamInfo("", "", b"")
        self._tails = MAIN_ALONE
        self._priority = Priority.NORMAL
        self._deadline_ms = 0
        self._resume_from = 0
        self.slot: Slot | None = None

    async def open(self) -> None:
        """Takes the first message, and answers it.

        Raises:
            EndedError: the stream cannot be opened.
        """
        client = admit(self._gate, self._context)
        self.info = StreamInfo(client, "", b"")
        wanted = await first_message(self._context)
        self.info = StreamInfo(client, wanted.model, wanted.stream_id, wanted.audit)
        if len(wanted.stream_id) != 16:
            raise EndedError(grpc.StatusCode.INVALID_ARGUMENT, f"a stream id has 16 bytes, not {len(wanted.stream_id)}")
        admit(self._gate, self._context, wanted.model)
        self.slot = find_slot(self._models, wanted.model, wanted.codec_fingerprint, wanted.packet_version)
        self._tails = choose_tails(self.slot.batcher, wanted.tails)
        self._credits = Credits(wanted.window)
        self._priority = self._gate.priority(client, priority_of(wanted.priority))
        self._deadline_ms, self._resume_from = wanted.deadline_ms, wanted.resume_from
        self._limit_silence(wanted.silence_limit_ms)
        self._references = references_for(self.slot, wanted, self._room, client)
        self._agreed = StreamContext(wanted.stream_id, wanted.codec_fingerprint, wanted.epoch_us)
        await self._context.write(
            pb.StreamResponse(
                opened=pb.Opened(
                    model=wanted.model,
                    release=self.slot.batcher.model.manifest.release,
                    window=self._credits.window,
                    max_packet_bytes=MAX_PACKET_BYTES,
                    client=client,
                    references=0 if self._references is None else self._references.count,
                )
            )
        )
        self._heard = time.monotonic()

    async def serve(self) -> None:
        """Until the stream's end. It must be open.

        Raises:
            EndedError: the stream ends with this status.
        """
        age = self._ageing.max_age_seconds
        if age is not None:
            age *= random.uniform(0.9, 1.1)  # noqa: S311  (jitter)
            self._timers.append(self._loop.call_later(age, self.drain, "age", True, self._ageing.grace_seconds))
        self._observer.stream_opened(self.info)
        reason = "OK"
        self._reader = self._loop.create_task(self._take_in())
        self._writer = asyncio.current_task()
        try:
            await self._send_out()
        except EndedError as ended:
            reason = ended.code.name
            raise
        except asyncio.CancelledError:
            if self._end_now is not None:  # a write that hangs was cut short
                reason = self._end_now.code.name
                raise self._end_now from None
            reason = "OK" if self._is_idle() else "CANCELLED"  # a client that has all of its answers may just go
            raise
        except Exception as error:
            reason = "CANCELLED"
            raise EndedError(grpc.StatusCode.CANCELLED, f"writing to the client failed: {error}") from error
        finally:
            self._reader.cancel()
            for timer in self._timers:
                timer.cancel()
            self._drop_pending()
            if self._references is not None:
                self._references.close()
            by_gate = self._gate.ended(self._context)  # to the handler that looks like a client that goes
            self._observer.stream_closed(self.info, reason if by_gate is None else by_gate.name)

    def drain(self, reason: str, come_back: bool, grace_seconds: float) -> None:
        """Asks the client to move; ends the stream in ``grace_seconds``, whatever is unanswered then."""
        if not self._draining:
            self._draining = True
            self._drain = pb.Drain(grace_ms=round(grace_seconds * 1000), reason=reason, come_back=come_back)
            self._wake()
        ended = EndedError(grpc.StatusCode.UNAVAILABLE, f"drained ({reason}), and the time for it is over")
        self._timers.append(self._loop.call_later(grace_seconds, self.end, ended))

    def end(self, ended: EndedError) -> None:
        """Ends the stream at once."""
        self._end_now = ended
        self._drop_pending()
        if self._reader_writes and self._reader is not None:  # perhaps for ever
            self._reader.cancel()
        elif self._awake is None and self._writer is not None:  # it is in the middle of a write, too
            self._writer.cancel()
        self._wake()

    def watch(self, now: float) -> None:
        """Ends a stream whose client is silent for too long; ``now`` is ``time.monotonic()``."""
        if (
            self._no_more
            or not self._pending
            or self._silence_limit is None
            or now - self._heard <= self._silence_limit
        ):
            return
        silent_ms = (now - self._heard) * 1000
        self.end(
            EndedError(
                grpc.StatusCode.UNAVAILABLE,
                f"nothing heard from the client for {silent_ms:.0f} ms while frames are unanswered; its own limit is "
                f"{self._silence_limit * 1000:.0f} ms",
            )
        )

    def knock(self, now: float) -> None:
        """Says nothing new to a client that may be gone: TCP then finds out. ``now`` is ``time.monotonic()``.

        An idle stream carries nothing, so neither end of one notices for hours that the other has lost its power.
        """
        if self._is_idle() and not self._draining and now - self._knocked >= KNOCK_EVERY_SECONDS:
            self._knocking, self._knocked = True, now
            self._wake()

    def _limit_silence(self, limit_ms: int) -> None:
        if limit_ms:
            self._silence_limit = max(LEAST_SILENCE_SECONDS, limit_ms / 1000)

    def _drop_pending(self) -> None:
        """Nobody waits for these any more."""
        while self._pending:
            self._pending.popleft().drop()

    def _wake(self) -> None:
        awake = self._awake
        if awake is not None and not self._reader_writes and not awake.done():
            awake.set_result(None)

    # The writer

    async def _send_out(self) -> None:
        pending, write = self._pending, self._context.write
        while True:
            if self._end_now is not None:
                raise self._end_now
            if self._drain is not None:
                drain, self._drain = self._drain, None
                await write(pb.StreamResponse(drain=drain))
            elif self._pong is not None:
                number, self._pong = self._pong, None
                await write(pb.StreamResponse(pong=pb.Pong(number=number)))
            elif pending and pending[0].response is not None:
                await self._answer(pending.popleft())
            elif self._knocking:
                self._knocking = False
                await write(pb.StreamResponse(credits=pb.Credits(window=self._credits.window)))
            elif self._no_more and not pending:
                if self._ending is not None:
                    raise self._ending
                return
            else:
                self._awake = self._loop.create_future()
                await self._awake
                self._awake = None

    async def _answer(self, frame: Frame) -> None:
        response = frame.response
        assert response is not None
        result = response.result
        if not result.code:
            stamp(result.times, frame.arrived)
            if self._references is not None and frame.kept is not None:
                self._references.keep(frame)
        if self._observed:
            assert self.slot is not None
            self._observer.frame_done(record_of(self.info, frame, self.slot.batcher.model.codec))
        if self._auditor is not None and self.info.audit:
            result.audit.extend(self._auditor.wanted(self.info))
        await self._context.write(response)
        assert self.slot is not None
        if self._credits.answered(self.slot.batcher.overloaded):
            await self._context.write(pb.StreamResponse(credits=pb.Credits(window=self._credits.window)))

    # The reader

    async def _take_in(self) -> None:
        """Packets to the batcher, until the client has no more or breaks the rules."""
        read = self._context.read
        try:
            while (request := await read()) is not grpc.aio.EOF:
                self._heard = time.monotonic()
                message = request.WhichOneof("message")
                if message == "packet":
                    self._taking = True
                    try:
                        self._take(request)
                    finally:
                        self._taking = False
                    if self._pending[0].response is not None:
                        await self._answer_soon()
                elif message == "ping":
                    self._limit_silence(request.ping.silence_limit_ms)
                    self._pong = request.ping.number
                    self._wake()
                elif message == "audit" and self.info.audit:
                    self._take_source(request.audit)
                else:
                    raise EndedError(
                        grpc.StatusCode.INVALID_ARGUMENT, "after `open`, a stream carries packets and pings"
                    )
        except PacketError as error:
            self._ending = EndedError(grpc.StatusCode.DATA_LOSS, str(error))
        except EndedError as ended:
            self._ending = ended
        except DecodeError:
            self._ending = EndedError(grpc.StatusCode.INVALID_ARGUMENT, NO_MESSAGE)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  (the peer is gone, or broke the framing underneath)
            self._ending = EndedError(grpc.StatusCode.UNAVAILABLE, f"reading from the client failed: {error}")
        self._no_more = True
        self._wake()

    async def _answer_soon(self) -> None:
        """The first answer is there: the writer's, or the reader's own where the writer is idle and so saves no time."""
        awake = self._awake
        if awake is None or awake.done():
            return  # the writer comes to it by itself
        self._reader_writes = True
        try:
            await self._answer(self._pending.popleft())
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  (whatever gRPC raises)
            self.end(EndedError(grpc.StatusCode.CANCELLED, f"writing to the client failed: {error}"))
        finally:
            self._reader_writes = False
            if self._has_something_to_write():
                self._wake()

    def _is_idle(self) -> bool:
        """Nothing is unanswered, and no answer is on its way."""
        return not self._pending and self._awake is not None and not self._reader_writes

    def _has_something_to_write(self) -> bool:
        first_is_answered = bool(self._pending) and self._pending[0].response is not None
        return first_is_answered or self._end_now is not None or self._drain is not None or self._pong is not None

    def _take(self, request: pb.StreamRequest) -> None:
        """One packet: refused, or to the batcher that is the model's now."""
        arrived = time.perf_counter()
        if len(self._pending) >= self._credits.limit:
            raise EndedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"more than {self._credits.limit} unanswered frames (the window)",
            )
        data = request.packet
        packet = Packet.from_stream_bytes(data, self._agreed)
        assert self.slot is not None
        batcher = self.slot.batcher
        deadline_ms = request.deadline_ms or self._deadline_ms
        frame = Frame(
            packet,
            self._tails,
            packet_bytes=len(data),
            client=self.info.client,
            priority=self._priority,
            deadline=arrived + deadline_ms / 1000 if deadline_ms else None,
            on_done=self._frame_done,
            arrived=arrived,
        )
        self._pending.append(frame)
        if len(data) * MAX_WINDOW > MAX_PENDING_BYTES and self._holds_too_much():
            message = f"more than {MAX_PENDING_BYTES} bytes of unanswered packets on one stream; send this frame later"
            frame.refuse(FrameRefusedError(_EXHAUSTED, message))
            return
        refused = rate_refusal(self._gate, self.info.client, len(data))
        if refused is None and packet.frame_id < self._resume_from:
            refused = resumed_behind(packet, self._resume_from)
        refused = refused or refusal_of(batcher, packet, self._tails, self._references)
        if refused is None and self._references is not None:
            refused = self._references.refer(frame, batcher.model.video, batcher.model.manifest.release)
        if refused is not None:
            frame.release = batcher.model.manifest.release
            frame.refuse(refused)
        elif packet.kind is not Kind.SKIP:
            batcher.put(frame, more=len(self._pending) > 1)

    def _take_source(self, data: bytes) -> None:
        """The source of a frame: for the audit, and for nobody else."""
        packet = Packet.from_stream_bytes(data, self._agreed)
        if packet.kind is not Kind.IMAGE:
            raise EndedError(
                grpc.StatusCode.INVALID_ARGUMENT, f"a frame's source is of kind IMAGE, not {packet.kind.name}"
            )
        if self._auditor is not None:
            self._auditor.source(self.info, packet)

    def _holds_too_much(self) -> bool:
        return len(self._pending) > 1 and sum(len(one.packet.payload) for one in self._pending) > MAX_PENDING_BYTES

    def _frame_done(self, frame: Frame) -> None:
        if not self._taking and self._pending and self._pending[0] is frame:
            self._wake()
