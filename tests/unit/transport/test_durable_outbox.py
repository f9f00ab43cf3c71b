"""An outbox on disk: what it promises over restarts, full bounds and damage."""

from __future__ import annotations

import sqlite3
import threading

import pytest
from support.waiting import until

from narrowcast.transport.errors import ConfigError
from narrowcast.transport.sinks import Record, SinkUnavailableError, durable
from narrowcast.transport.sinks.durable import DurableOutbox


def record(number: int, size: int = 10) -> Record:
    return Record(1, "result", f"00-{number}", "tiny", {"frame_id": number, "pad": "x" * size})


class Collector:
    """A sink that takes records only while it is open."""

    name = "collector"

    def __init__(self) -> None:
        self.open = threading.Event()
        self.taken: list[Record] = []

    def deliver(self, records):
        if not self.open.is_set():
            raise SinkUnavailableError("not now", retry_after_s=0.0)
        self.taken += records

    def close(self) -> None:
        pass


def log_size(folder) -> int:
    return sum(path.stat().st_size for path in folder.glob("box.db-wal"))


def ids(records) -> list[str]:
    return [one.id for one in records]


def test_what_one_process_does_not_deliver_the_next_one_does_in_order(tmp_path):
    first = DurableOutbox(Collector(), tmp_path / "box.db", linger_s=0)
    assert all(first.keep(record(number)) for number in range(250))
    counts = first.close(0.1)
    assert (counts.waiting, counts.dropped, counts.delivered) == (250, 0, 0)
    assert not first.keep(record(250)), "after its end it takes nothing"
    sink = Collector()
    sink.open.set()
    second = DurableOutbox(sink, tmp_path / "box.db", linger_s=0)
    second.keep(record(250))
    until(lambda: second.counts.waiting == 0, "all delivered")
    assert sink.taken == [record(number) for number in range(251)]
    assert second.waiting_bytes == 0
    second.close()
    third = DurableOutbox(Collector(), tmp_path / "box.db")
    assert third.counts.waiting == 0
    third.close()


def test_what_a_sink_that_hangs_has_in_its_hands_stays_on_disk(tmp_path):
    class Hanging(Collector):
        def deliver(self, records):
            self.open.wait(20)
            self.taken += records

    sink = Hanging()
    box = DurableOutbox(sink, tmp_path / "box.db", linger_s=0)
    for number in range(3):
        box.keep(record(number))
    until(lambda: box._rows and box.settled == 3, "a batch is under way")
    counts = box.close(0)
    assert (counts.waiting, counts.dropped, counts.delivered) == (3, 0, 0)
    after = DurableOutbox(Collector(), tmp_path / "box.db", linger_s=0)
    assert after.counts.waiting == 3
    after.close(0)
    sink.open.set()
    box._thread.join(20)
    assert box.counts.dropped == 0


def test_a_killed_process_leaves_its_records(tmp_path):
    """No close: the file is copied while it is in use, as a kill would leave it."""
    box = DurableOutbox(Collector(), tmp_path / "box.db")
    for number in range(5):
        box.keep(record(number))
    until(lambda: box.settled == 5, "they are on disk")
    for path in list(tmp_path.glob("box.db*")):
        (tmp_path / path.name.replace("box", "copy")).write_bytes(path.read_bytes())
    box.close(0)
    sink = Collector()
    sink.open.set()
    copy = DurableOutbox(sink, tmp_path / "copy.db", linger_s=0)
    until(lambda: len(sink.taken) == 5, "the killed one's records")
    copy.close()


def test_it_is_bounded_and_drops_the_oldest(tmp_path, caplog):
    box = DurableOutbox(Collector(), tmp_path / "box.db", max_bytes=20_000, batch=1)
    until(lambda: box.keep(record(0, 1000)), "it takes one")
    for number in range(1, 50):
        assert box.keep(record(number, 1000))
        assert box.waiting_bytes <= 20_000
    counts = box.close(0)
    assert counts.waiting + counts.dropped == 50
    assert "too slow" in caplog.text
    sink = Collector()
    sink.open.set()
    again = DurableOutbox(sink, tmp_path / "box.db", linger_s=0)
    until(lambda: again.counts.waiting == 0, "the rest")
    again.close()
    assert ids(sink.taken)[-counts.waiting + 1 :] == ids(record(n) for n in range(51 - counts.waiting, 50))


def test_its_files_stay_small_while_nothing_is_delivered(tmp_path, monkeypatch):
    """Also the log that is written ahead, which each record goes through twice."""
    monkeypatch.setattr(durable, "SYNC_SECONDS", 0.01)
    monkeypatch.setattr(durable, "MOST_AHEAD_BYTES", 500_000)
    box = DurableOutbox(Collector(), tmp_path / "box.db", max_bytes=50_000)
    for number in range(3000):
        assert box.keep(record(number, 1000))
        if number % 100 == 99:
            until(lambda: box.keep(record(0)) and log_size(tmp_path) < 500_000, "the log is used anew")
    assert (tmp_path / "box.db").stat().st_size < 200_000
    box.close(0)


@pytest.mark.parametrize("damage", [b"no database at all" * 100, None])
def test_a_damaged_file_is_put_aside_and_begun_anew(tmp_path, caplog, damage):
    file = tmp_path / "box.db"
    box = DurableOutbox(Collector(), file)
    for number in range(200):
        box.keep(record(number, 500))
    box.close(0)
    whole = file.read_bytes()
    file.write_bytes(damage or whole[:100] + b"\xff" * 8000 + whole[8100:])
    sink = Collector()
    sink.open.set()
    again = DurableOutbox(sink, file, linger_s=0)
    assert "put aside" in caplog.text
    assert (tmp_path / "box.damaged").exists()
    again.keep(record(1))
    until(lambda: sink.taken == [record(1)], "the new one works")
    again.close()


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be kept in"):
        DurableOutbox(Collector(), tmp_path / "file" / "box.db")


def test_while_another_program_has_locked_the_file_records_wait_in_memory_and_none_is_lost(tmp_path):
    sink = Collector()
    sink.open.set()
    box = DurableOutbox(sink, tmp_path / "box.db", linger_s=0)
    box.keep(record(0))
    until(lambda: len(sink.taken) == 1 and box.counts.waiting == 0, "it works")
    other = sqlite3.connect(tmp_path / "box.db", isolation_level=None)
    until(lambda: locked(other), "it is locked")
    assert all(box.keep(record(number)) for number in range(1, 8))
    assert (box.taken, box.settled, box.counts.waiting, box.counts.dropped) == (8, 1, 7, 0)
    other.execute("ROLLBACK")
    other.close()
    until(lambda: box.settled == 8, "all are on disk")
    until(lambda: len(sink.taken) == 8, "and delivered")
    assert ids(sink.taken) == [record(number).id for number in range(8)]
    box.close()


def locked(disk) -> bool:
    try:
        disk.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return False
    return True


def test_what_waits_in_memory_is_bounded_and_at_the_end_it_is_said_what_is_lost(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(durable, "MOST_HELD_BYTES", 5_000)
    monkeypatch.setattr(durable, "LAST_SECONDS", 0.1)
    box = DurableOutbox(Collector(), tmp_path / "box.db")
    other = sqlite3.connect(tmp_path / "box.db", isolation_level=None)
    until(lambda: locked(other), "it is locked")
    for number in range(20):
        assert box.keep(record(number, 1000))
    held = box.counts.waiting
    assert 0 < held < 5
    assert (box.counts.dropped, box.settled) == (20 - held, 20 - held)
    assert "box.db is too slow" in caplog.text
    counts = box.close(0)
    other.close()
    assert (counts.waiting, counts.dropped) == (0, 20)
    assert f"box.db could not be written: {held} records are lost" in caplog.text


def test_a_disk_that_is_full_at_the_start_is_waited_for(tmp_path, monkeypatch, caplog):
    opened, full = DurableOutbox._opened, [True]

    def tried(self):
        if full:
            raise sqlite3.OperationalError("disk I/O error")
        return opened(self)

    monkeypatch.setattr(DurableOutbox, "_opened", tried)
    sink = Collector()
    sink.open.set()
    box = DurableOutbox(sink, tmp_path / "box.db", linger_s=0)
    assert all(box.keep(record(number)) for number in range(3))
    assert (box.settled, box.counts.waiting) == (0, 3)
    assert caplog.text.count("box.db cannot be written: disk I/O error; records wait in memory") == 1
    full.clear()
    until(lambda: len(sink.taken) == 3, "they are written and delivered")
    assert box.settled == 3
    box.close()


def test_a_file_that_cannot_be_read_for_weeks_is_told_of_once(tmp_path, caplog):
    box = DurableOutbox(Collector(), tmp_path / "box.db")
    box._disk.execute("DROP TABLE waiting")
    for _ in range(3):
        assert box._next() == []
    assert caplog.text.count("cannot be read: no such table") == 1
    box._disk.execute("CREATE TABLE waiting (number INTEGER PRIMARY KEY, record BLOB NOT NULL)")
    box.keep(record(1))
    assert [row.number for row in box._next()] == [1]
    box.close(0.1)
