"""OpenTelemetry traces: a span per stream, and one per sampled frame with its stages inside.

What a caller says about its own trace (W3C ``traceparent`` and ``tracestate`` in the gRPC metadata) is honoured: its trace
goes on here, and where it is not sampled, nothing is. https://www.w3.org/TR/trace-context/

Imported only where traces are wanted; wants the extra ``otel``.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from narrowcast.tail.observe import FrameRecord, Silent, StreamInfo
from narrowcast.tail.operations.tally import RESULTS, STAGES
from narrowcast.tail.operations.version import VERSION

MAX_HEADER_CHARACTERS = 512  # of traceparent and tracestate; longer ones are as if they were not there
_HEADERS = ("traceparent", "tracestate")
_caller: ContextVar[Context | None] = ContextVar("caller", default=None)
_read = TraceContextTextMapPropagator().extract


class CallerTrace(grpc.aio.ServerInterceptor):
    """Keeps the caller's trace context for the length of a call."""

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """See the library."""
        carrier = {
            key: value
            for key, value in handler_call_details.invocation_metadata or ()
            if key in _HEADERS and isinstance(value, str) and len(value) <= MAX_HEADER_CHARACTERS
        }
        found = _read(carrier, Context()) if "traceparent" in carrier else Context()
        _caller.set(found if trace.get_current_span(found).get_span_context().is_valid else None)
        return await continuation(handler_call_details)


class Traces(Silent):
    """An :class:`~narrowcast.tail.observe.Observer` that writes spans.

    Args:
        exporter: takes them, on a thread of its own.
        every: of a stream, one frame in so many gets a span; likewise of calls whose caller has no trace of its own.
    """

    def __init__(self, exporter: SpanExporter, every: int = 100) -> None:
        resource = Resource.create({"service.name": "narrowcast-tail", "service.version": VERSION})
        self._provider = TracerProvider(sampler=ParentBased(ALWAYS_ON), resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("narrowcast.tail", VERSION)
        self._every = every
        # Several where a camera comes back before its old stream is closed: after every move to the same server.
        self._streams: dict[StreamInfo, deque[tuple[Span, Context]]] = {}
        self._frames: Counter[StreamInfo | None] = Counter()  # of each stream; of all single calls together

    def close(self, seconds: float = 5.0) -> None:
        """Hands over what is left, within about so long."""

        def hand_over() -> None:
            self._provider.force_flush(round(seconds * 1000))
            self._provider.shutdown()

        # Neither heeds a time limit while a collector that is down is tried again (opentelemetry-sdk 1.45).
        last = threading.Thread(target=hand_over, name="last traces", daemon=True)
        last.start()
        last.join(seconds)

    def stream_opened(self, stream: StreamInfo) -> None:
        """See :class:`~narrowcast.tail.observe.Observer`."""
        span = self._tracer.start_span("narrowcast.stream", _caller.get() or Context(), SpanKind.SERVER, _about(stream))
        self._streams.setdefault(stream, deque()).append((span, trace.set_span_in_context(span, Context())))

    def stream_closed(self, stream: StreamInfo, reason: str) -> None:
        """See :class:`~narrowcast.tail.observe.Observer`."""
        spans = self._streams.get(stream)
        if spans is None:
            return
        oldest, _ = spans.popleft()
        if not spans:
            del self._streams[stream]
            self._frames.pop(stream, None)
        _end(oldest, reason, time.time_ns())

    def refused(self, client: str, model: str, code: str) -> None:
        """See :class:`~narrowcast.tail.observe.Observer`."""
        about = _about(StreamInfo(client, model, b""))
        span = self._tracer.start_span("narrowcast.refused", _caller.get() or Context(), SpanKind.SERVER, about)
        _end(span, code, time.time_ns())

    def frame_done(self, record: FrameRecord) -> None:
        """See :class:`~narrowcast.tail.observe.Observer`."""
        found = self._streams.get(record.stream)
        parent = found[-1][1] if found is not None else None if record.stream.stream_id else _caller.get()
        if found is not None or parent is None:
            counted = record.stream if found is not None else None
            self._frames[counted] += 1
            if self._frames[counted] % self._every:
                return
        self._write(record, parent or Context(), SpanKind.INTERNAL if found else SpanKind.SERVER)

    def _write(self, record: FrameRecord, parent: Context, kind: SpanKind) -> None:
        """A frame's span with its stages, all of them in the past."""
        times, end = record.result.times, time.time_ns()
        stages_ns = [times.queue_us * 1000, times.decode_us * 1000, times.tail_us * 1000, round(record.encode_ms * 1e6)]
        start = end - max(times.total_us * 1000, sum(stages_ns))
        about = _about(record.stream) | {
            "narrowcast.release": record.release,
            "narrowcast.frame_id": record.packet.frame_id,
            "narrowcast.level": record.packet.level,
            "narrowcast.packet_bytes": record.packet_bytes,
            "narrowcast.result_bytes": record.result_bytes,
            "narrowcast.batch": times.batch,
        }
        span = self._tracer.start_span("narrowcast.frame", parent, kind, about, start_time=start)
        if span.is_recording():
            inside, at = trace.set_span_in_context(span, Context()), start
            for stage, spent_ns in zip(STAGES, stages_ns, strict=True):
                part = self._tracer.start_span(f"narrowcast.{stage}", inside, start_time=at)
                at += spent_ns
                part.end(at)
        _end(span, RESULTS.get(record.result.code, "UNKNOWN"), end)


def otlp_exporter(endpoint: str) -> SpanExporter:
    """Sends spans by OTLP over gRPC to ``http://HOST:PORT``, or ``https://`` for TLS."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"))


def _about(stream: StreamInfo) -> dict[str, Any]:
    about = {"narrowcast.client": stream.client[:120], "narrowcast.model": stream.model[:120]}
    return about | ({"narrowcast.stream_id": stream.stream_id.hex()} if stream.stream_id else {})


def _end(span: Span, result: str, at: int) -> None:
    span.set_attribute("narrowcast.result", result)
    if result not in {"OK", "CANCELLED"}:
        span.set_status(Status(StatusCode.ERROR, result))
    span.end(at)
