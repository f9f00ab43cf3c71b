"""Spans, without a network. Those that a collector gets: integration/test_operations.py."""

from __future__ import annotations

import threading

import pytest
from support.tallied import STREAM, record

pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` is not installed")


def test_frames_stay_inside_their_stream_when_a_camera_moves_to_the_same_server():
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from narrowcast.tail.operations.traces import Traces

    exporter = InMemorySpanExporter()
    traces = Traces(exporter, every=1)
    traces.stream_opened(STREAM)
    traces.stream_opened(STREAM)  # the next one, before the drained one is closed
    traces.stream_closed(STREAM, "OK")
    traces.frame_done(record())
    traces.stream_closed(STREAM, "UNAVAILABLE")
    assert not traces._streams
    traces.close()
    spans = {span.context.span_id: span for span in exporter.get_finished_spans()}
    streams = [span for span in spans.values() if span.name == "narrowcast.stream"]
    assert [span.attributes["narrowcast.result"] for span in streams] == ["OK", "UNAVAILABLE"]
    (frame,) = (span for span in spans.values() if span.name == "narrowcast.frame")
    assert frame.parent is not None
    assert spans[frame.parent.span_id] is streams[1]


def test_of_every_stream_one_frame_in_so_many_also_where_cameras_are_in_step():
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from narrowcast.tail.operations.traces import Traces

    exporter = InMemorySpanExporter()
    traces, streams = Traces(exporter, every=4), [STREAM, STREAM._replace(stream_id=b"t" * 16)]
    for stream in streams:
        traces.stream_opened(stream)
    for _ in range(16):
        for stream in streams:
            traces.frame_done(record(stream))
    for stream in streams:
        traces.stream_closed(stream, "OK")
    assert not traces._frames
    traces.close()
    frames = [span for span in exporter.get_finished_spans() if span.name == "narrowcast.frame"]
    ids = [span.attributes["narrowcast.stream_id"] for span in frames]
    assert [ids.count(stream.stream_id.hex()) for stream in streams] == [4, 4]


def test_an_exporter_that_hangs_keeps_nobody():
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from narrowcast.tail.operations.traces import Traces

    go, given_up = threading.Event(), threading.Event()

    class Hanging(InMemorySpanExporter):
        def export(self, spans):
            if not go.wait(60):
                given_up.set()
            return super().export(spans)

    traces = Traces(Hanging(), every=1)
    traces.stream_opened(STREAM)
    traces.stream_closed(STREAM, "OK")
    traces.close(seconds=0.1)
    assert not given_up.is_set()
    go.set()
