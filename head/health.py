"""The client's half of the standard health service (grpc.health.v1).

Two messages of one field each; the package that has them is for servers, and boards do without it.
"""

from __future__ import annotations

from enum import IntEnum

import grpc

_CHECK = "/grpc.health.v1.Health/Check"
# Statuses that are no answer of a peer, but the want of one.
_NO_ANSWER = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}


class Health(IntEnum):
    """``HealthCheckResponse.ServingStatus``."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


async def check(channel: grpc.aio.Channel, service: str) -> Health | None:
    """What a server says about a service, by ``Check`` on a channel that is there already; waits without a bound.

    Returns:
        None where the server lives and has no health service, or does not tell this client.

    Raises:
        grpc.aio.AioRpcError: no server answers.
    """
    call = channel.unary_unary(_CHECK, request_serializer=_request, response_deserializer=_status)
    try:
        return await call(service)
    except grpc.aio.AioRpcError as error:
        if error.code() in _NO_ANSWER:
            raise
        return Health.SERVICE_UNKNOWN if error.code() is grpc.StatusCode.NOT_FOUND else None


def _request(service: str) -> bytes:
    """``HealthCheckRequest``: field 1, the service's name."""
    name, length = service.encode(), b""
    left = len(name)
    while left > 0x7F:
        length, left = length + bytes([left & 0x7F | 0x80]), left >> 7
    return b"\x0a" + length + bytes([left]) + name if name else b""


def _status(data: bytes) -> Health:
    """``HealthCheckResponse``: field 1, a number that is left out where it is 0."""
    known = len(data) == 2 and data[0] == 0x08 and data[1] in set(Health)
    return Health(data[1]) if known else Health.UNKNOWN
