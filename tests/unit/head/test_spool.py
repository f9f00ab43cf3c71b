"""The spool: what is on disk, whatever happens to it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import disks

from narrowcast.head.errors import SpoolError, SpoolFormatError, SpoolLockedError
from narrowcast.head.spool import Spool, segments
from narrowcast.head.spool import spool as spooling
from narrowcast.head.spool.cursor import Cursor, slot
from narrowcast.head.spool.records import Record, SegmentHeader, read_record
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.packet import CodecId, Packet

STREAM, FINGERPRINT = bytes(range(16)), bytes(range(16, 32))


@pytest.fixture
def unsynced(monkeypatch):
    """Without waiting for the disk: for tests in which the system does not fail, thousands of times."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(segments.os, name, lambda file: None)


def packet(frame_id: int, payload: bytes = b"symbols") -> Packet:
    return Packet(CodecId.RANS, 1, frame_id, 1_800_000_000_000_000 + frame_id, payload, STREAM, FINGERPRINT)


def fill(spool: Spool, count: int, first: int = 0, payload: bytes = b"symbols") -> None:
    for k in range(first, first + count):
        assert spool.append(packet(k, payload), b"note %d" % k) is None


def drain(spool: Spool, *, acknowledge: bool = True) -> list[int]:
    """The frame ids of all that is handed out."""
    found = []
    while (record := spool.next()) is not None:
        assert record.note == b"note %d" % record.packet().frame_id
        found.append(record.packet().frame_id)
        assert not acknowledge or spool.acknowledge(record)
    return found


def adds_up(spool: Spool) -> None:
    counters = spool.counters
    ended = counters.acknowledged + sum(counters.dropped.values())
    assert counters.found + counters.spooled == ended + spool.waiting


def files(folder) -> list:
    return sorted(folder.glob("*.spool"))


def test_in_order_with_everything_that_a_packet_carries(tmp_path):
    with Spool(tmp_path / "spool") as spool:
        fill(spool, 50)
        assert spool.waiting == 50
        record = spool.next()
        assert record.packet() == packet(0)
        spool.acknowledge(record)
        assert drain(spool) == list(range(1, 50))
        assert (spool.waiting, spool.next(), spool.counters.acknowledged) == (0, None, 50)
        fill(spool, 1, 50)
        assert drain(spool) == [50]
        adds_up(spool)


def test_what_is_not_acknowledged_is_there_again(tmp_path):
    with Spool(tmp_path) as spool:
        fill(spool, 10)
        records = [spool.next() for _ in range(6)]
        for k in (0, 1, 4):
            assert spool.acknowledge(records[k])
        assert not spool.acknowledge(records[4])
        spool.rewind()
        assert drain(spool, acknowledge=False) == [2, 3, 5, 6, 7, 8, 9]
        adds_up(spool)
    with Spool(tmp_path) as spool:  # 4 was answered out of turn: it comes twice, as at-least-once allows
        assert spool.counters.found == 8
        assert drain(spool) == [2, 3, 4, 5, 6, 7, 8, 9]
        adds_up(spool)
    with Spool(tmp_path) as spool:
        assert (spool.waiting, files(tmp_path)) == (0, [])


def test_old_segments_go_when_nothing_of_them_is_left(tmp_path):
    with Spool(tmp_path, max_bytes=64 * 1024) as spool:
        fill(spool, 200, payload=bytes(100))
        assert len(files(tmp_path)) > 5
        assert drain(spool) == list(range(200))
        assert len(files(tmp_path)) <= 1


@pytest.mark.parametrize("overflow", ["oldest", "newest"])
def test_bounded_by_bytes(tmp_path, overflow):
    with Spool(tmp_path, max_bytes=8192, overflow=overflow) as spool:
        reasons = Counter(spool.append(packet(k, bytes(100)), b"note %d" % k) for k in range(200))
        assert spool.size_bytes <= 8192
        assert sum(path.stat().st_size for path in files(tmp_path)) == spool.size_bytes
        kept = drain(spool)
        assert 30 < len(kept) < 60
        if overflow == "oldest":
            assert reasons == {None: 200}
            assert kept == list(range(200 - len(kept), 200))
            assert spool.counters.dropped == {"full": 200 - len(kept)}
        else:
            assert reasons == {None: len(kept), "full": 200 - len(kept)}
            assert kept == list(range(len(kept)))
            assert spool.counters.refused == {"full": 200 - len(kept)}
        assert spool.append(packet(1000, bytes(9000))) == "too large"
        adds_up(spool)


def test_a_packet_that_is_dropped_while_it_is_handed_out(tmp_path):
    with Spool(tmp_path, max_bytes=8192) as spool:
        fill(spool, 1)
        record = spool.next()
        fill(spool, 200, 1, payload=bytes(100))
        assert not spool.acknowledge(record)
        assert spool.counters.acknowledged == 0
        adds_up(spool)


def test_bounded_by_age(tmp_path, monkeypatch):
    with Spool(tmp_path, max_age_seconds=60) as spool:
        fill(spool, 5)
        monkeypatch.setattr(spool._ages, "_opened", spool._ages._opened - 40 * 10**9)
        fill(spool, 5, 5)
        monkeypatch.setattr(spool._ages, "_opened", spool._ages._opened - 40 * 10**9)
        assert drain(spool, acknowledge=False) == [5, 6, 7, 8, 9]
        assert spool.counters.dropped == {"too old": 5}
        monkeypatch.setattr(spool._ages, "_opened", spool._ages._opened - 40 * 10**9)
        spool.tick()
        assert (spool.waiting, spool.counters.dropped) == (0, {"too old": 10})
        adds_up(spool)


@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "with a damaged header"])
def test_bounded_by_age_after_a_restart(tmp_path, monkeypatch, damaged):
    """Each segment that is found is as old as its own packets: the old ones make room though nothing is handed out."""
    options = {"max_bytes": 8192, "overflow": "newest"}

    def pass_by(spool: Spool, seconds: int) -> None:
        monkeypatch.setattr(spool._ages, "_opened", spool._ages._opened - seconds * 10**9)

    with Spool(tmp_path, **options) as spool:
        pass_by(spool, -3600)
        fill(spool, 20, payload=bytes(100))
        pass_by(spool, 3600)
        full = 20
        while spool.append(packet(full, bytes(100)), b"note %d" % full) is None:
            full += 1
    if damaged:
        with files(tmp_path)[0].open("r+b") as file:
            file.write(b"x")
    with Spool(tmp_path, max_age_seconds=1800, **options) as spool:
        fill(spool, 10, full, bytes(100))
        assert drain(spool) == list(range(20, full + 10))
        assert spool.counters.dropped == {"too old": 20}
        adds_up(spool)


@pytest.mark.parametrize(
    ("before", "after"), [(0.0, 1.9e9), (1.9e9, 0.0), (1.9e9, 1.8e9)], ids=["set", "unset", "back"]
)
def test_a_clock_that_jumps_makes_nothing_old(tmp_path, monkeypatch, before, after):
    monkeypatch.setattr("narrowcast.head.spool.ages.time.time_ns", lambda: int(before * 1e9) + 1)
    with Spool(tmp_path, max_age_seconds=60) as spool:
        fill(spool, 3)
    monkeypatch.setattr("narrowcast.head.spool.ages.time.time_ns", lambda: int(after * 1e9) + 1)
    with Spool(tmp_path, max_age_seconds=60) as spool:
        assert drain(spool) == [0, 1, 2]


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """A folder with two segments, as its bytes."""
    folder = tmp_path_factory.mktemp("left")
    with Spool(folder) as spool:
        fill(spool, 4)
        spool._seal(spool._writer)
        fill(spool, 4, 4)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def lay(folder, contents: dict[str, bytes]):
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return folder


def test_cut_off_at_every_byte(tmp_path, left, unsynced):
    """The power goes while the last segment grows: what was whole is there, and the spool goes on."""
    last = max(name for name in left if name.endswith(".spool"))
    size = (len(left[last]) - 32) // 4
    for cut in range(len(left[last])):
        folder = lay(tmp_path / "cut", left | {last: left[last][:cut]})
        with Spool(folder, sync="segment") as spool:
            whole = max(0, cut - 32) // size
            assert spool.counters.cut_bytes == max(0, cut - 32) % size
            fill(spool, 1, 100)
            assert drain(spool) == [*range(4 + whole), 100]
            assert not spool.counters.dropped
            adds_up(spool)


@pytest.mark.parametrize("which", [0, 1], ids=["sealed", "last"])
def test_damaged_at_every_byte(tmp_path, left, which, unsynced):
    """One byte of anything is wrong: at most its own packet is lost, and counted."""
    name = sorted(name for name in left if name.endswith(".spool"))[which]
    for k in range(len(left[name])):
        damaged = bytearray(left[name])
        damaged[k] ^= 0xFF
        folder = lay(tmp_path / "damaged", left | {name: bytes(damaged)})
        with Spool(folder, sync="segment") as spool:
            fill(spool, 1, 100)
            found = drain(spool)
            missing = set(range(8)) - set(found)
            assert found == sorted(found)
            assert found[-1] == 100
            assert len(missing) == (k >= 32)
            at_end = missing == {7}
            assert spool.counters.dropped == ({"damaged": 1} if missing and not at_end else {})
            assert (spool.counters.cut_bytes > 0) == at_end
            adds_up(spool)


def test_zeros_where_the_power_loss_left_a_hole(tmp_path, left):
    """A file that has grown, and whose pages never reached the disk."""
    name = max(name for name in left if name.endswith(".spool"))
    folder = lay(tmp_path / "zeros", left | {name: left[name][:100] + bytes(5000)})
    with Spool(folder) as spool:
        assert drain(spool) == [0, 1, 2, 3]
        assert spool.counters.cut_bytes > 5000


def test_the_acknowledgements_survive_a_torn_write(tmp_path, left, unsynced):
    """Whatever the last write left of its sector, the copy before it counts."""
    folder = lay(tmp_path / "torn", left)
    with Spool(folder) as spool:
        spool.acknowledge(spool.next())
        spool.acknowledge(spool.next())
    whole = (folder / "acknowledged").read_bytes()
    slots = [whole[:16], whole[512:528]]
    newer = slots.index(slot(2))
    assert slots[1 - newer] == slot(1)
    for k in range(16):
        torn = bytearray(whole)
        torn[512 * newer + k : 512 * newer + 16] = bytes(16 - k)
        if bytes(torn) == whole:
            continue
        (folder / "acknowledged").write_bytes(torn)
        assert Cursor(folder / "acknowledged").position == 1
    (folder / "acknowledged").write_bytes(b"")
    with Spool(folder) as spool:
        assert drain(spool) == list(range(8))


def test_records_that_were_acknowledged_and_then_lost(tmp_path, left):
    """Their numbers are not given to others: those would count as acknowledged."""
    folder = lay(tmp_path / "lost", {"acknowledged": slot(1000)})
    with Spool(folder) as spool:
        fill(spool, 3)
        assert drain(spool) == [0, 1, 2]
    assert left


WRITER = """
import sys
from pathlib import Path
from narrowcast.head.spool import Spool
from narrowcast.transport.packet import CodecId, Packet
spool = Spool(Path(sys.argv[1]), max_bytes=1 << 30, sync="segment")
k = spool.counters.found
while True:
    packet = Packet(CodecId.RANS, 1, k, k, bytes(k % 50), bytes(16), bytes(16))
    assert spool.append(packet, b"note %d" % k) is None
    k += 1
    print(k, flush=True)
"""


def test_killed_while_it_writes(tmp_path):
    """All that append returned for is there: the system has it."""
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        try:
            told = [process.stdout.readline() for _ in range(40)]
            with pytest.raises(SpoolLockedError, match="in use by another process"):
                Spool(tmp_path)
            os.kill(process.pid, signal.SIGKILL)
            told += process.stdout.readlines()
        finally:
            process.kill()
            process.communicate()
        last = int([line for line in told if line.endswith("\n")][-1])
        with Spool(tmp_path) as spool:
            found = drain(spool, acknowledge=False)
            assert found == list(range(len(found)))
            assert len(found) in (last, last + 1)
            assert not spool.counters.dropped


@pytest.mark.parametrize("sync", ["always", "interval", "segment"])
def test_what_a_killed_run_left_is_put_on_disk(tmp_path, monkeypatch, left, sync):
    """It may be in the system's memory only, and a power loss would take it; earlier segments are on disk already."""
    folder, real, synced = lay(tmp_path / "killed", left), os.fsync, []

    def fsync(file: int) -> None:
        synced.append((os.fstat(file).st_ino, os.fstat(file).st_size))
        real(file)

    monkeypatch.setattr(segments.os, "fsync", fsync)
    last = files(folder)[-1].stat()
    with Spool(folder, sync=sync) as spool:
        assert (last.st_ino, last.st_size) in synced
        assert spool.counters.found == 8


class FullDisk:
    """Takes so many more bytes, and a part of the write that reaches the end: as a disk that fills up."""

    def __init__(self, monkeypatch, number: int = errno.ENOSPC) -> None:
        self.left, self.number, self.write = 1 << 30, number, os.pwrite
        monkeypatch.setattr(segments.os, "pwrite", self)

    def __call__(self, file, data, offset):
        if self.left <= 0:
            raise OSError(self.number, os.strerror(self.number))
        taken = self.write(file, bytes(data[: self.left]), offset)
        self.left -= taken
        return taken


@pytest.mark.parametrize("room", range(0, 240, 7))
@pytest.mark.parametrize("overflow", ["oldest", "newest"])
def test_every_write_may_fail(tmp_path, monkeypatch, room, overflow, unsynced):
    disk = FullDisk(monkeypatch)
    with Spool(tmp_path, overflow="newest") as spool:
        fill(spool, 3)
        disk.left = room
        taken = [k for k in range(3, 8) if spool.append(packet(k), b"note %d" % k) is None]
        assert spool.counters.refused == {"disk full": 5 - len(taken)}
        disk.left = 1 << 30
        fill(spool, 2, 8)
        adds_up(spool)
    with Spool(tmp_path) as spool:
        assert spool.counters.cut_bytes == 0
        assert drain(spool) == [0, 1, 2, *taken, 8, 9]


def test_a_failing_disk(tmp_path, monkeypatch):
    disk = FullDisk(monkeypatch, errno.EIO)
    with Spool(tmp_path, sync="always") as spool:
        fill(spool, 3)
        disk.left = 0
        assert spool.append(packet(3)) == "disk error"
        disk.left = 1 << 30
        monkeypatch.undo()
        assert spool.counters.errors == 1
        assert drain(spool) == [0, 1, 2]
        adds_up(spool)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO])
@pytest.mark.parametrize("call", ["open", "pread"])
def test_what_cannot_be_read_at_the_moment_is_not_lost(tmp_path, monkeypatch, number, call):
    """A process that has too many files open, a disk that says no once: all is there a moment later."""
    with Spool(tmp_path, max_bytes=4096) as spool:
        fill(spool, 12)
        first = spool.next()
        assert len(files(tmp_path)) > 2
        original, spool._reader = getattr(os, call), None if call == "open" else spool._reader

        def fails(*args, **named):
            if call == "open" and not str(args[0]).endswith(".spool"):
                return original(*args, **named)
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(segments.os, call, fails)
            assert spool.next() is None
        assert (spool.waiting, spool.counters.errors, spool.counters.dropped) == (12, 1, {})
        assert spool.acknowledge(first)
        assert drain(spool) == list(range(1, 12))
        adds_up(spool)


def test_what_the_disk_does_not_give_for_a_while_does_not_hold_up_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(spooling, "UNREADABLE_SECONDS", 0.0)
    with Spool(tmp_path, max_bytes=4096) as spool:
        fill(spool, 12)
        bad, original = str(files(tmp_path)[0]), os.open

        def fails(path, *args, **named):
            if str(path) == bad:
                raise OSError(errno.EIO, "Input/output error")
            return original(path, *args, **named)

        monkeypatch.setattr(segments.os, "open", fails)
        rest = drain(spool)
        assert rest
        assert rest == list(range(rest[0], 12))
        assert spool.counters.dropped == {"damaged": rest[0]}
        adds_up(spool)


def test_a_bad_sector_in_the_midst_of_a_segment_holds_up_what_is_behind_it_for_a_while_only(tmp_path, monkeypatch):
    """Each try reads what is before it once more, and rightly."""
    now, original = [1000.0], os.pread
    monkeypatch.setattr(spooling, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with Spool(tmp_path, max_bytes=16_384) as spool:
        fill(spool, 24)
        bad = spool._segments[0]
        assert 2 < bad.end < 24
        before = [spool.next().number, spool.next().number]
        behind = spool._reader._offset

        def fails(file, size, offset):
            if spool._reader.segment is bad and offset >= behind:
                raise OSError(errno.EIO, "Input/output error")
            return original(file, size, offset)

        monkeypatch.setattr(segments.os, "pread", fails)
        for _ in range(3):
            assert spool.next() is None
            now[0] += spooling.UNREADABLE_SECONDS / 3
        rest = drain(spool)
        assert before + rest == [0, 1, *range(bad.end, 24)]
        assert spool.counters.dropped == {"damaged": bad.end - 2}


def test_a_packet_that_does_not_reach_the_disk_was_not_taken(tmp_path, monkeypatch):
    def fails(file):
        raise OSError(errno.EIO, "")

    with Spool(tmp_path, sync="always") as spool:
        fill(spool, 2)
        with monkeypatch.context() as patch:
            patch.setattr(segments.os, "fdatasync", fails)
            assert spool.append(packet(2)) == "disk error"
        fill(spool, 1, 3)
        assert drain(spool) == [0, 1, 3]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 192 kB."""
    with disks.small_disk(tmp_path / "disk") as folder:
        yield folder


@pytest.mark.parametrize("overflow", ["oldest", "newest"])
def test_a_disk_that_is_full(small_disk, overflow):
    (small_disk / "others").write_bytes(bytes(40_000))
    with Spool(small_disk / "spool", max_bytes=1 << 19, overflow=overflow) as spool:
        reasons = Counter(spool.append(packet(k, bytes(3000)), b"note %d" % k) for k in range(150))
        adds_up(spool)
        kept = drain(spool, acknowledge=False)
        if overflow == "oldest":
            assert kept[-1] >= 148
            assert spool.counters.dropped["disk full"] > 50
        else:
            assert kept[:20] == list(range(20))
            assert reasons["disk full"] > 50
        assert kept == sorted(kept)
    with Spool(small_disk / "spool", max_bytes=1 << 19) as spool:
        assert drain(spool) == kept
        adds_up(spool)


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="cannot be opened: Not a directory"):
        Spool(tmp_path / "file" / "spool")
    with Spool(tmp_path / "mine"), pytest.raises(SpoolLockedError, match="a folder of its own"):
        Spool(tmp_path / "mine")
    Spool(tmp_path / "mine").close()
    for options in ({"max_bytes": 1}, {"max_age_seconds": 0}, {"sync": "never"}, {"overflow": "all"}):
        with pytest.raises(ConfigError, match="a spool"):
            Spool(tmp_path / "mine", **options)


def test_of_a_newer_release(tmp_path):
    (tmp_path / f"{0:016x}.spool").write_bytes(SegmentHeader(2, 0, 0).to_bytes())
    with pytest.raises(SpoolFormatError, match="version 2 of the spool"):
        Spool(tmp_path)
    assert files(tmp_path)


@given(st.binary(max_size=200), st.integers(0, 2**64 - 1), st.binary(max_size=40))
def test_records_as_bytes(data, number, note):
    record = Record(number, 7, note, data)
    assert read_record(b"xx" + record.to_bytes() + b"yy", 2) == record


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["append", "append", "next", "next", "old", "new", "rewind", "reopen"]), max_size=60))
def test_any_order_of_calls(tmp_path_factory, calls):
    """Never one that was acknowledged, never out of order, never one too few."""
    folder = tmp_path_factory.mktemp("calls")
    spool, count = Spool(folder, max_bytes=1 << 20, sync="segment"), 0
    under_way, dealt_with = [], set()
    for call in calls:
        if call == "append":
            fill(spool, 1, count)
            count += 1
        elif call == "next" and (record := spool.next()) is not None:
            frame_id = record.packet().frame_id
            assert frame_id not in dealt_with
            assert all(frame_id > one.packet().frame_id for one in under_way)
            under_way.append(record)
        elif call in ("old", "new") and under_way:
            record = under_way.pop(0 if call == "old" else -1)
            assert spool.acknowledge(record)
            dealt_with.add(record.packet().frame_id)
        elif call == "rewind":
            spool.rewind()
            under_way = []
        elif call == "reopen":
            spool.close()
            spool, under_way = Spool(folder, max_bytes=1 << 20, sync="segment"), []
            dealt_with &= set(range(count)) - set(range(count - spool.waiting, count))
        adds_up(spool)
    spool.rewind()
    assert set(drain(spool)) == set(range(count)) - dealt_with
    spool.close()


@pytest.mark.parametrize("when", ["always", "interval", "segment"])
def test_when_it_is_on_disk(tmp_path, monkeypatch, when):
    synced = []
    real = os.fdatasync
    monkeypatch.setattr(segments.os, "fdatasync", lambda file: synced.append(file) or real(file))
    with Spool(tmp_path, max_bytes=64 * 1024, sync=when, sync_seconds=3600) as spool:
        fill(spool, 10)
        assert len(synced) == {"always": 10, "interval": 0, "segment": 0}[when]
        monkeypatch.setattr(spool, "_synced", spool._synced - 3601)
        spool.tick()
        assert len(synced) == {"always": 10, "interval": 1, "segment": 0}[when]
        fill(spool, 60, 10, bytes(100))
        assert len(synced) > {"always": 69, "interval": 1, "segment": 0}[when]
