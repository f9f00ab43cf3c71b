"""Which frames are kept, and how."""

from __future__ import annotations

import errno
import json
import os
import time

import msgspec
import pytest
from support.waiting import until

from narrowcast.cli import main
from narrowcast.tail.audit import AuditRecorder, AuditStore, Retention, Sample, Sampler, open_sample, samples_in
from narrowcast.tail.audit import store as auditing
from narrowcast.tail.audit.samples import file_name, seal_sample
from narrowcast.tail.drift import DriftEvent, Verdict
from narrowcast.tail.drift.watch import CameraKey
from narrowcast.tail.errors import AuditError
from narrowcast.tail.observe import FrameRecord, StreamInfo
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.packet import CodecId, Kind, Packet
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.sealing import OpeningKey

STREAM = b"s" * 16
JPEG = b"\xff\xd8\xff\xe0 a frame"


@pytest.fixture
def key() -> OpeningKey:
    return OpeningKey.new("auditor")


def record(number: int, *, stream=STREAM, payload=b"symbols", kind=Kind.SYMBOLS, code=0, client="gate") -> FrameRecord:
    codec = CodecId.JPEG if kind is Kind.IMAGE else CodecId.RANS
    packet = Packet(codec, 0, number, 12, payload, stream, bytes(16), kind)
    return FrameRecord(StreamInfo(client, "tiny", stream), 3, packet, len(payload) + 24, pb.Result(code=code), 9, 0.0)


def alarm(stream=STREAM) -> DriftEvent:
    return DriftEvent(Verdict.DRIFT, CameraKey("gate", "tiny", bytes(16), stream), 9, 0, 9, "bytes", -1.0, 0)


def sample(number: int, time_us: int) -> tuple[Sample, Packet]:
    packet = record(number).packet
    return Sample(1, time_us, "gate", "tiny", 3, "every", packet.to_bytes()), packet


def now_us() -> int:
    return time.time_ns() // 1000


# Which


def test_one_in_n_by_a_hash_so_that_every_server_chooses_alike():
    chosen = [
        (number, stream)
        for stream in (b"a" * 16, b"b" * 16)
        for number in range(5000)
        if Sampler(10, before=0).frame(record(number, stream=stream))
    ]
    assert 850 < len(chosen) < 1150
    assert {number for number, stream in chosen if stream[:1] == b"a"} != {
        number for number, stream in chosen if stream[:1] == b"b"
    }
    once = Sampler(10)
    assert [c.record.packet.frame_id for k in range(50) for c in once.frame(record(k, stream=b"a" * 16))] == [
        number for number, stream in chosen if stream[:1] == b"a" and number < 50
    ]


def test_frames_around_an_alarm_of_that_camera_alone():
    sampler = Sampler(0, before=3, after=2)
    for number in range(10):
        assert sampler.frame(record(number)) == []
        assert sampler.frame(record(number, stream=b"t" * 16)) == []
    kept = sampler.alarm("gate", STREAM)
    kept += [one for number in range(10, 20) for one in sampler.frame(record(number))]
    assert [one.record.packet.frame_id for one in kept] == [7, 8, 9, 10, 11]
    assert {one.reason for one in kept} == {"alarm"}
    assert sampler.frame(record(10, stream=b"t" * 16)) == []
    assert sampler.alarm("gate", b"u" * 16) == []


def test_the_memory_for_frames_before_alarms_is_bounded():
    sampler = Sampler(0, before=100, max_recent_bytes=10 * 1024)
    for number in range(50):
        sampler.frame(record(number, payload=bytes(1000), stream=bytes([number]) * 16))
    assert 0 < sampler._recent_bytes <= 10 * 1024
    assert len(sampler._recent) == 6  # of 1,024 bytes and the objects around them
    sampler.frame(record(0, payload=bytes(20_000)))
    assert sampler._recent_bytes == 0


def test_outputs_are_not_held_in_case_an_alarm_follows():
    sampler, mask = Sampler(0, before=3), pb.Result(outputs=[pb.Tensor(name="mask", data=bytes(1_000_000))])
    for number in range(3):
        sampler.frame(record(number)._replace(result=mask))
    kept = sampler.alarm("gate", STREAM)
    assert [one.record.packet.payload for one in kept] == [b"symbols"] * 3
    assert all(one.record.result.ByteSize() == 0 for one in kept)


def test_numbers_that_cannot_be():
    with pytest.raises(ConfigError, match="0 or more"):
        Sampler(-1)


# How


def test_what_is_kept_opens_with_the_key_alone(tmp_path, key):
    store = AuditStore(tmp_path / "samples", key.public)
    recorder = AuditRecorder(Sampler(0, before=2, after=1), store)
    recorder.frame_done(record(0, code=3))
    for number in range(4):
        recorder.frame_done(record(number))
    recorder.drifted(alarm()._replace(verdict=Verdict.RECOVERED))
    recorder.drifted(alarm())
    recorder.frame_done(record(4, payload=JPEG, kind=Kind.IMAGE))
    recorder.close()
    stored = list(samples_in(tmp_path / "samples"))
    assert [(one.frame_id, one.reason, one.stream_id) for one in stored] == [
        (number, "alarm", STREAM) for number in (2, 3, 4)
    ]
    assert (tmp_path / "samples").stat().st_mode & 0o777 == 0o700
    assert all(b"symbols" not in one.path.read_bytes() for one in stored)
    first, last = open_sample(stored[0].path, key), open_sample(stored[-1].path, key)
    assert (first.client, first.model, first.release) == ("gate", "tiny", 3)
    assert first.unpacked() == record(2).packet
    assert last.unpacked().payload == JPEG
    with pytest.raises(AuditError, match="no sample that key"):
        open_sample(stored[0].path, OpeningKey.new())


def test_the_oldest_go_when_there_are_too_many_bytes(tmp_path, key):
    size = len(seal_sample(*[sample(1, now_us())[0]], key.public))
    store = AuditStore(tmp_path, key.public, Retention(max_bytes=5 * size))
    for number in range(20):
        store.keep(*sample(number, now_us()))
    until(lambda: store.kept == 20, "all are written")
    store.close()
    assert [one.frame_id for one in samples_in(tmp_path)] == [15, 16, 17, 18, 19]
    assert store.kept == 20


def test_the_old_go_also_those_of_an_earlier_server(tmp_path, key):
    (tmp_path / "notes.txt").write_text("not ours")
    for number, days in ((1, 40), (2, 20)):
        one, packet = sample(number, now_us() - days * 86_400 * 10**6)
        (tmp_path / file_name(one, packet)).write_bytes(seal_sample(one, key.public))
    store = AuditStore(tmp_path, key.public, Retention(max_age_s=30 * 86_400))
    until(lambda: len(list(samples_in(tmp_path))) == 1, "the old one is gone")
    store.close()
    assert [one.frame_id for one in samples_in(tmp_path)] == [2]
    assert (tmp_path / "notes.txt").exists()


def test_a_disk_that_is_too_slow_drops_and_counts(tmp_path, key, monkeypatch):
    import threading

    go = threading.Event()
    monkeypatch.setattr(AuditStore, "_write", lambda self, *item: go.wait(20) and None)
    store = AuditStore(tmp_path, key.public, capacity=2)
    store.keep(*sample(0, now_us()))
    until(store._queue.empty, "the first one is being written")
    for number in range(1, 6):
        store.keep(*sample(number, now_us()))
    assert store.dropped == 3
    go.set()
    store.close()


def test_a_full_disk_is_told_once_and_every_sample_counted(tmp_path, key, monkeypatch, caplog):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    store = AuditStore(tmp_path, key.public)
    monkeypatch.setattr(auditing, "replacing", full)
    for number in range(50):
        store.keep(*sample(number, now_us()))
    until(lambda: store.dropped == 50, "all were tried")
    store.close()
    assert [line for line in caplog.messages if "was not kept" in line] == [
        "audit: a sample was not kept: [Errno 28] No space left on device"
    ]


def test_what_killed_servers_left_of_samples_is_cleared_away(tmp_path, key):
    one, packet = sample(1, now_us())
    left = tmp_path / f".{file_name(one, packet)}.0a1b2c3d.999999999.partial"
    left.write_bytes(b"half")
    AuditStore(tmp_path, key.public).close()
    assert not left.exists()


def test_folders_that_cannot_be_used(tmp_path, key):
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditError, match="cannot be kept"):
        AuditStore(tmp_path / "file", key.public)
    with pytest.raises(AuditError, match="no folder"):
        list(samples_in(tmp_path / "none"))


@pytest.mark.parametrize("content", [b"", b"short", os.urandom(500)])
def test_files_that_are_no_samples(tmp_path, key, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(AuditError, match="is no sample"):
        open_sample(tmp_path / "x", key)


def test_samples_that_lie(tmp_path, key):
    one, _ = sample(1, 1)
    path = tmp_path / "x"
    path.write_bytes(seal_sample(msgspec.structs.replace(one, schema=2), key.public))
    with pytest.raises(AuditError, match="schema 2"):
        open_sample(path, key)
    path.write_bytes(key.public.seal(b"\xc1"))
    with pytest.raises(AuditError, match="is no sample"):
        open_sample(path, key)
    path.write_bytes(seal_sample(msgspec.structs.replace(one, packet=b"no packet"), key.public))
    with pytest.raises(AuditError, match="holds no packet"):
        open_sample(path, key).unpacked()


def test_what_is_to_be_asked_for_outlives_the_stream_that_a_camera_has_moved_from(tmp_path, key):
    recorder = AuditRecorder(Sampler(1), AuditStore(tmp_path / "samples", key.public))
    one = record(0)
    stream = one.stream._replace(audit=True)
    recorder.stream_opened(stream)
    recorder.stream_opened(stream)  # the same camera's next one
    recorder.frame_done(one._replace(stream=stream))
    recorder.stream_closed(stream, "OK")
    assert recorder.wanted(stream) == [0]
    recorder.frame_done(record(1)._replace(stream=stream))
    recorder.stream_closed(stream, "OK")
    assert not recorder.wanted(stream)
    recorder.close()


# The verb


def test_key_list_and_export(tmp_path, capsys):
    folder, out = tmp_path / "samples", tmp_path / "out"
    assert main(["audit", "key", str(tmp_path / "a.key")]) == 0
    key = OpeningKey.read(tmp_path / "a.key")
    store = AuditStore(folder, key.public)
    recorder = AuditRecorder(Sampler(1), store)
    recorder.frame_done(record(0))
    recorder.frame_done(record(1, payload=JPEG, kind=Kind.IMAGE))
    recorder.frame_done(record(2, payload=b"RIFF\0\0\0\0WEBPVP8 ", kind=Kind.IMAGE))
    recorder.close()
    capsys.readouterr()
    assert main(["audit", "list", str(folder)]) == 0
    assert "3 samples" in capsys.readouterr().out
    assert main(["audit", "list", str(folder), "--json"]) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["frame_id"] for one in listed] == [0, 1, 2]
    assert main(["audit", "export", str(folder), "--key", str(tmp_path / "a.key"), "-o", str(out)]) == 0
    index = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
    assert [one["file"].rpartition(".")[2] for one in index] == ["ncp", "jpg", "webp"]
    assert (out / index[1]["file"]).read_bytes() == JPEG
    assert Packet.from_bytes((out / index[0]["file"]).read_bytes()) == record(0).packet
    stranger = OpeningKey.new()
    stranger.write(tmp_path / "b.key")
    assert main(["audit", "export", str(folder), "--key", str(tmp_path / "b.key"), "-o", str(out)]) == 1
    assert "3 left out" in capsys.readouterr().err
    assert main(["audit", "export", str(folder), "--key", str(tmp_path / "a.key.pub"), "-o", str(out)]) == 1
    assert "no narrowcast-x25519-secret key" in capsys.readouterr().err
