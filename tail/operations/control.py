"""What operators may change over HTTP: with a token of theirs, and nothing else.

A token goes in a header that no browser adds by itself, so no page elsewhere can have one used (CSRF).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aiohttp import web

from narrowcast.tail.access_files import Watched
from narrowcast.tail.operations.logs import tell
from narrowcast.transport.pki.tokens import TokenTable, digest_of

if TYPE_CHECKING:
    from narrowcast.tail.drift import DriftWatch

ACCEPT_PATH = "/api/drift/accept"
_STREAM_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)


class Control:
    """Changes that operators make.

    Args:
        tokens: of operators.
        drift: watches cameras; None where nobody does.
    """

    def __init__(self, tokens: Watched[TokenTable], drift: DriftWatch | None) -> None:
        self._tokens = tokens
        self._drift = drift

    def follow(self) -> None:
        """Takes up a changed file of tokens."""
        self._tokens.refresh()

    async def accept(self, request: web.Request) -> web.Response:
        """What a camera (``client`` and ``stream_id`` of the query) sees now is normal."""
        operator = self._operator(request)
        client, stream_id = request.query.get("client", ""), request.query.get("stream_id", "")
        if not client or _STREAM_ID.fullmatch(stream_id) is None:
            raise web.HTTPBadRequest(
                text=f"{ACCEPT_PATH}?client=NAME&stream_id=32 hexadecimal digits, as /api/status tells them\n"
            )
        if self._drift is None or not self._drift.accept(client, bytes.fromhex(stream_id)):
            raise web.HTTPNotFound(text="no such camera is watched here\n")
        tell("drift_accepted", client=client, stream=stream_id, by=operator)
        return web.Response(text="its baseline is learned anew\n")

    def _operator(self, request: web.Request) -> str:
        """The name of whoever asks."""
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        name = self._tokens.value.find(digest_of(token.strip())) if kind.lower() == "bearer" else None
        if name is None:
            raise web.HTTPUnauthorized(
                text="this needs a token: Authorization: Bearer TOKEN (narrowcast keys token NAME --tokens FILE makes one)\n"
            )
        return name
