"""A tally in Prometheus' terms. Every metric is described in ``docs/operations.md``."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from narrowcast.tail.operations.histogram import Histogram
from narrowcast.tail.operations.tally import BATCH_BOUNDS, RESULTS, STAGES, Figures, ModelTally, level_name
from narrowcast.tail.operations.version import VERSION

_STREAMS = "narrowcast_streams"


def exposition(figures: Figures, accept: str = "") -> tuple[bytes, str]:
    """What ``/metrics`` answers to an ``Accept`` header: these figures, and the process' (``process_*``).

    It takes milliseconds per model, so it is for a thread of its own.

    Returns:
        body and content type: Prometheus' text, or OpenMetrics.
    """
    made = CollectorRegistry(auto_describe=False)
    made.register(FiguresCollector(figures))
    ProcessCollector(registry=made)
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # a version in ``Accept`` that is none, which the library falls over
        encode, content_type = choose_encoder("")
    return encode(made), content_type


class FiguresCollector(Collector):
    """Turns sums into metrics."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """See the library."""
        models = self._figures.models
        yield _build()
        yield from _frames(models)
        yield from _durations(models)
        yield from _batches(models, self._figures.queued)
        yield from _streams(models)
        clients = GaugeMetricFamily("narrowcast_clients", "Clients with at least one open stream.")
        clients.add_metric([], self._figures.clients)
        yield clients
        loaded = GaugeMetricFamily("narrowcast_models", "Bundles by state.", labels=["state"])
        for state, number in self._figures.states.items():
            loaded.add_metric([state], number)
        yield loaded
        for one, values in self._figures.further:
            family = CounterMetricFamily if one.counter else GaugeMetricFamily
            metric = family(one.name, one.text, labels=[one.label])
            for label, value in values.items():
                metric.add_metric([label], value)
            yield metric


def _build() -> Metric:
    info = GaugeMetricFamily(
        "narrowcast_build_info", "Always 1; what is running.", labels=["version", "python", "grpc"]
    )
    info.add_metric([VERSION, platform.python_version(), grpc.__version__], 1)
    return info


def _frames(models: Mapping[str, ModelTally]) -> Iterator[Metric]:
    frames = CounterMetricFamily("narrowcast_frames", "Frames by what became of them.", labels=["model", "result"])
    levels = CounterMetricFamily(
        "narrowcast_answered_frames", "Answered frames by rate point.", labels=["model", "level"]
    )
    for name, model in models.items():
        for code, count in sorted(model.results.items()):
            frames.add_metric([name, RESULTS.get(code, "UNKNOWN")], count)
        for level, count in sorted(model.levels.items()):
            levels.add_metric([name, level_name(level)], count)
    yield frames
    yield levels
    sums = {
        "narrowcast_received_bytes": ("Packets, without gRPC's framing.", "received_bytes"),
        "narrowcast_sent_bytes": ("Results, without gRPC's framing.", "sent_bytes"),
        "narrowcast_compared_bytes": (
            "Packets of answered frames: compare with narrowcast_raw_bytes.",
            "compared_bytes",
        ),
        "narrowcast_raw_bytes": ("The same frames as uint8 RGB of the network's input.", "raw_bytes"),
    }
    for metric, (text, attribute) in sums.items():
        counter = CounterMetricFamily(metric, text, labels=["model"])
        for name, model in models.items():
            counter.add_metric([name], getattr(model, attribute))
        yield counter


def _durations(models: Mapping[str, ModelTally]) -> Iterator[Metric]:
    stages = HistogramMetricFamily(
        "narrowcast_stage_duration_seconds", "Answered frames: time in each stage.", labels=["stage", "model"]
    )
    total = HistogramMetricFamily(
        "narrowcast_frame_duration_seconds",
        "Answered frames: from arrival to handing the result to the network.",
        labels=["model"],
    )
    for name, model in models.items():
        for stage, histogram in zip(STAGES, model.stages, strict=True):
            _add(stages, [stage, name], histogram)
        _add(total, [name], model.total)
    yield stages
    yield total


def _add(family: HistogramMetricFamily, labels: list[str], histogram: Histogram) -> None:
    buckets: Any = histogram.cumulative()
    family.add_metric(labels, buckets, histogram.total_seconds)


def _batches(models: Mapping[str, ModelTally], queues: Mapping[str, int]) -> Iterator[Metric]:
    sizes = HistogramMetricFamily("narrowcast_batch_size", "Frames per batch.", labels=["model"])
    queued = GaugeMetricFamily("narrowcast_queue_depth", "Frames that wait now.", labels=["model"])
    for name, model in models.items():
        buckets: list[Any] = []
        so_far = 0
        for bound, count in zip((*map(float, BATCH_BOUNDS), float("inf")), model.batches, strict=True):
            so_far += count
            buckets.append(("+Inf" if bound == float("inf") else repr(bound), so_far))
        sizes.add_metric([name], buckets, model.batch_frames)
        queued.add_metric([name], queues[name])
    yield sizes
    yield queued


def _streams(models: Mapping[str, ModelTally]) -> Iterator[Metric]:
    now = GaugeMetricFamily(_STREAMS, "Open streams.", labels=["model"])
    opened = CounterMetricFamily(f"{_STREAMS}_opened", "Streams that were accepted.", labels=["model"])
    closed = CounterMetricFamily(f"{_STREAMS}_closed", "Accepted streams that ended.", labels=["model", "reason"])
    refused = CounterMetricFamily("narrowcast_refusals", "Streams and calls turned away.", labels=["model", "code"])
    for name, model in models.items():
        now.add_metric([name], model.streams)
        opened.add_metric([name], model.opened)
        for reason, count in sorted(model.closed.items()):
            closed.add_metric([name, reason], count)
        for code, count in sorted(model.refused.items()):
            refused.add_metric([name, code], count)
    yield from (now, opened, closed, refused)
