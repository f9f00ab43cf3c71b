"""Spans, without a network. Those that a collector gets: integration/test_operations.py."""

from __future__ import annotations

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
