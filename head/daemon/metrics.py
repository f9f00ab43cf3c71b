"""A daemon's figures for Prometheus: its text format over HTTP, and as a file for node_exporter."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from narrowcast.head.daemon.figures import BOUNDS
from narrowcast.transport.files import replacing

if TYPE_CHECKING:
    from narrowcast.head.daemon.daemon import Daemon

log = logging.getLogger(__name__)


class Metrics(Collector):
    """Reads the daemon's counters when it is asked: a frame costs nothing for it. On the daemon's loop.

    Args:
        daemon: whose.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        self._failed = False

    def text(self) -> bytes:
        """In Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)

    def write(self, path: Path) -> None:
        """A textfile for node_exporter, replaced as a whole. A disk that does not take it is told of once."""
        try:
            with replacing(path, mode=0o644, sync=False) as out:
                out.write(self.text())
        except OSError as error:
            if not self._failed:
                log.warning("%s cannot be written: %s", path, error.strerror or error)
            self._failed = True
        else:
            self._failed = False

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield from self._of_sources()
        yield from self._of_outputs()
        status = self._daemon.status()
        info = GaugeMetricFamily(
            "narrowcast_edge_model_info", "The model that runs.", labels=["model", "release", "fingerprint"]
        )
        info.add_metric([status.model.name, str(status.model.release), status.model.fingerprint], 1)
        yield info
        yield GaugeMetricFamily(
            "narrowcast_edge_ready", "1 while frames are taken and none is stuck.", float(status.ready)
        )
        yield GaugeMetricFamily(
            "narrowcast_edge_refused", "1 while the settings or the bundle on disk are not those that run.",
            float(status.refused is not None),
        )  # fmt: skip
        yield CounterMetricFamily(
            "narrowcast_edge_model_changes", "Models that took the place of another one.", self._daemon.model_changes
        )
        if status.rss_bytes is not None:
            yield GaugeMetricFamily("narrowcast_edge_resident_memory_bytes", "Resident memory.", status.rss_bytes)
        yield GaugeMetricFamily("narrowcast_edge_start_time_seconds", "Start, since 1970 UTC.", self._daemon.started_at)
        on_socket = self._daemon.socket_bytes()
        if on_socket is not None:
            bytes_ = CounterMetricFamily(
                "narrowcast_edge_socket_bytes", "TCP payload to and from the servers, framing and TLS included.",
                labels=["direction"],
            )  # fmt: skip
            bytes_.add_metric(["sent"], on_socket.sent)
            bytes_.add_metric(["received"], on_socket.received)
            yield bytes_

    def _of_sources(self) -> Iterator[Metric]:
        frames = CounterMetricFamily(
            "narrowcast_edge_frames", "Frames by what became of them.", labels=["source", "fate", "reason"]
        )
        under_way = GaugeMetricFamily(
            "narrowcast_edge_frames_under_way", "Frames without an end yet.", labels=["source"]
        )
        latency = HistogramMetricFamily(
            "narrowcast_edge_latency_seconds", "From a frame's capture to its answer.", labels=["source"]
        )
        for name, figures in self._daemon.figures.items():
            account = figures.ledger.account
            for fate, count in (
                ("answered", account.answered), ("local", account.local), ("spooled", account.spooled)
            ):  # fmt: skip
                frames.add_metric([name, fate, ""], count)
            for reason, count in sorted(account.dropped.items()):
                frames.add_metric([name, "dropped", reason], count)
            under_way.add_metric([name], account.under_way)
            total, buckets = 0, []
            for bound, count in zip([*map(str, BOUNDS), "+Inf"], figures.latency.counts, strict=True):
                total += count
                buckets.append((bound, float(total)))
            latency.add_metric([name], buckets, figures.latency.seconds)
        yield from (frames, under_way, latency)
        yield from self._of_links()

    def _of_links(self) -> Iterator[Metric]:
        def counter(name: str, text: str) -> CounterMetricFamily:
            return CounterMetricFamily(f"narrowcast_edge_{name}", text, labels=["source"])

        def gauge(name: str, text: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"narrowcast_edge_{name}", text, labels=["source"])

        packets = counter("packets_sent", "Packets that were sent.")
        packet_bytes = counter("packet_bytes_sent", "Their bytes.")
        resent = counter("packets_resent", "Packets that were sent once more.")
        streams = counter("streams_opened", "Streams that servers took.")
        hangs = counter("server_hangs", "Streams that were left because nothing was heard any more.")
        late = counter("results_late", "Answers that came when nobody waited any more.")
        up = gauge("link_up", "1 while there is a stream to a server.")
        level = gauge("level", "The last frame's rate point.")
        openings = counter("source_openings", "Times the source was opened; a healthy one's stays at 1.")
        stuck = counter("source_hangs", "Openings that the watchdog gave up.")
        waiting = gauge("spool_frames", "Frames that wait in the spool.")
        size = gauge("spool_bytes", "The spool's size on disk.")
        for name, figures in self._daemon.figures.items():
            lane = self._daemon.lanes.get(name)
            link = figures.link if lane is None else lane.link
            for family, value in (
                (packets, link.packets_sent), (packet_bytes, link.packet_bytes_sent), (resent, link.packets_resent),
                (streams, link.streams_opened), (hangs, link.hangs), (late, link.results_late),
            ):  # fmt: skip
                family.add_metric([name], value)
            openings.add_metric([name], figures.opened if lane is None else lane.openings)
            stuck.add_metric([name], figures.hangs if lane is None else lane.hangs)
            up.add_metric([name], float(lane is not None and lane.client.client.server is not None))
            if figures.level is not None:
                level.add_metric([name], figures.level)
            if lane is not None and lane.spool is not None:
                waiting.add_metric([name], lane.spool.waiting)
                size.add_metric([name], lane.spool.size_bytes)
        yield from (packets, packet_bytes, resent, streams, hangs, late, up, level, openings, stuck, waiting, size)

    def _of_outputs(self) -> Iterator[Metric]:
        records = CounterMetricFamily(
            "narrowcast_edge_output_records", "Records by what became of them.", labels=["output", "fate"]
        )
        waiting = GaugeMetricFamily("narrowcast_edge_output_waiting", "Records that wait.", labels=["output"])
        for name, counts in self._daemon.output_counts().items():
            for fate in ("delivered", "dropped", "rejected"):
                records.add_metric([name, fate], getattr(counts, fate))
            waiting.add_metric([name], counts.waiting)
        yield from (records, waiting)
