"""Settings of outputs: one table ``[[outputs]]`` each, told apart by ``kind``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Union

import msgspec
from msgspec import Meta

from narrowcast.transport.structs import Settings

At = Callable[[str], str]
Mib = Annotated[int, Meta(ge=1, le=1_000_000)]


class LinesOutput(Settings, frozen=True, tag_field="kind", tag="lines"):
    """JSON lines to ``path``, or to stdout (``-``). The file is opened anew at SIGHUP."""

    path: str = "-"

    @property
    def key(self) -> str:
        """What names it among all outputs."""
        return f"lines {self.path}"

    def placed(self, at: At) -> LinesOutput:
        """With absolute paths."""
        return self if self.path == "-" else msgspec.structs.replace(self, path=at(self.path))


class SocketOutput(Settings, frozen=True, tag_field="kind", tag="socket"):
    """JSON lines to whoever connects to the Unix socket ``path``, from then on. ``readers``: how many may at once.

    ``mode``: the socket's permissions, in octal.
    """

    path: str
    readers: Annotated[int, Meta(ge=1, le=1024)] = 16
    mode: Annotated[str, Meta(pattern=r"^0?[0-7]{3}\Z")] = "0660"

    @property
    def key(self) -> str:
        """What names it among all outputs."""
        return f"socket {self.path}"

    def placed(self, at: At) -> SocketOutput:
        """With absolute paths."""
        return msgspec.structs.replace(self, path=at(self.path))


class WebhookOutput(Settings, frozen=True, tag_field="kind", tag="webhook"):
    """POSTs to ``url``, signed with what is in ``secret_file``; see ``docs/results-schema.md``.

    ``durable``: undelivered records are kept on disk, over restarts, up to ``durable_mib``.
    """

    url: str
    secret_file: str | None = None
    ca: str | None = None
    durable: bool = False
    durable_mib: Mib = 64

    @property
    def key(self) -> str:
        """What names it among all outputs."""
        return f"webhook {self.url}"

    def placed(self, at: At) -> WebhookOutput:
        """With absolute paths."""
        secret, ca = self.secret_file and at(self.secret_file), self.ca and at(self.ca)
        return msgspec.structs.replace(self, secret_file=secret, ca=ca)


class MqttOutput(Settings, frozen=True, tag_field="kind", tag="mqtt"):
    """Publishes to ``broker``, ``HOST:PORT/TOPIC``, with QoS 1. ``durable`` as of a webhook."""

    broker: str
    user: str | None = None
    password_file: str | None = None
    tls: bool = False
    ca: str | None = None
    durable: bool = False
    durable_mib: Mib = 64

    def __post_init__(self) -> None:
        """What single fields cannot say."""
        if self.password_file is not None and self.user is None:
            raise ValueError("password_file goes with user, which is not given")

    @property
    def key(self) -> str:
        """What names it among all outputs."""
        return f"mqtt {self.broker}"

    def placed(self, at: At) -> MqttOutput:
        """With absolute paths."""
        password, ca = self.password_file and at(self.password_file), self.ca and at(self.ca)
        return msgspec.structs.replace(self, password_file=password, ca=ca)


Output = Union[LinesOutput, SocketOutput, WebhookOutput, MqttOutput]  # noqa: UP007  (read at run time, on Python 3.10, too)
