"""Where results go: any number of outputs, each with a queue and a thread of its own, so that none holds up another."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from narrowcast.head.daemon.output_config import LinesOutput, MqttOutput, Output, SocketOutput, WebhookOutput
from narrowcast.head.daemon.outputs.lines import JsonLines
from narrowcast.head.daemon.outputs.readers import Readers
from narrowcast.head.daemon.records import Telling
from narrowcast.transport.sinks import Outbox, Record, Sink, SinkCounts
from narrowcast.transport.sinks.durable import MIB, DurableOutbox
from narrowcast.transport.sinks.secrets import read_secret

log = logging.getLogger(__name__)


def make_sink(output: Output) -> Sink:
    """Where an output's records go to. Nothing is opened or connected yet.

    Raises:
        ConfigError: no such URL, broker or file.
        MissingDependencyError: MQTT without paho-mqtt.
    """
    if isinstance(output, LinesOutput):
        return JsonLines(output.path)
    if isinstance(output, SocketOutput):
        return Readers(Path(output.path), output.readers, int(output.mode, 8))
    if isinstance(output, WebhookOutput):
        from narrowcast.transport.sinks.webhook import Webhook

        secret = b"" if output.secret_file is None else read_secret(Path(output.secret_file)).encode()
        return Webhook(output.url, secret=secret, ca=None if output.ca is None else Path(output.ca))
    from narrowcast.transport.sinks.mqtt import Mqtt, parse_target

    password = None if output.password_file is None else read_secret(Path(output.password_file))
    return Mqtt(
        parse_target(output.broker), username=output.user, password=password, tls=output.tls,
        ca=None if output.ca is None else Path(output.ca),
    )  # fmt: skip


def _secrets_of(output: Output) -> list[bytes | None]:
    """What lies in the files that a sink is made of: they may be replaced under the same names."""
    names = [getattr(output, key, None) for key in ("secret_file", "password_file", "ca")]
    found: list[bytes | None] = []
    for name in names:
        try:
            found.append(None if name is None else Path(name).read_bytes())
        except OSError:
            found.append(None)
    return found


class _Open:
    """One output that runs."""

    def __init__(self, output: Output, sink: Sink, state: Path) -> None:
        self.output, self._secrets = output, _secrets_of(output)
        self.durable: DurableOutbox | None = None
        self.box: Outbox[Telling] | None = None
        self.readers = sink if isinstance(sink, Readers) else None
        self._held: list[Telling] | None = None  # while it waits for what another one leaves
        self._old: _Open | None = None  # that one
        self._before = SinkCounts(0, 0, 0, 0, 0)  # and its counts, once it has ended
        if isinstance(output, WebhookOutput | MqttOutput) and output.durable:
            name = hashlib.sha256(output.key.encode()).hexdigest()[:12]
            self.durable = DurableOutbox(sink, state / "outbox" / f"{name}.db", max_bytes=output.durable_mib * MIB)
            return
        local = isinstance(output, LinesOutput | SocketOutput)
        self.box = Outbox(
            sink, lambda telling: telling.record, weigh=lambda telling: telling.weight, linger_s=0.0 if local else 0.2
        )

    @property
    def _any(self) -> DurableOutbox | Outbox[Telling]:
        box = self.durable or self.box
        assert box is not None
        return box

    @property
    def sink(self) -> Sink:
        return self._any.sink

    def tell(self, telling: Telling) -> None:
        if self.readers is not None and not len(self.readers):
            return
        if self._held is not None:
            self._held.append(telling)
        elif self.durable is not None:
            self.durable.keep(telling.record)
        else:
            assert self.box is not None
            self.box.put(telling)

    def can_become(self, output: Output) -> bool:
        """Whether it goes on with other settings, and all that waits in it."""
        return getattr(output, "durable", False) == (self.durable is not None)

    def become(self, output: Output, sink: Sink) -> None:
        """Takes over other settings, and what lies now in files that they name."""
        secrets = _secrets_of(output)
        if (output, secrets) == (self.output, self._secrets):
            return
        self.output, self._secrets = output, secrets
        if isinstance(output, SocketOutput) and self.readers is not None:
            self.readers.change(output.readers, int(output.mode, 8))
            return
        self._any.replace_sink(sink)
        if self.durable is not None and isinstance(output, WebhookOutput | MqttOutput):
            self.durable.change_limit(output.durable_mib * MIB)

    def inherit(self, old: _Open) -> None:
        """Waits for :meth:`take_over` with what it is told, so that all comes in order, and counts on."""
        self._old, self._held = old, []

    async def take_over(self, old: _Open) -> None:
        """Ends another one and takes what that leaves; what it leaves on disk waits for the next one that is durable."""
        left = [] if old.box is None else await asyncio.to_thread(old.box.end, 2.0)
        if old.box is None:
            await old.close(2.0)
        self._before, self._old = old.counts, None
        left, self._held = [*left, *(self._held or [])], None
        for telling in left:
            self.tell(telling)

    @property
    def settled(self) -> Callable[[], bool]:
        """Tells, from now on, whether all that it was told until now is on disk, where it is to be, or was dropped.

        Or cannot be put there: where a spool has filled the disk, it is for the spool to go on and make room.
        """
        box, taken = self.durable, 0 if self.durable is None else self.durable.taken
        if self._held is not None:
            return lambda: self._held is None
        return lambda: box is None or box.settled >= taken or box.unwritable

    @property
    def counts(self) -> SinkCounts:
        now, before = self._any.counts, self._before if self._old is None else self._old.counts
        waiting = now.waiting + len(self._held or ()) + (0 if self._old is None else before.waiting)
        return SinkCounts(
            now.delivered + before.delivered, now.dropped + before.dropped, now.rejected + before.rejected,
            now.retries + before.retries, waiting,
        )  # fmt: skip

    async def close(self, seconds: float) -> None:
        counts = await asyncio.to_thread(self._any.close, seconds)
        if self.durable is not None and counts.waiting:
            log.info("%s: %d records wait on disk for the next start", self.sink.name, counts.waiting)
        if self.readers is not None:
            await self.readers.stop()


class Outputs:
    """All outputs of a daemon, on its loop.

    Args:
        state: the daemon's folder: what is durable lies in ``outbox``.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._open: dict[str, _Open] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def change(self, outputs: list[Output]) -> None:
        """From now on these. Those that are there already go on with what waits, with their files opened and read anew.

        Raises:
            ConfigError, MissingDependencyError, ListenError: one of them cannot be; nothing has changed then.
        """
        wanted = {output.key: output for output in outputs}
        sinks = {key: make_sink(output) for key, output in wanted.items()}
        made: dict[str, _Open] = {}
        try:
            for key, output in wanted.items():
                if key not in self._open or not self._open[key].can_become(output):
                    made[key] = await self._made(output, sinks[key])
        except BaseException:
            await asyncio.gather(*(one.close(0.0) for one in made.values()))
            raise
        for key, one in self._open.items():
            if key in wanted and key not in made:
                one.become(wanted[key], sinks[key])
        old, self._open = self._open, {key: made.get(key) or self._open[key] for key in wanted}
        for one in self._open.values():
            if isinstance(one.sink, JsonLines):
                one.sink.reopen()
        for key, one in old.items():
            if self._open.get(key) is not one:
                self._end(one, self._open.get(key))
        if self._ending:
            await asyncio.wait(self._ending)

    async def _made(self, output: Output, sink: Sink) -> _Open:
        if isinstance(sink, Readers):
            await sink.start()
        return await asyncio.to_thread(_Open, output, sink, self._state)  # which opens files

    def _end(self, old: _Open, heir: _Open | None) -> None:
        """Soon; whoever waits for it may stop waiting."""
        if heir is not None:
            heir.inherit(old)
        task = asyncio.create_task(old.close(2.0) if heir is None else heir.take_over(old))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def kept(self) -> None:
        """Returns when all that was told until now is on disk, where it is to be durable and can be, or was dropped."""
        unsettled = [one.settled for one in self._open.values()]
        while unsettled := [settled for settled in unsettled if not settled()]:
            await asyncio.sleep(0.02)

    def tell(self, telling: Telling) -> None:
        """To all of them; returns at once."""
        for one in self._open.values():
            one.tell(telling)

    def counts(self) -> dict[str, SinkCounts]:
        """What became of what was told, by sink; several of one name have a number behind it."""
        found: dict[str, SinkCounts] = {}
        for one in self._open.values():
            number = sum(name.partition(" #")[0] == one.sink.name for name in found)
            found[f"{one.sink.name} #{number + 1}" if number else one.sink.name] = one.counts
        return found

    async def close(self, seconds: float) -> None:
        """Delivers what waits, for so long."""
        if self._ending:
            await asyncio.wait(self._ending)
        await asyncio.gather(*(one.close(seconds) for one in self._open.values()))
        self._open.clear()


__all__ = ["Output", "Outputs", "Record", "make_sink"]
