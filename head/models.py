"""What a tail server has: asked once, outside of any stream."""

from __future__ import annotations

import grpc

from narrowcast.head.errors import PeerUnreachableError, RefusedError
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.channels import CLIENT_OPTIONS, Address
from narrowcast.transport.rpc.credentials import ClientTls, explain, open_channel
from narrowcast.transport.rpc.tail_pb2_grpc import TailServiceStub


async def list_models(address: Address, *, tls: ClientTls | None, seconds: float = 10.0) -> list[pb.Model]:
    """The server's models, by name and release.

    Args:
        address: its.
        tls: certificates; None for plain TCP.
        seconds: how long to wait for the answer.

    Raises:
        PeerUnreachableError: it does not answer.
        RefusedError: it does not answer this client.
    """
    async with open_channel(address, tls, CLIENT_OPTIONS) as channel:
        try:
            answer = await TailServiceStub(channel).ListModels(pb.ListModelsRequest(), timeout=seconds)
        except grpc.aio.AioRpcError as error:
            code, details = error.code(), error.details() or ""
            reason = explain(address, code.name, tls, details) or f"{code.name}: {details}"
            kind = PeerUnreachableError if code.name in ("UNAVAILABLE", "DEADLINE_EXCEEDED") else RefusedError
            raise kind(f"no answer from a tail server at {address} ({reason})") from error
    return sorted(answer.models, key=lambda model: (model.name, model.release))
