"""This machine's end of a conversation with the agent on a board (:mod:`narrowcast.devices.flash.agent.wire`)."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any

from narrowcast.devices.flash.answers import printable
from narrowcast.devices.flash.errors import BoardError, BoardUnreachableError, FlashError, SudoError, from_board
from narrowcast.devices.flash.packing import agent_zip, session_command
from narrowcast.devices.flash.ssh import FAILED, Ssh

PIECE_BYTES = 4 * 1024 * 1024
END_SECONDS = 10.0
MAX_LINE_BYTES = 16 * 1024 * 1024

Tell = Callable[[int], None]


class LinkLostError(BoardUnreachableError):
    """The connection broke in the middle; the board goes on by itself with what it was told to do."""


class Session:
    """A conversation. Use it as a context.

    Args:
        ssh: to the board.
        python: the board's interpreter.
        root: the agent runs by ``sudo -n``.
    """

    def __init__(self, ssh: Ssh, python: str, *, root: bool) -> None:
        self._ssh = ssh
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the session)
        command = ssh.command(session_command(python, root=root))
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        agent = agent_zip()
        self._send(f"{len(agent)}\n".encode() + agent)

    @property
    def board(self) -> str:
        """The board, as the user named it."""
        return self._ssh.destination.text

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(OSError):
                stream.close()
        try:
            self._process.wait(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def call(self, op: str, **arguments: Any) -> Any:
        """A request; its answer.

        Raises:
            FlashError: what the board says is wrong.
            LinkLostError: the link broke.
        """
        events = self.events(op, **arguments)
        while True:
            try:
                next(events)
            except StopIteration as end:
                return end.value

    def events(self, op: str, **arguments: Any) -> Generator[dict[str, Any], None, Any]:
        """A request; what happens on the way. The generator's value is the answer. Raises what :meth:`call` does."""
        self._send(json.dumps({"op": op, **arguments}).encode() + b"\n")
        while True:
            message = self._receive()
            if "event" in message:
                yield message["event"] if isinstance(message["event"], dict) else {}
            elif "error" in message:
                raise _named(message["error"])
            else:
                return message.get("ok")

    def beat(self) -> None:
        """Says that we are here, while there is nothing to ask: the board's lock is kept for who is heard once a minute.

        Nothing is raised where the link is gone: the next call says so.
        """
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(b'{"op": "beat"}\n')
            self._process.stdin.flush()

    def put(self, data: bytes, sha256: str, have: int, tell: Tell) -> None:
        """Sends the rest of a file.

        Args:
            data: all of it.
            sha256: of all of it.
            have: so many of its first bytes are there.
            tell: is told how many bytes are there.

        Raises:
            FlashError: as :meth:`call`.
        """
        while have < len(data):
            piece = data[have : have + PIECE_BYTES]
            request = {"op": "put", "sha256": sha256, "offset": have, "bytes": len(piece), "total": len(data)}
            self._send(json.dumps(request).encode() + b"\n" + piece)
            message = self._receive()
            if "error" in message:
                raise _named(message["error"])
            have += len(piece)
            tell(have)

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except OSError as error:
            raise self._lost() from error

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline(MAX_LINE_BYTES)
        if not line.endswith(b"\n"):
            raise self._lost()
        try:
            message = json.loads(line)
        except ValueError as error:
            raise BoardError(f"{self._ssh.destination.text} answered {line[:100]!r}, which is no answer") from error
        if not isinstance(message, dict):
            raise BoardError(f"{self._ssh.destination.text} answered {line[:100]!r}, which is no answer")
        return message

    def _lost(self) -> FlashError:
        """Why the conversation ended."""
        try:
            code: int | None = self._process.wait(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").strip()
        name = self._ssh.destination.text
        if "sudo:" in said:
            return SudoError(f"{name}: {said.splitlines()[-1]}; `sudo -n true` must work there")
        if code not in (None, 0, FAILED) and said:
            return BoardError(f"{name}: the board's end failed: {said.splitlines()[-1][:300]}")
        return LinkLostError(f"the connection to {name} broke{': ' + said.splitlines()[-1][:200] if said else ''}")


def _named(error: Any) -> FlashError:
    """What a board says is wrong."""
    found = error if isinstance(error, dict) else {}
    return from_board(str(found.get("kind")), printable(str(found.get("message"))))
