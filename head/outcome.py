"""A client's frames behind the encoder: each one's result, by a server in time, by what the board has, or by the disk."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy.typing as npt

from narrowcast.head.answers import AnswerReader
from narrowcast.head.errors import LinkClosedError, LinkError, RefusedError
from narrowcast.head.link import Link
from narrowcast.head.offload import whole_result
from narrowcast.head.outage import Policy, SpoolWriter, Turns
from narrowcast.head.results import DROPPED, PUT_OFF, STATUS, Result, finish, not_sent
from narrowcast.head.session import Encoded, HeadSession
from narrowcast.transport.packet import Packet


class _PutOffError(Exception):
    """The server does not answer this frame for now."""


def why_dropped(error: BaseException) -> str:
    """Why a frame has no result, in a few words."""
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    reasons = {LinkClosedError: "closed", RefusedError: "refused", LinkError: "no server"}
    return next((reason for kind, reason in reasons.items() if isinstance(error, kind)), "failed")


class Outcomes:
    """Results for one client, on its event loop.

    Args:
        session: the head, and the local exit.
        link: to the servers.
        answers: reads theirs.
        policy: what becomes of frames that no server answers in time.
        spool: where such frames go; None where they do not.
        level: of the symbols that the local exit sees of frames that are sent as images.
    """

    def __init__(
        self,
        session: HeadSession,
        link: Link,
        answers: AnswerReader,
        policy: Policy,
        spool: SpoolWriter | None,
        level: int,
    ) -> None:
        self._session, self._link, self._answers, self._policy = session, link, answers, policy
        self._spool, self._level = spool, level
        self._turns = Turns()
        self._offline = False  # a frame has waited in vain for a link that is still down

    def link_is_down(self) -> bool:
        """Whether there was a stream, and is none."""
        return not self._link.connected and (self._offline or self._link.counters.streams_opened > 0)

    async def queued(
        self, packet: Packet, encoded: Encoded, started: float, expires_at: float | None
    ) -> asyncio.Task[Result]:
        """The server's result, however long it takes; waits for a place in the window."""
        answer = await self._link.send(packet, expires_at, encoded.symbols)
        return asyncio.create_task(finish(encoded, packet.frame_id, answer, started, self._answers))

    async def answered(self, packet: Packet, encoded: Encoded, started: float, expires_at: float | None) -> Result:
        """The server's result where it comes in time, else what ``on_outage`` says."""
        with self._turns.taken(packet.frame_id):
            try:
                result = await self._answered_in_time(packet, encoded, started, expires_at)
                trouble = "no server answered in time"
            except LinkError as error:
                if self._policy.local_exit and (
                    not self._policy.refusal_is_outage or isinstance(error, LinkClosedError)
                ):
                    raise
                result, trouble = None, str(error)
            if result is None and self._policy.local_exit:
                return await self._from_exit(encoded, packet.frame_id, started)
            if result is None:
                return await self._given_up(packet, encoded, started, trouble)
            return result

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
            latest = time.monotonic() + self._policy.exit_after_seconds
            expires_at = latest if expires_at is None else min(latest, expires_at)
            try:
                left = max(0.0, expires_at - time.monotonic())
                return await asyncio.wait_for(self._sent(packet, encoded, started, expires_at), left)
            except (asyncio.TimeoutError, _PutOffError):  # TimeoutError itself from Python 3.11 on
                self._offline = not self._link.connected and time.monotonic() >= expires_at
        return None

    async def _sent(self, packet: Packet, encoded: Encoded, started: float, expires_at: float) -> Result:
        answer = await self._link.send(packet, expires_at, encoded.symbols)
        result = (await answer).result
        if STATUS.get(result.code) in PUT_OFF:
            raise _PutOffError
        return await finish(encoded, packet.frame_id, answer, started, self._answers)

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
            status="UNAVAILABLE", spooled=failed == "spooled", dropped=encoded.dropped,
        )  # fmt: skip

    async def kept(self, packet: Packet, encoded: Encoded, started: float, expires_at: float | None) -> Result:
        """The result of a frame that rate control did not send, and encoded: it is spooled, in its turn."""
        assert encoded.dropped is not None
        with self._turns.taken(packet.frame_id):
            return await self._given_up(packet, encoded, started, DROPPED[encoded.dropped][1])

    async def not_sent(self, encoded: Encoded, frame_id: int, started: float) -> Result:
        """The answer to a frame that rate control dropped."""
        if self._link.failure is not None and not self._policy.refusal_is_outage:
            raise self._link.failure
        if self._policy.local_exit:
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

    def _answer_here(self, encoded: Encoded) -> tuple[dict[str, npt.NDArray[Any]], int]:
        """The local exit's outputs, and the level of the symbols that it saw."""
        if encoded.symbols is not None:
            return self._session.answer(encoded.symbols, encoded.level), encoded.level
        assert encoded.image is not None
        return self._session.answer(self._session.symbols(encoded.image, self._level), self._level), self._level

    async def from_whole(self, encoded: Encoded, frame_id: int, started: float, *, follows_link: bool) -> Result:
        """The result of a frame that was answered here by the uncut network; a lost link is taken up for later ones.

        Args:
            encoded: with its outputs.
            frame_id: the frame's.
            started: when it was handed over, by ``time.perf_counter()``.
            follows_link: whether later ones may be sent.
        """
        if follows_link and self.link_is_down():
            self._link.want()
        assert encoded.outputs is not None
        return whole_result(encoded, frame_id, started, self._answers.answers(encoded.outputs, encoded.placement))
