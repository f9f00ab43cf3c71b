"""Records, the queue in front of a sink, webhook and MQTT: real sockets, a real broker."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections import deque

import numpy as np
import pytest
from support.receivers import brokering, free_port, receiving, subscribed
from support.waiting import until

from narrowcast.transport.bundle import OutputSpec, TailSpec
from narrowcast.transport.errors import ConfigError, MissingDependencyError
from narrowcast.transport.sinks import Outbox, Record, SinkRejectedError, SinkUnavailableError, outbox, summarize
from narrowcast.transport.sinks.mqtt import Mqtt, parse_target
from narrowcast.transport.sinks.records import record_id
from narrowcast.transport.sinks.webhook import SIGNATURE, Webhook, signature, verify
from narrowcast.transport.tasks import ClassifyTask, DetectTask, SegmentTask

SECRET = b"shared by both"


def record(number: int) -> Record:
    return Record(1, "result", record_id(bytes(16), number), "tiny", {"frame_id": number})


class Memory:
    """A sink that does as it is told."""

    name = "memory"

    def __init__(self, *script) -> None:
        self.script = list(script)
        self.batches: list[list[str]] = []
        self.closed = False
        self.open = threading.Event()
        self.open.set()

    def deliver(self, records):
        self.open.wait(20)
        if self.script and (error := self.script.pop(0)) is not None:
            raise error
        self.batches.append([one.id for one in records])

    def close(self):
        self.closed = True


@pytest.fixture
def quick(monkeypatch):
    """Retries without a human's patience."""
    monkeypatch.setattr(outbox, "FIRST_PAUSE_S", 0.01)


# What records say


def spec(task, *outputs, name="main"):
    return TailSpec(name=name, outputs=[OutputSpec(name=o, dtype="float32", shape=[3]) for o in outputs], task=task)


def test_classes_are_the_five_best_with_their_names():
    scores = np.array([0.1, np.nan, 7, 3, 3, -np.inf, 5], np.float32)
    told = summarize([spec(ClassifyTask(classes=list("abcdefg")), "out")], {"out": scores}, (8, 8))
    assert [(one["class"], one["name"], one["score"]) for one in told["main"]["classes"]] == [
        (2, "c", 7.0), (6, "g", 5.0), (3, "d", 3.0), (4, "e", 3.0), (0, "a", 0.1),
    ]  # fmt: skip


def test_scores_that_are_no_numbers_become_null_in_json():
    told = summarize([spec(None, "out")], {"out": np.array([np.nan, np.nan], np.float32)}, (8, 8))
    line = Record(1, "result", "x", "m", {"answers": told}).to_json()
    assert json.loads(line)["answers"]["main"]["classes"][0] == {"class": 0, "score": None}


def test_boxes_segments_several_tails_and_raw_tensors():
    detect = DetectTask(classes=["cat", "dog"], strides=[8])
    segment = SegmentTask(classes=["road", "sky"])
    outputs = {
        "boxes": np.array([[1, 2, 3, 4.123]], np.float32), "scores": np.array([0.5], np.float32),
        "labels": np.array([1], np.int32), "ground/mask": np.array([[0, 0], [0, 1]], np.uint8),
    }  # fmt: skip
    tails = [spec(detect, "scores", "boxes"), spec(segment, "map", name="ground"), spec(None, "out", name="unused")]
    told = summarize(tails, outputs, (8, 9), raw=True)
    assert told["main"]["boxes"] == [{"class": 1, "name": "dog", "score": 0.5, "box": [1.0, 2.0, 3.0, 4.12]}]
    assert told["main"]["input_size"] == [8, 9]
    assert told["ground"]["segments"] == [
        {"class": 0, "name": "road", "share": 0.75}, {"class": 1, "name": "sky", "share": 0.25}
    ]  # fmt: skip
    assert told["ground"]["tensors"]["mask"] == {"dtype": "uint8", "shape": [2, 2], "data": "AAAAAQ=="}
    assert "unused" not in told


def test_boxes_that_are_chosen_on_the_device_are_chosen_for_the_record_too():
    task = DetectTask(
        classes=["cat"], strides=[4], scores=["s"], boxes=["b"], centerness=[], decode_on="device", unit="pixel",
        activation="none", score_threshold=0.5,
    )  # fmt: skip
    scores = np.zeros((1, 2, 2), np.float32)
    scores[0, 0, 1] = 0.9
    told = summarize([spec(task, "s", "b")], {"s": scores, "b": np.ones((4, 2, 2), np.float32)}, (8, 8))
    assert told["main"]["boxes"] == [{"class": 0, "name": "cat", "score": 0.9, "box": [5.0, 1.0, 7.0, 3.0]}]


def test_outputs_without_a_meaning_are_told_by_their_shapes():
    told = summarize([spec(None, "map")], {"map": np.zeros((2, 3), np.float32)}, (8, 8))
    assert told == {"main": {"shapes": {"map": [2, 3]}}}


# The queue


def test_all_is_delivered_once_and_in_order_and_then_closed():
    sink = Memory()
    box = Outbox(sink, record, linger_s=0.0, batch=7)
    for number in range(50):
        box.put(number)
    counts = box.close(20)
    assert [one for batch in sink.batches for one in batch] == [record(k).id for k in range(50)]
    assert max(map(len, sink.batches)) <= 7
    assert (counts.delivered, counts.dropped, counts.waiting, sink.closed) == (50, 0, 0, True)


def test_what_fails_for_now_is_tried_again_and_what_is_refused_is_not(quick):
    sink = Memory(SinkUnavailableError("down"), SinkUnavailableError("busy", 0.01), None, SinkRejectedError("no"))
    box = Outbox(sink, record, linger_s=0.0, batch=1)
    for number in range(3):
        box.put(number)
    counts = box.close(20)
    assert sink.batches == [[record(0).id], [record(2).id]]
    assert (counts.delivered, counts.rejected, counts.retries, counts.dropped) == (2, 1, 2, 0)


@pytest.mark.parametrize("asked", [0.0, -1.0])
def test_a_sink_that_wants_to_be_asked_again_at_once_is_not(asked):
    sink = Memory(*[SinkUnavailableError("busy", asked)] * 1000)
    box = Outbox(sink, record, linger_s=0.0)
    box.put(0)
    until(lambda: box.counts.retries > 0, "a try")
    assert box.close(0.0).retries <= 2
    assert len(sink.script) >= 998


def test_a_sink_is_not_asked_before_the_time_that_it_wants():
    assert all(7 <= outbox._wait_s(0.5, 7.0) <= 9 for _ in range(50))
    assert all(0.5 <= outbox._wait_s(8.0, 0.0) <= 1 for _ in range(50))
    assert all(30 <= outbox._wait_s(0.5, 1e9) <= 38 for _ in range(50))
    assert all(4 <= outbox._wait_s(8.0, None) <= 8 for _ in range(50))


def test_the_oldest_are_dropped_and_counted_when_the_sink_hangs():
    sink = Memory()
    sink.open.clear()
    box = Outbox(sink, record, capacity=10, linger_s=0.0, batch=1)
    box.put(0)
    until(lambda: box.counts.waiting == 1 and not box._items, "the first record is under way")
    for number in range(1, 31):
        box.put(number)
    assert box.counts.dropped == 20
    sink.open.set()
    counts = box.close(20)
    assert [one for batch in sink.batches for one in batch] == [record(k).id for k in (0, *range(21, 31))]
    assert (counts.delivered, counts.dropped) == (11, 20)


def test_closing_does_not_wait_for_a_sink_that_is_down():
    box = Outbox(Memory(*[SinkUnavailableError("down")] * 1000), record, linger_s=0.0)
    box.put(1)
    until(lambda: box.counts.retries > 0, "a try")
    counts = box.close(0.0)
    assert (counts.delivered, counts.dropped, counts.waiting) == (0, 1, 0)
    box.put(2)
    assert box.counts.dropped == 2


@pytest.mark.parametrize("error", [None, SinkRejectedError("no"), SinkUnavailableError("down")])
def test_what_a_sink_that_hangs_has_in_its_hands_is_left_at_the_end(error):
    """In its place, and once: what becomes of it later changes no count."""
    sink = Memory(error)
    sink.open.clear()
    box = Outbox(sink, lambda k: record(k) if k != 1 else None, linger_s=0.0, batch=4)
    with box._changed:  # all in one batch
        for number in range(4):
            box.put(number)
    until(lambda: box.counts.waiting == 3, "a batch is under way, but for the record that is left out")
    for number in range(4, 7):
        box.put(number)
    assert box.end(0.0) == [0, 2, 3, 4, 5, 6]
    assert box.counts.waiting == 0
    sink.open.set()
    box._thread.join(20)
    counts = box.counts
    assert (counts.delivered, counts.rejected, counts.dropped, counts.waiting, box._items) == (0, 0, 0, 0, deque())


def test_what_a_sink_that_hangs_has_in_its_hands_is_counted_as_dropped():
    sink = Memory()
    sink.open.clear()
    box = Outbox(sink, record, linger_s=0.0)
    box.put(0)
    until(lambda: not box._items, "it is under way")
    assert box.close(0.0).dropped == 1
    sink.open.set()
    box._thread.join(20)
    assert (box.counts.delivered, box.counts.dropped, box.counts.waiting) == (0, 1, 0)


def test_items_that_cannot_be_told_harm_no_others(caplog):
    sink = Memory(None, RuntimeError("a bug"))
    box = Outbox(sink, lambda k: record(10 // k) if k != 5 else None, linger_s=0.0, batch=1)
    for number in (0, 5, 1, 2, 10):
        box.put(number)
    counts = box.close(20)
    assert sink.batches == [[record(10).id], [record(1).id]]
    assert (counts.delivered, counts.rejected) == (2, 2)
    assert "ZeroDivisionError" in caplog.text
    assert "a bug" in caplog.text


# Webhook


def test_a_webhook_posts_signed_json():
    with receiving() as receiver:
        hook = Webhook(f"http://127.0.0.1:{receiver.port}/in?x=1", secret=SECRET)
        hook.deliver([record(1), record(2)])
        hook.deliver([record(3)])
        hook.close()
        headers, body = receiver.requests[0]
        assert [one["frame_id"] for one in receiver.records] == [1, 2, 3]
    assert headers["Content-Type"] == "application/json"
    assert verify(SECRET, body, headers[SIGNATURE], time.time())
    assert not verify(b"another", body, headers[SIGNATURE], time.time())
    assert not verify(SECRET, body + b" ", headers[SIGNATURE], time.time())
    assert not verify(SECRET, body, headers[SIGNATURE], time.time() + 1000)


def test_the_signature_is_hmac_sha256():
    """RFC 4231, test case 2, has no time in front; so the reference is the standard library's own, spelled out."""
    key = b"k" * 64
    inner = __import__("hashlib").sha256(bytes(b ^ 0x36 for b in key) + b"12.body").digest()
    outer = __import__("hashlib").sha256(bytes(b ^ 0x5C for b in key) + inner).hexdigest()
    assert signature(key, b"body", 12) == f"t=12,v1={outer}"


@pytest.mark.parametrize(
    "header", ["", "t=,v1=0", "t=x,v1=0", "v1=00", "t=1" + "0" * 50 + ",v1=0", "t=12,v1=\u00e9", "=,="]
)
def test_forged_signatures_are_refused(header):
    assert not verify(SECRET, b"body", header, 12)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_webhook_that_is_busy_is_worth_another_try(status):
    with receiving(status, headers={"Retry-After": "7"}) as receiver:
        with pytest.raises(SinkUnavailableError, match=str(status)) as caught:
            Webhook(f"http://127.0.0.1:{receiver.port}").deliver([record(1)])
    assert caught.value.retry_after_s == 7


@pytest.mark.parametrize("status", [301, 307, 400, 404])
def test_a_webhook_that_refuses_is_not_asked_again(status):
    with receiving(status, headers={"Location": "http://127.0.0.1:1/"}) as receiver:
        with pytest.raises(SinkRejectedError, match=str(status)):
            Webhook(f"http://127.0.0.1:{receiver.port}").deliver([record(1)])


def test_a_webhook_that_closes_idle_connections_costs_no_tries(quick):
    with receiving(hangs_up=True) as receiver:
        box = Outbox(Webhook(f"http://127.0.0.1:{receiver.port}"), record, linger_s=0.0, batch=1)
        for number in range(3):
            box.put(number)
            until(lambda number=number: len(receiver.records) == number + 1, "it is delivered")
        counts = box.close(20)
    assert (counts.delivered, counts.retries) == (3, 0)


def test_a_webhook_that_is_not_there_and_comes_back(quick):
    port = free_port()
    hook = Webhook(f"http://localhost:{port}", timeout_s=5)
    with pytest.raises(SinkUnavailableError):
        hook.deliver([record(1)])
    with receiving() as receiver:
        Webhook(f"http://127.0.0.1:{receiver.port}").deliver([record(1)])
        assert len(receiver.records) == 1


def test_records_survive_a_webhook_that_is_down_for_a_while(quick):
    with receiving(503, 503, 503) as receiver:
        box = Outbox(Webhook(f"http://127.0.0.1:{receiver.port}"), record, linger_s=0.0, batch=4)
        for number in range(10):
            box.put(number)
        counts = box.close(20)
        ids = [one["id"] for one in receiver.records]
    assert counts.delivered == 10
    assert counts.retries == 3
    assert set(ids) == {record(k).id for k in range(10)}


@pytest.fixture
def certificate(tmp_path):
    """A key and a certificate of 127.0.0.1, made by openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, cert


def test_a_webhook_checks_the_receivers_certificate(certificate):
    key, cert = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with receiving(tls=context) as receiver:
        url = f"https://127.0.0.1:{receiver.port}/"
        hook = Webhook(url, ca=cert)
        hook.deliver([record(1)])
        hook.close()
        assert len(receiver.records) == 1
        with pytest.raises(SinkUnavailableError, match="certificate"):
            Webhook(url).deliver([record(2)])
        assert len(receiver.records) == 1


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("ftp://example.org/", "no webhook"),
        ("https://", "no webhook"),
        ("nonsense", "no webhook"),
        ("https://user:secret@example.org/", "without a password"),
        ("http://example.org/", "not be encrypted"),
        ("http://[::1/", "no URL"),
        ("https://example.org:99999/", "no URL"),
        ("https://hooks..example/", "'hooks..example' is no host's name"),
        (f"https://{'a' * 64}.example/", "is no host's name"),
        ("https://example.org/a b", "has a space"),
        ("https://example.org/?caf\u00e9", "beyond ASCII"),
    ],
)
def test_urls_that_are_no_webhooks(url, told):
    with pytest.raises(ConfigError, match=told) as caught:
        Webhook(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://[::1]/hook", ("::1", 80)),
        ("https://[::1]/hook", ("::1", 443)),
        ("https://[2001:db8::7]:8443/", ("2001:db8::7", 8443)),
        ("https://example.org/", ("example.org", 443)),
        ("https://b\u00fccher.example/", ("xn--bcher-kva.example", 443)),
    ],
)
def test_where_a_webhook_connects_to(monkeypatch, url, wanted):
    asked = []

    def refuse(address, *args, **kwargs):
        asked.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(SinkUnavailableError):
        Webhook(url).deliver([record(1)])
    assert asked == [wanted]


def test_a_ca_file_that_is_none(tmp_path):
    (tmp_path / "ca.pem").write_text("no certificate")
    for make in (
        lambda path: Webhook("https://example.org/", ca=path),
        lambda path: Mqtt(parse_target("localhost:1/x"), ca=path),
    ):
        with pytest.raises(ConfigError, match=r"ca\.pem"):
            make(tmp_path / "ca.pem")
        with pytest.raises(ConfigError, match=r"no\.pem"):
            make(tmp_path / "no.pem")


# MQTT


def test_targets_of_mqtt():
    assert parse_target("broker:1883/site/cameras") == ("broker", 1883, "site/cameras")
    assert parse_target("[::1]:8883/x/") == ("::1", 8883, "x")
    for wrong in (
        "broker",
        "broker:1883",
        "broker:0/x",
        "broker:70000/x",
        "broker:1/a/#",
        "b:1/+/x",
        "b:1/$SYS",
        "b:1//",
    ):
        with pytest.raises(ConfigError, match=r"MQTT target|topic"):
            parse_target(wrong)


def test_mqtt_delivers_and_outlives_the_broker(tmp_path, quick):
    with brokering(tmp_path) as broker:
        box = Outbox(Mqtt(parse_target(f"127.0.0.1:{broker.port}/site"), timeout_s=5), record, linger_s=0.0, batch=5)
        with subscribed(broker.port, "site/#") as got:
            for number in range(10):
                box.put(number)
            until(lambda: len(got) >= 10, "ten records")
            assert [told["frame_id"] for _, told in got] == list(range(10))
            assert {topic for topic, _ in got} == {"site/tiny/result"}
        broker.stop()
        for number in range(10, 20):
            box.put(number)
        until(lambda: box.counts.retries > 0, "a try while the broker is away")
        broker.start()
        with subscribed(broker.port, "site/#") as got:
            box.put(20)
            until(lambda: any(told["frame_id"] == 20 for _, told in got), "the last record")
        until(lambda: box.counts.delivered == 21, "all are delivered")
        assert box.close(20).dropped == 0


def test_a_broker_that_does_not_let_us_in(tmp_path):
    with brokering(tmp_path, "allow_anonymous false") as broker:
        sink = Mqtt(parse_target(f"127.0.0.1:{broker.port}/x"), username="me", password="wrong", timeout_s=5)
        with pytest.raises(SinkUnavailableError, match=r"let us in: .*(authori|Refused|refused)"):
            sink.deliver([record(1)])
    with pytest.raises(SinkUnavailableError, match="connect"):
        Mqtt(parse_target(f"127.0.0.1:{free_port()}/x"), timeout_s=5).deliver([record(1)])


def test_mqtt_without_its_library(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "paho.mqtt.client", None)
    with pytest.raises(MissingDependencyError, match=r"narrowcast\[mqtt\]"):
        Mqtt(parse_target("localhost:1/x"))
