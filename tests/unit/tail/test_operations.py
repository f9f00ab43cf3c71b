"""What is counted, and how it is told: metrics, status, history."""

from __future__ import annotations

from typing import get_args

import msgspec
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import bundles
from support.tallied import STREAM, record

from narrowcast.tail.batcher import Batcher
from narrowcast.tail.drift import Detector, DriftSettings, DriftWatch
from narrowcast.tail.drift.watch import CameraKey
from narrowcast.tail.models import ModelTable
from narrowcast.tail.observe import Observers, StreamInfo
from narrowcast.tail.operations.histogram import BOUNDS_SECONDS, FINE_SECONDS, Histogram, quantile_seconds
from narrowcast.tail.operations.history import History
from narrowcast.tail.operations.prometheus import exposition
from narrowcast.tail.operations.status import (
    MAX_BUNDLES,
    MAX_CAMERAS,
    MAX_CLIENTS,
    BundleStatus,
    DriftingCamera,
    Status,
    status,
)
from narrowcast.tail.operations.tally import OTHER, Gauge, Tally
from narrowcast.tail.store import Model, State, load_models
from narrowcast.tail.store import ModelStatus as StoreRow
from narrowcast.transport.contract import InputContract
from narrowcast.transport.packet import CodecId, Kind, Packet


def samples(tally: Tally) -> dict[tuple[str, ...], float]:
    """What /metrics says, read by Prometheus' own parser: (name, label values sorted by label) to value."""
    body, _ = exposition(tally.figures(), "text/plain")
    found = {}
    for family in text_string_to_metric_families(body.decode()):
        for one in family.samples:
            found[(one.name, *(one.labels[key] for key in sorted(one.labels)))] = one.value
    return found


class TestHistogram:
    def test_a_value_on_a_bound_belongs_below_it(self):
        histogram = Histogram()
        for bound in BOUNDS_SECONDS:
            histogram.add(bound)
        buckets = dict(histogram.cumulative())
        assert buckets["1.0"] == sum(bound <= 1 for bound in BOUNDS_SECONDS)
        assert buckets["+Inf"] == len(BOUNDS_SECONDS)

    def test_buckets_grow_and_the_last_has_all(self):
        histogram, random = Histogram(), np.random.default_rng(0)
        values = 10 ** random.uniform(-7, 3, 2000)
        for value in values:
            histogram.add(float(value))
        buckets = histogram.cumulative()
        for bound, count in buckets:
            assert count == (values <= float(bound)).sum()
        assert histogram.total_seconds == pytest.approx(values.sum())

    @pytest.mark.parametrize("share", [0.01, 0.5, 0.95, 1.0])
    def test_quantiles_are_right_to_a_bucket(self, share):
        values = np.random.default_rng(1).lognormal(-6, 1, 5000)
        histogram = Histogram()
        for value in values:
            histogram.add(float(value))
        exact = np.quantile(values, share, method="inverted_cdf")
        assert quantile_seconds(histogram.counts, share) == pytest.approx(exact, rel=0.26)

    def test_nothing_has_no_quantile_and_very_much_is_the_last_bound(self):
        histogram = Histogram()
        assert quantile_seconds(histogram.counts, 0.5) is None
        histogram.add(1e6)
        assert quantile_seconds(histogram.counts, 0.5) == FINE_SECONDS[-1]


class TestMetrics:
    async def test_frames_by_result_level_and_bytes(self, tally):
        for code in (0, 0, 3, 8):
            tally.frame_done(record(code=code, level=code % 2))
        found = samples(tally)
        assert found["narrowcast_frames_total", "tiny", "OK"] == 2
        assert found["narrowcast_frames_total", "tiny", "INVALID_ARGUMENT"] == 1
        assert found["narrowcast_frames_total", "tiny", "RESOURCE_EXHAUSTED"] == 1
        assert found["narrowcast_answered_frames_total", "0", "tiny"] == 2
        assert found["narrowcast_received_bytes_total", "tiny"] == 400
        assert found["narrowcast_sent_bytes_total", "tiny"] == 160
        assert found["narrowcast_compared_bytes_total", "tiny"] == 200  # of the answered ones alone
        assert found["narrowcast_raw_bytes_total", "tiny"] == 2 * 8 * 8 * 3

    async def test_frames_that_differ_in_size_are_compared_with_their_own(self, tmp_path):
        bundles.make_free().write(tmp_path / "free.ncb")
        table, stream = ModelTable(), STREAM._replace(model="free")
        batcher = Batcher(load_models(tmp_path, trusted=[bundles.trusted_key()])["free"])
        table.publish(batcher)
        tally = Tally(table)
        for units in (b"\x01\x02", b"\x04\x06"):
            tally.frame_done(record(stream)._replace(packet=record().packet._replace(payload=units)))
        assert samples(tally)["narrowcast_raw_bytes_total", "free"] == (4 * 8 + 16 * 24) * 3
        await batcher.close()

    async def test_stages_are_in_seconds(self, tally):
        tally.frame_done(record())
        found = samples(tally)
        sums = {
            s: found["narrowcast_stage_duration_seconds_sum", "tiny", s] for s in ("queue", "decode", "infer", "encode")
        }
        assert sums == pytest.approx({"queue": 1e-3, "decode": 2e-4, "infer": 3e-3, "encode": 2e-5})
        assert found["narrowcast_frame_duration_seconds_sum", "tiny"] == pytest.approx(4.5e-3)
        assert found["narrowcast_stage_duration_seconds_bucket", "0.002", "tiny", "infer"] == 0
        assert found["narrowcast_stage_duration_seconds_bucket", "0.005", "tiny", "infer"] == 1

    async def test_streams_clients_batches_and_refusals(self, tally):
        other = StreamInfo("192.0.2.8", "tiny", b"t" * 16)
        again = StreamInfo("192.0.2.8", "tiny", b"u" * 16)
        for stream in (STREAM, other, again):
            tally.stream_opened(stream)
        tally.stream_closed(other, "CANCELLED")
        tally.batch_done("tiny", 3, 7)
        tally.batch_done("tiny", 500, 2)
        tally.refused("192.0.2.9", "tiny", "UNAVAILABLE")
        found = samples(tally)
        assert found["narrowcast_clients",] == 2
        assert found["narrowcast_streams", "tiny"] == 2
        assert found["narrowcast_streams_opened_total", "tiny"] == 3
        assert found["narrowcast_streams_closed_total", "tiny", "CANCELLED"] == 1
        assert found["narrowcast_batch_size_bucket", "4.0", "tiny"] == 1
        assert found["narrowcast_batch_size_bucket", "128.0", "tiny"] == 1
        assert found["narrowcast_batch_size_count", "tiny"] == 2
        assert found["narrowcast_batch_size_sum", "tiny"] == 503
        assert found["narrowcast_refusals_total", "UNAVAILABLE", "tiny"] == 1
        tally.stream_closed(again, "OK")
        tally.stream_closed(STREAM, "OK")
        assert tally.clients == {}

    async def test_a_model_without_frames_has_its_metrics_at_zero(self, tally):
        assert samples(tally)["narrowcast_frames_total", "tiny", "OK"] == 0

    async def test_names_that_clients_make_up_are_no_labels(self, tally):
        for k in range(2000):
            tally.refused("192.0.2.7", f"made-up-{k}", "FAILED_PRECONDITION")
            tally.frame_done(record(StreamInfo("192.0.2.7", f"made-up-{k}", b""), code=9))
        assert set(tally.models) == {OTHER}
        found = samples(tally)
        assert found["narrowcast_refusals_total", "FAILED_PRECONDITION", OTHER] == 2000
        assert not any("made-up" in part for key in found for part in key)

    async def test_codes_and_levels_of_refused_frames_are_no_labels(self, tally):
        for level in range(256):
            tally.frame_done(record(code=3, level=level))
        tally.frame_done(record(code=99))
        found = samples(tally)
        assert found["narrowcast_frames_total", "tiny", "UNKNOWN"] == 1
        assert not [key for key in found if key[0] == "narrowcast_answered_frames_total"]

    async def test_a_client_and_an_address_are_no_labels(self, tally):
        for k in range(50):
            tally.stream_opened(StreamInfo(f"client-{k}", "tiny", bytes([k]) * 16))
        found = samples(tally)
        assert found["narrowcast_clients",] == 50
        assert not any("client-" in part for key in found for part in key)

    async def test_a_release_that_is_gone_is_not_compared(self, tally):
        tally.frame_done(record(release=7))
        found = samples(tally)
        assert found["narrowcast_raw_bytes_total", "tiny"] == found["narrowcast_compared_bytes_total", "tiny"] == 0
        assert found["narrowcast_received_bytes_total", "tiny"] == 100

    async def test_frames_of_free_size_are_compared_each_by_its_own(self, tmp_path):
        bundles.make_free().write(tmp_path / "free.ncb")
        batcher = Batcher(load_models(tmp_path, trusted=[bundles.trusted_key()])["free"])
        table = ModelTable()
        table.publish(batcher)
        try:
            tally, stream = Tally(table), StreamInfo("192.0.2.7", "free", b"f" * 16)
            for rows, columns in ((2, 3), (4, 6)):  # units of 4 pixels
                payload = bytes((rows, columns)) + b"coded"
                packet = Packet(CodecId.RANS, 1, 0, 0, payload, b"s" * 16, b"f" * 16)
                tally.frame_done(record(stream)._replace(packet=packet))
            image = Packet(CodecId.JPEG, 0, 0, 0, b"a file", b"s" * 16, b"f" * 16, Kind.IMAGE)
            tally.frame_done(record(stream)._replace(packet=image))
            found = samples(tally)
            assert found["narrowcast_raw_bytes_total", "free"] == (8 * 12 + 16 * 24) * 3
            assert found["narrowcast_compared_bytes_total", "free"] == 200
            assert found["narrowcast_answered_frames_total", "image", "free"] == 1
            release = status(tally, History(tally), "serving", "", 1.0).models[0].releases[0]
            assert (release.input_size, release.free_size) == ((16, 24), True)
        finally:
            await batcher.close()

    async def test_another_bundle_under_the_same_release_has_sizes_of_its_own(self, tmp_path):
        """First frames of any size, then of one: a frame without symbols says no size."""
        bundles.make_free().write(tmp_path / "free.ncb")
        loaded = load_models(tmp_path, trusted=[bundles.trusted_key()])["free"]
        manifest = msgspec.structs.replace(loaded.manifest, input=InputContract(size=(8, 8)))
        table, stream = ModelTable(), STREAM._replace(model="free")
        batchers = [Batcher(loaded), Batcher(Model(manifest, loaded.codec, loaded.backend))]
        tally = Tally(table)
        table.publish(batchers[0])
        tally.frame_done(record(stream)._replace(packet=record().packet._replace(payload=b"\x04\x06")))
        table.publish(batchers[1])
        tally.frame_done(record(stream))
        assert samples(tally)["narrowcast_raw_bytes_total", "free"] == (16 * 24 + 8 * 8) * 3
        for batcher in batchers:
            await batcher.close()

    async def test_late_frames_of_a_release_that_has_just_gone_have_its_sizes(self, tmp_path):
        bundles.make().write(tmp_path / "tiny.ncb")
        loaded = load_models(tmp_path, trusted=[bundles.trusted_key()])["tiny"]
        manifest = msgspec.structs.replace(loaded.manifest, release=2)
        batchers = [Batcher(loaded), Batcher(Model(manifest, loaded.codec, loaded.backend))]
        table = ModelTable()
        tally = Tally(table)
        for batcher in batchers:
            table.publish(batcher)
            tally.frame_done(record(STREAM))
        assert samples(tally)["narrowcast_raw_bytes_total", "tiny"] == 2 * bundles.SIDE**2 * 3
        for batcher in batchers:
            await batcher.close()

    async def test_build_process_and_both_forms(self, tally):
        names = {key[0] for key in samples(tally)}
        assert {
            "narrowcast_build_info",
            "process_resident_memory_bytes",
            "process_cpu_seconds_total",
            "process_open_fds",
        } <= names
        body, content_type = exposition(tally.figures(), "application/openmetrics-text; version=1.0.0")
        assert content_type.startswith("application/openmetrics-text")
        assert body.rstrip().endswith(b"# EOF")

    async def test_a_gauge_of_another_part(self, tally):
        cameras = {"tiny": 2, "made-up": 1, "also made up": 4}
        tally.add_gauge(Gauge("narrowcast_some_figure", "For instance.", lambda: cameras))
        found = samples(tally)
        assert found["narrowcast_some_figure", "tiny"] == 2
        assert found["narrowcast_some_figure", OTHER] == 5

    async def test_a_counter_of_another_part_with_a_label_of_its_own(self, tally):
        tally.add_gauge(Gauge("narrowcast_some_count", "For instance.", lambda: {"webhook": 3}, "sink", counter=True))
        assert samples(tally)["narrowcast_some_count_total", "webhook"] == 3

    async def test_models_by_state(self, table):
        given = samples(Tally(table))
        assert {state: given["narrowcast_models", state] for state in get_args(State)} == {
            "loading": 0, "ready": 1, "standby": 0, "failed": 0,
        }  # fmt: skip
        rows = [StoreRow("a.ncb", "ready"), StoreRow("b.ncb", "failed", "why"), StoreRow("c.ncb", "failed", "why")]
        found = samples(Tally(table, lambda: rows))
        assert [found["narrowcast_models", state] for state in ("ready", "failed", "loading")] == [1, 2, 0]

    async def test_observers_tell_those_that_came_later(self, tally):
        observers = Observers()
        observers.add(tally)
        observers.frame_done(record())
        assert tally.models["tiny"].frames == 1


class TestHistory:
    async def test_rates_and_quantiles_are_of_the_last_while(self, tally):
        history = History(tally)
        assert history.rates().frames is None
        for second in range(100):
            history.tick(float(second))
            slow = second < 30
            for _ in range(50 if slow else 20):
                tally.frame_done(record(tail_us=800_000 if slow else 3_000))
        history.tick(100.0)
        assert history.rates("tiny").frames == pytest.approx(20)
        assert history.rates().received_bytes == pytest.approx(2000)
        p50, p95 = history.quantiles_ms("tiny", (0.5, 0.95))["infer"]
        assert p50 == pytest.approx(3, rel=0.26)
        assert p95 == pytest.approx(3, rel=0.26)
        rates, latencies = history.series()
        assert rates[0] == 50
        assert rates[-1] == 20
        assert latencies[-1] == pytest.approx(4.5, rel=0.26)

    async def test_it_does_not_grow(self, tally):
        history = History(tally)
        for second in range(1000):
            history.tick(float(second))
        assert len(history.series()[0]) == 120
        assert history.series()[1][-1] is None  # no frame: no latency, not 0

    async def test_a_model_that_comes_later_counts_from_nothing(self, tally):
        history = History(tally)
        history.tick(0.0)
        tally.frame_done(record())
        history.tick(1.0)
        assert history.rates("tiny").frames == 1


class TestStatus:
    async def test_it_follows_its_schema_and_the_table(self, tally, table):
        history = History(tally)
        tally.stream_opened(STREAM)
        tally.frame_done(record())
        tally.refused("x", "made-up", "FAILED_PRECONDITION")
        now = msgspec.json.decode(
            msgspec.json.encode(status(tally, history, "serving", "127.0.0.1:1", 5.0)), type=Status, strict=True
        )
        (model,) = now.models
        assert (model.name, model.state, model.releases[0].input_size) == ("tiny", "serving", (8, 8))
        assert now.bytes.saved == 192 - 100
        assert now.refusals == {"FAILED_PRECONDITION": 1}
        assert now.clients[0].streams == {"tiny": 1}
        slot = next(iter(table))
        table.retire(slot.name, slot.fingerprint)
        assert status(tally, history, "serving", "", 5.0).models[0].state == "gone"

    async def test_it_lists_no_more_clients_than_it_should(self, tally):
        for k in range(MAX_CLIENTS + 5):
            tally.stream_opened(StreamInfo(f"client-{k}", "tiny", k.to_bytes(16, "big")))
        now = status(tally, History(tally), "serving", "", 5.0)
        assert (len(now.clients), now.clients_total) == (MAX_CLIENTS, MAX_CLIENTS + 5)

    async def test_bundles_that_do_not_answer_come_first_and_are_bounded(self, table):
        rows = [StoreRow(f"{k}.ncb", "ready", "", "tiny", k, bytes(16)) for k in range(MAX_BUNDLES)]
        rows += [StoreRow("z.ncb", "failed", "it is broken")]
        tally = Tally(table, lambda: rows)
        now = status(tally, History(tally), "serving", "", 5.0)
        assert len(now.bundles) == MAX_BUNDLES
        assert now.bundles[0] == BundleStatus("z.ncb", "failed", "it is broken", None, None, None)
        assert now.bundles[1] == BundleStatus("0.ncb", "ready", "", "tiny", 0, "00" * 16)
        assert (now.bundles_total["ready"], now.bundles_total["failed"]) == (MAX_BUNDLES, 1)

    async def test_cameras_in_alarm_the_latest_first_and_bounded(self, tally):
        assert status(tally, History(tally), "serving", "", 5.0).drift is None
        tally.drift = watch = DriftWatch()
        for k in range(MAX_CAMERAS + 5):
            key = CameraKey("gate", "tiny", bytes(16), k.to_bytes(16, "big"))
            watch._cameras[key], watch._alarms[key] = Detector(DriftSettings()), None if k == 104 else k * 1_000_000
        watch.alarms_total["tiny"] = 200
        now = status(tally, History(tally), "serving", "", 5.0).drift
        assert (now.watched, now.in_alarm, now.alarms) == (MAX_CAMERAS + 5, MAX_CAMERAS + 5, 200)
        assert len(now.cameras_in_alarm) == MAX_CAMERAS
        latest, before = now.cameras_in_alarm[:2]
        assert latest == DriftingCamera("gate", "tiny", f"{104:032x}", None, None, None)  # since before the start
        assert (before.stream_id, before.since_unix, before.statistic) == (f"{103:032x}", 103.0, "bits")
