"""One source and all that its frames go through: capture, head and coder on a thread, the network on the loop, in order.

The client under it may be exchanged at any time, for another model or other servers: frames that were given to the old one
end there, new ones go to the new one, and none is lost between.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Iterator
from contextlib import suppress
from typing import NamedTuple

from narrowcast.head.ahead import HandedOver, OneAhead, hand_over
from narrowcast.head.daemon.clients import Running, check_source, make_cap, make_client, make_spool, tls_of
from narrowcast.head.daemon.config import DaemonConfig, SourceConfig
from narrowcast.head.daemon.figures import Figures, added
from narrowcast.head.daemon.model import Model
from narrowcast.head.daemon.outputs import Outputs
from narrowcast.head.daemon.records import Teller
from narrowcast.head.errors import BackendError, LinkError
from narrowcast.head.replay import Replayed
from narrowcast.head.results import Result
from narrowcast.head.session import Encoded
from narrowcast.head.sources import Captured, Feed, open_source
from narrowcast.head.sources.raw import RawForm
from narrowcast.head.spool import Spool
from narrowcast.head.unanswered import LinkCounters
from narrowcast.transport.errors import FrameError, NarrowcastError
from narrowcast.transport.rpc.credentials import ClientTls

log = logging.getLogger(__name__)
# A link that has failed for good (servers refuse this client) is tried anew: the fault may be theirs, and be mended.
# At the end, for putting on disk what has no answer; a few frames, unless the disk hangs.
SPOOLING_SECONDS = 2.0
FIRST_RENEWAL_SECONDS, LONGEST_RENEWAL_SECONDS = 5.0, 300.0
# A library that fails now and then (memory is short) loses single frames. One that fails so often in a row is broken, and
# another process may have more luck: the source ends with an error.
MAX_FAILURES = 20


class _Sent(NamedTuple):
    """A frame on its way: who has it and by which number, what it is, and its result to come."""

    running: Running
    captured: Captured
    encoded: Encoded
    started: float
    frame_id: int = 0
    result: asyncio.Task[Result] | LinkError | None = None


class Lane:
    """Made and used on the daemon's loop.

    Args:
        config: the daemon's.
        source: this one's.
        model: that runs.
        figures: are kept up.
        outputs: where records go.

    Attributes:
        config, source, model: what it goes by now.
        failure: what ended it, where that was a fault.
    """

    def __init__(
        self,
        config: DaemonConfig,
        source: SourceConfig,
        model: Model,
        figures: Figures,
        outputs: Outputs,
    ) -> None:
        self.source, self.figures, self._outputs = source, figures, outputs
        self.failure: BaseException | None = None
        self.config, self.model = config, model
        self._loop = asyncio.get_running_loop()
        self._mutex = threading.Lock()  # which client is used, and by how many frames
        self._old: set[asyncio.Task[None]] = set()
        self._retired: set[Running] = set()  # whose last frames are still under way
        self._room = threading.Semaphore(source.window)
        self._stopping = self._giving_up = self._feed_ended = False
        self._encoding_since: float | None = None
        self._moved_at = time.monotonic()
        self._renew_at = 0.0
        self._renewal_seconds = FIRST_RENEWAL_SECONDS
        self._unencoded = self._failed_in_a_row = 0
        raw = None if source.raw is None else RawForm.parse(source.raw)
        opened = open_source(source.uri, watch=source.watch, raw=raw, size=source.camera_size, on_trouble=self._trouble)
        self.spool: Spool | None = None
        try:
            self.spool = make_spool(config, source)
            self._running = self._make(tls_of(config))
            self.feed = Feed(
                opened, fps=source.fps, queue=source.queue, watchdog_seconds=source.watchdog_seconds,
                on_trouble=self._trouble, on_drop=lambda: figures.ledger.drop("overtaken"),
            )  # fmt: skip
        except BaseException:
            opened.close()
            if self.spool is not None:
                self.spool.close()
            raise
        self._queue: asyncio.Queue[_Sent | None] = asyncio.Queue()
        self._pending: asyncio.Queue[_Sent | None] = asyncio.Queue()
        self._thread = threading.Thread(target=self._capture, name=f"narrowcast-{source.name}", daemon=True)
        self._thread.start()
        self._tasks = [asyncio.create_task(self._send_all()), asyncio.create_task(self._report_all())]

    @property
    def client(self) -> Running:
        """The one that new frames go to."""
        return self._running

    @property
    def link(self) -> LinkCounters:
        """What all of the source's clients have done, those before included."""
        found = self.figures.link
        for one in {self._running, *self._retired}:
            found = found if one.ended else added(found, one.client.counters)
        return found

    @property
    def openings(self) -> int:
        """How often the source was opened, by the feeds before, too."""
        return self.figures.opened + (0 if self._feed_ended else self.feed.counters.openings)

    @property
    def hangs(self) -> int:
        """How many of those were given up."""
        return self.figures.hangs + (0 if self._feed_ended else self.feed.counters.hangs)

    @property
    def ended(self) -> bool:
        """Whether the source has, and all of its frames."""
        return self._tasks[1].done()

    def _make(self, tls: ClientTls | None) -> Running:
        return make_client(
            self.config, self.source, self.model, self.spool, self.figures, tls=tls,
            on_trouble=self._trouble, on_replayed=self._replayed,
        )  # fmt: skip

    def _trouble(self, line: str) -> None:
        log.warning("%s: %s", self.source.name, line)

    def _replayed(self, teller: Teller, replayed: Replayed) -> Awaitable[None]:
        if replayed.error is None:
            self.figures.answered_at = time.monotonic()
        self._outputs.tell(teller.replayed(replayed))
        return self._outputs.kept()

    # On the capturing thread.

    def _capture(self) -> None:
        try:
            with OneAhead(self._resized()) as ahead:
                for captured, ready in ahead:
                    self._room.acquire()
                    self._wait_for_link()
                    if self._giving_up:
                        self.figures.ledger.drop("closed")
                        self._room.release()
                    else:
                        self._encode(captured, ready)
        except BaseException as error:  # noqa: BLE001  (the daemon looks at it)
            self.failure = error
            if not self._giving_up:
                log.error("%s: the source ends: %s", self.source.name, str(error) or type(error).__name__)
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._queue.put_nowait, None)

    def _resized(self) -> Iterator[tuple[Captured, HandedOver]]:
        """Frames as they come, the next one while the head works on the one before."""
        for captured in self.feed:
            self.figures.captured_at = time.monotonic()
            yield captured, hand_over(captured, self._running.client.session.contract)

    def _wait_for_link(self) -> None:
        """Where frames are to wait for a server, they wait for a new link, too, when every server refuses this one."""
        while self.source.on_outage == "block" and self._running.client.failure is not None and not self._giving_up:
            time.sleep(0.05)

    def _encode(self, captured: Captured, ready: HandedOver) -> None:
        with self._mutex:
            running = self._running
            if not running.under_way:
                self._moved_at = time.monotonic()
            running.under_way += 1
        started = time.perf_counter()
        self._encoding_since = time.monotonic()
        try:
            encoded = running.client.prepare(ready.frame, None, started)
        except Exception as error:  # noqa: BLE001  (whatever a library raises: it is one frame's, and the ledger has it)
            self._done(running)
            self._not_encoded(captured, error)
            return
        finally:
            self._encoding_since = None
        self._failed_in_a_row = 0
        self.figures.level = encoded.level
        self._loop.call_soon_threadsafe(self._queue.put_nowait, _Sent(running, captured, encoded, started))

    def _not_encoded(self, captured: Captured, error: Exception) -> None:
        """A frame is lost. Images that are no frames may come as many as will; a head that fails may not.

        Raises:
            BackendError: it failed too often in a row.
        """
        self._unencoded += 1
        if self._unencoded & (self._unencoded - 1) == 0:  # 1, 2, 4, ...: no line for each
            ours = isinstance(error, NarrowcastError)
            log.warning(
                "%s: %s: %s (%d frames could not be encoded so far)", self.source.name, captured.name,
                error if ours else repr(error), self._unencoded, exc_info=None if ours else error,
            )  # fmt: skip
        if isinstance(error, FrameError):
            return
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= MAX_FAILURES:
            raise BackendError(
                f"{self._failed_in_a_row} frames in a row could not be encoded, at last {captured.name}: {error!r}"
            ) from error

    def _done(self, running: Running) -> None:
        with self._mutex:
            running.under_way -= 1
            self._moved_at = time.monotonic()
        self._room.release()

    # On the loop.

    async def _send_all(self) -> None:
        """Hands frames to their clients, in order."""
        while (sent := await self._queue.get()) is not None:
            frame_id, sent.running.frames = sent.running.frames, sent.running.frames + 1
            try:
                task: asyncio.Task[Result] | LinkError = await sent.running.client.submit_encoded(
                    sent.encoded, sent.started, captured_at=sent.captured.captured_at
                )
            except LinkError as error:
                task = error
            except Exception as error:  # a fault of ours: it is one frame's, and the ledger has it
                log.exception("%s: %s", self.source.name, sent.captured.name)
                task = LinkError(f"{type(error).__name__}: {error}")
            self._pending.put_nowait(sent._replace(frame_id=frame_id, result=task))
        self._pending.put_nowait(None)

    async def _report_all(self) -> None:
        """Tells results, in order."""
        while (sent := await self._pending.get()) is not None:
            try:
                self._report(sent, await sent.result if isinstance(sent.result, asyncio.Task) else sent.result)
            except (LinkError, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and not _cancelled(sent.result):
                    raise
                self._report(sent, error if isinstance(error, LinkError) else LinkError("cancelled"))
            except Exception:  # a frame that ends in a fault of ours is one frame
                log.exception("%s: %s", self.source.name, sent.captured.name)
            finally:
                self._done(sent.running)

    def _report(self, sent: _Sent, result: Result | LinkError | None) -> None:
        client, now = sent.running.client, time.monotonic()
        capture_us = client.capture_us(sent.captured.captured_at)
        if not isinstance(result, Result):
            assert result is not None
            teller, name = sent.running.teller, sent.captured.name
            self._outputs.tell(teller.failure(client.stream_id, sent.frame_id, capture_us, name, result))
            return
        if result.fate in ("answered", "local"):
            self.figures.latency.add(now - sent.captured.captured_at)
        if result.fate == "answered":
            self.figures.answered_at = now
            self._renewal_seconds = FIRST_RENEWAL_SECONDS
        teller, payload = sent.running.teller, sent.encoded.kind
        self._outputs.tell(teller.result(result, client.stream_id, capture_us, sent.captured.name, payload))

    async def change(self, config: DaemonConfig, source: SourceConfig, model: Model) -> None:
        """Goes on with another client. What :func:`check_source` found nothing wrong with does not fail here.

        The source itself, and what it is captured by, stay as they are.

        Raises:
            ConfigError: there is a data cap now, and what is used cannot be kept; nothing has changed then.
            CertificateError, KeyFileError, TokenError: files for TLS are no good any more; nothing has changed then.
            NarrowcastError: of :func:`check_source`; nothing has changed then.
        """
        # All that can fail comes before the old client is retired; the new one cannot be made before: its replays would
        # begin while the old one's still go on.
        await asyncio.to_thread(check_source, config, source, model)
        tls = tls_of(config)
        make_cap(config, source, self.figures)
        self.config, self.source, self.model = config, source, model
        old = self._running
        await old.client.retire()
        if self.spool is not None:  # one client at a time sends what is in it
            await asyncio.to_thread(self.spool.rewind)
        new = self._make(tls)
        with self._mutex:
            self._running = new
        self._retired.add(old)
        task = asyncio.create_task(self._end(old))
        self._old.add(task)
        task.add_done_callback(self._old.discard)

    async def _end(self, old: Running) -> None:
        """Closes a client when its last frame has ended."""
        while old.under_way and not self._giving_up:
            await asyncio.sleep(0.02)
        await old.client.close()
        if not old.ended:
            self.figures.end_client(old.client.counters)
            old.ended = True
        self._retired.discard(old)

    async def tick(self) -> None:
        """Once a second: a link that has failed for good is made anew, now and then."""
        client = self._running.client
        now = time.monotonic()
        if client.server is None:
            self._moved_at = now  # who waits for a link is not stuck
        if client.failure is None:
            self._renew_at = 0.0
        elif not self._renew_at:
            self._renew_later(str(client.failure))
        elif now >= self._renew_at and not self._stopping:
            self._renew_at = 0.0
            try:
                await self.change(self.config, self.source, self.model)
            except (NarrowcastError, OSError) as error:  # certificates that are being replaced, half of them there
                self._renew_later(str(error))

    def _renew_later(self, why: str) -> None:
        self._renew_at = time.monotonic() + self._renewal_seconds
        self._trouble(f"{why}; trying anew in {self._renewal_seconds:.0f} s")
        self._renewal_seconds = min(2 * self._renewal_seconds, LONGEST_RENEWAL_SECONDS)

    def stuck_seconds(self) -> float:
        """For how long a frame has not got on although nothing outside keeps it; 0 while there is none."""
        now, since = time.monotonic(), self._encoding_since
        with self._mutex:
            waited = now - self._moved_at if self._running.under_way else 0.0
        return max(waited, 0.0 if since is None else now - since)

    async def stop(self, seconds: float) -> None:
        """Takes no more frames, and ends those that are under way: by their answers, for so long; then as it has to be."""
        self._stopping = True
        await asyncio.to_thread(self.feed.close)
        if not self._feed_ended:
            self.figures.opened += self.feed.counters.openings
            self.figures.hangs += self.feed.counters.hangs
            self._feed_ended = True
        await asyncio.wait(self._tasks, timeout=seconds)
        if self.spool is not None and not self.ended:
            # Also what was captured and has not come to the head yet: there is a place for it.
            await asyncio.gather(*(one.client.give_up() for one in (*self._retired, self._running)))
            await asyncio.wait(self._tasks, timeout=SPOOLING_SECONDS)
        self._giving_up = True
        for _ in range(self.source.window):
            self._room.release()
        old = self._running
        await self._end(old)
        if self._old:
            await asyncio.wait(self._old)
        _, late = await asyncio.wait(self._tasks, timeout=2.0)
        for task in late:
            task.cancel()
        if self.spool is not None:
            await asyncio.to_thread(self.spool.close)


def _cancelled(result: object) -> bool:
    return isinstance(result, asyncio.Task) and result.cancelled()
