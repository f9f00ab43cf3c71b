"""Where results go: any number of outputs, each with a queue and a thread of its own, so that none holds up another."""

from __future__ import annotations

import asyncio
import hashlib
import logging
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


class _Open:
    """One output that runs."""

    def __init__(self, output: Output, sink: Sink, state: Path) -> None:
        self.output, self.sink = output, sink
        self.durable: DurableOutbox | None = None
        self.box: Outbox[Telling] | None = None
        if isinstance(output, WebhookOutput | MqttOutput) and output.durable:
            name = hashlib.sha256(output.key.encode()).hexdigest()[:12]
            self.durable = DurableOutbox(sink, state / "outbox" / f"{name}.db", max_bytes=output.durable_mib * MIB)
            return
        local = isinstance(output, LinesOutput | SocketOutput)
        self.box = Outbox(
            sink, lambda telling: telling.record, weigh=lambda telling: telling.weight, linger_s=0.0 if local else 0.2
        )

    def tell(self, telling: Telling) -> None:
        if isinstance(self.sink, Readers) and not len(self.sink):
            return
        if self.durable is not None:
            self.durable.keep(telling.record)
        else:
            assert self.box is not None
            self.box.put(telling)

    @property
    def counts(self) -> SinkCounts:
        box = self.durable or self.box
        assert box is not None
        return box.counts

    async def close(self, seconds: float) -> None:
        box = self.durable or self.box
        assert box is not None
        counts = await asyncio.to_thread(box.close, seconds)
        if self.durable is not None and counts.waiting:
            log.info("%s: %d records wait on disk for the next start", self.sink.name, counts.waiting)
        if isinstance(self.sink, Readers):
            await self.sink.stop()


class Outputs:
    """All outputs of a daemon, on its loop.

    Args:
        state: the daemon's folder: what is durable lies in ``outbox``.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._open: dict[str, _Open] = {}

    async def change(self, outputs: list[Output]) -> None:
        """From now on these; those that are there already go on, with their files opened anew.

        Raises:
            ConfigError, MissingDependencyError: one of them cannot be; all that were there go on.
            ListenError: a socket cannot be listened on; what came before it in the list is changed.
        """
        wanted = {output.key: output for output in outputs}
        gone = [one for key, one in self._open.items() if wanted.get(key) != one.output]
        sinks = {key: make_sink(one) for key, one in wanted.items() if key not in self._open or self._open[key] in gone}
        for one in gone:  # before others take their place: an address or file is used by one
            await one.close(2.0)
            del self._open[one.output.key]
        for key, sink in sinks.items():
            if isinstance(sink, Readers):
                await sink.start()
            self._open[key] = _Open(wanted[key], sink, self._state)
        for one in self._open.values():
            if isinstance(one.sink, JsonLines):
                one.sink.reopen()

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
        await asyncio.gather(*(one.close(seconds) for one in self._open.values()))
        self._open.clear()


__all__ = ["Output", "Outputs", "Record", "make_sink"]
