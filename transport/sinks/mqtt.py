"""Records to an MQTT broker, one message each, QoS 1 (MQTT 3.1.1: at least once), by paho-mqtt.

A record goes to ``TOPIC/MODEL/TYPE``, for instance ``site/resnet50/result`` and ``site/resnet50/drift``.
"""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from narrowcast.transport.errors import ConfigError, MissingDependencyError
from narrowcast.transport.sinks.errors import SinkUnavailableError
from narrowcast.transport.sinks.records import Record

if TYPE_CHECKING:
    import paho.mqtt.client as paho

TIMEOUT_S = 10.0
_TARGET = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^/:\[\]]+):(?P<port>[0-9]{1,5})/(?P<topic>.+)")


class MqttTarget(NamedTuple):
    """``HOST:PORT/TOPIC``."""

    host: str
    port: int
    topic: str


def parse_target(text: str) -> MqttTarget:
    """``HOST:PORT/TOPIC``.

    Raises:
        ConfigError: it is not that, or the topic has wildcards.
    """
    match = _TARGET.fullmatch(text)
    if match is None or not 1 <= int(match["port"]) <= 65_535:
        raise ConfigError(
            f"{text[:200]!r} is no MQTT target: give HOST:PORT/TOPIC, for instance broker:8883/site/cameras"
        )
    topic = match["topic"].rstrip("/")
    if not topic or any(character in topic for character in "+#\0") or topic.startswith("$") or len(topic) > 1000:
        raise ConfigError(f"{topic[:200]!r} is no topic to publish to: no +, # or leading $, at most 1000 characters")
    return MqttTarget(match["host"].strip("[]"), int(match["port"]), topic)


class Mqtt:
    """A :class:`~narrowcast.transport.sinks.outbox.Sink`. Connects at the first delivery, and again whenever it must.

    Args:
        target: broker and topic.
        username, password: for the broker.
        tls: encrypt. ``ca`` is a file of certificates that the broker's must be signed by, in place of the system's.
        timeout_s: for connecting, and for the broker's word that it has a batch.

    Raises:
        MissingDependencyError: paho-mqtt is not installed.
        ConfigError: a CA file that cannot be used.
    """

    def __init__(
        self,
        target: MqttTarget,
        *,
        username: str | None = None,
        password: str | None = None,
        tls: bool = False,
        ca: Path | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        try:
            import paho.mqtt.client as paho
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError as error:
            raise MissingDependencyError(
                "an MQTT sink", "paho-mqtt", "pip install 'narrowcast[mqtt]'", error
            ) from error
        self.name = f"mqtt {target.host}:{target.port}"
        self._target, self._timeout_s = target, timeout_s
        self._username, self._password = username, password
        self._tls: ssl.SSLContext | None = None
        if tls or ca:
            try:
                self._tls = ssl.create_default_context(cafile=str(ca) if ca else None)
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(f"{ca} is no file of CA certificates: {error}") from error
        self._make = lambda: paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311)
        self._client: paho.Client | None = None
        self._answer: str | None = None
        self._answered = threading.Event()

    def deliver(self, records: Sequence[Record]) -> None:
        """See :class:`~narrowcast.transport.sinks.outbox.Sink`."""
        client = self._connected()
        deadline = time.monotonic() + self._timeout_s
        try:
            sent = [
                client.publish(f"{self._target.topic}/{record.model}/{record.type}", record.to_json(), qos=1)
                for record in records
            ]
            for message in sent:
                message.wait_for_publish(max(0.0, deadline - time.monotonic()))
            taken = sum(message.is_published() for message in sent)
        except (RuntimeError, ValueError) as error:
            self.close()
            raise SinkUnavailableError(f"publishing failed: {error}") from error
        if taken < len(records):
            self.close()
            raise SinkUnavailableError(f"the broker acknowledged {taken} of {len(records)} records")

    def _connected(self) -> paho.Client:
        """A client that is connected: a new one each time, for an old one would resend what the outbox sends again."""
        if self._client is not None and self._client.is_connected():
            return self._client
        self.close()
        client = self._client = self._make()  # type: ignore[no-untyped-call]
        client.connect_timeout = self._timeout_s
        if self._username is not None:
            client.username_pw_set(self._username, self._password)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        client.on_connect = self._told
        self._answer = None
        answered = self._answered = threading.Event()
        try:
            client.connect(self._target.host, self._target.port, keepalive=30)
        except (OSError, ValueError) as error:
            self._client = None
            raise SinkUnavailableError(f"cannot connect: {error}") from error
        client.loop_start()
        if not answered.wait(self._timeout_s) or self._answer is not None:
            self.close()
            raise SinkUnavailableError(f"the broker did not let us in: {self._answer or 'no answer'}")
        return client

    def _told(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        """On paho's thread: the broker's word on connecting."""
        self._answer = str(reason) if reason.is_failure else None
        self._answered.set()

    def close(self) -> None:
        """See :class:`~narrowcast.transport.sinks.outbox.Sink`."""
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()
            self._client = None
