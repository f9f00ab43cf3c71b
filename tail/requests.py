"""Requests that are no messages of the method that they call."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from narrowcast.tail.access import Context

_NO_MESSAGE = "bytes that are no message of this method"
# By whether requests, and whether responses, are streams.
METHOD_KINDS: dict[tuple[bool, bool], tuple[str, Callable[..., grpc.RpcMethodHandler[Any, Any]]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


class SoundRequests(grpc.aio.ServerInterceptor):
    """Ends calls whose requests are no messages with INVALID_ARGUMENT; the innermost interceptor.

    gRPC itself answers UNKNOWN and writes a traceback for each, before anybody was asked who calls: whoever reaches the port
    could fill the disk.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See gRPC."""
        handler = await continuation(handler_call_details)
        return None if handler is None else _sound(handler)


def _sound(handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
    kind, make = METHOD_KINDS[bool(handler.request_streaming), bool(handler.response_streaming)]
    method, read = getattr(handler, kind), handler.request_deserializer

    def request(data: bytes) -> Any:
        """The message; where there is none, the error, for the method's place to tell it."""
        try:
            return data if read is None else read(data)
        except DecodeError as error:
            if handler.request_streaming:  # raised where the method reads it
                raise
            return error

    async def call(message: Any, context: Context) -> Any:
        if isinstance(message, DecodeError):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _NO_MESSAGE)
        return await method(message, context)

    async def generate(message: Any, context: Context) -> AsyncIterator[Any]:
        if isinstance(message, DecodeError):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _NO_MESSAGE)
        try:
            async for response in method(message, context):
                yield response
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _NO_MESSAGE)

    return make(
        generate if inspect.isasyncgenfunction(method) else call,
        request_deserializer=request,
        response_serializer=handler.response_serializer,
    )
