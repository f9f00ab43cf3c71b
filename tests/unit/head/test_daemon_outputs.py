"""A daemon's outputs and its small HTTP server: what slow, greedy and rude ones on the other side can do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import select
import socket
import sqlite3
import stat
import sys
import threading
import time
from pathlib import Path

import pytest
from support.receivers import receiving
from support.waiting import eventually, until

from narrowcast.head.daemon import http, logs
from narrowcast.head.daemon.http import MAX_REQUEST_BYTES, HttpServer, Page, check_listen
from narrowcast.head.daemon.output_config import LinesOutput, MqttOutput, SocketOutput, WebhookOutput
from narrowcast.head.daemon.outputs import Outputs, make_sink
from narrowcast.head.daemon.outputs.lines import JsonLines
from narrowcast.head.daemon.outputs.readers import MAX_WAITING_BYTES, Readers
from narrowcast.head.daemon.records import Telling
from narrowcast.head.daemon.unix import listen_unix
from narrowcast.head.errors import ListenError
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.sinks import Record, SinkCounts, SinkRejectedError, SinkUnavailableError, outbox
from narrowcast.transport.sinks.durable import DurableOutbox
from narrowcast.transport.sinks.webhook import SIGNATURE, verify


def record(number: int, size: int = 10) -> Record:
    return Record(1, "result", f"00-{number}", "tiny", {"frame_id": number, "pad": "x" * size})


def telling(number: int, size: int = 10) -> Telling:
    return Telling(lambda: record(number, size), 0)


def test_lines_are_whole_and_appended(tmp_path):
    file = tmp_path / "out"
    sink = JsonLines(str(file))
    sink.deliver([record(0), record(1)])
    sink.reopen()
    sink.deliver([record(2)])
    sink.close()
    assert [json.loads(line)["frame_id"] for line in file.read_text().splitlines()] == [0, 1, 2]
    assert stat.S_IMODE(file.stat().st_mode) & 0o007 == 0


def test_a_reader_that_stands_still_does_not_hold_up_who_rotates(tmp_path):
    """A named pipe that is full: the write waits for its reader, and nobody waits for the write."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    sink = JsonLines(str(tmp_path / "pipe"))
    delivering = threading.Thread(target=sink.deliver, args=([record(0, 1_000_000)],), daemon=True)
    delivering.start()
    until(lambda: select.select([reader], [], [], 0)[0], "it writes")
    reopening = threading.Thread(target=sink.reopen, daemon=True)
    reopening.start()
    reopening.join(20)
    assert not reopening.is_alive()
    assert delivering.is_alive()
    got = 0
    while delivering.is_alive() or select.select([reader], [], [], 0)[0]:
        select.select([reader], [], [], 0.1)
        with contextlib.suppress(BlockingIOError):
            got += len(os.read(reader, 1 << 20))
    assert got > 1_000_000
    os.close(reader)
    sink.close()


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    file = tmp_path / "out"
    sink = JsonLines(str(file))
    sink.deliver([record(0)])
    write, room = os.write, [30]

    def full(handle, data):
        if not room:
            raise OSError(28, "No space left on device")
        return write(handle, data[: room.pop()])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(SinkUnavailableError, match="No space left"):
        sink.deliver([record(1)])
    monkeypatch.undo()
    sink.deliver([record(1)])
    assert [json.loads(line)["frame_id"] for line in file.read_text().splitlines()] == [0, 1]


def test_a_full_disk_leaves_no_hole_in_a_file_that_stdout_goes_to(tmp_path, monkeypatch):
    """It has no O_APPEND: lines go where the descriptor stands."""
    file = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    write, room = os.write, [5]

    def full(handle, data):
        if not room:
            raise OSError(28, "No space left on device")
        return write(handle, data[: room.pop()])

    sink = JsonLines("-")
    sink._opened = lambda: file
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(SinkUnavailableError, match="No space left"):
        sink.deliver([record(1)])
    monkeypatch.undo()
    sink.deliver([record(2)])
    os.close(file)
    assert json.loads((tmp_path / "out").read_bytes())["frame_id"] == 2


def test_a_reader_of_stdout_that_has_left_ends_nothing(monkeypatch):
    sink = JsonLines("-")
    monkeypatch.setattr(os, "write", lambda *args: (_ for _ in ()).throw(BrokenPipeError()))
    with pytest.raises(SinkRejectedError, match="nobody reads"):
        sink.deliver([record(0)])


def test_a_device_that_is_full(tmp_path):
    with pytest.raises(SinkUnavailableError, match="No space left"):
        JsonLines("/dev/full").deliver([record(0)])


async def test_a_slow_reader_misses_whole_lines_and_is_told_how_many(tmp_path):
    readers = Readers(tmp_path / "sock", 2, 0o660)
    await readers.start()
    assert stat.S_IMODE((tmp_path / "sock").stat().st_mode) == 0o660
    quick, quick_writer = await asyncio.open_unix_connection(tmp_path / "sock", limit=1 << 20)
    slow, slow_writer = await asyncio.open_unix_connection(tmp_path / "sock", limit=1)
    await eventually(lambda: len(readers) == 2, "both are there")
    third, third_writer = await asyncio.open_unix_connection(tmp_path / "sock")
    assert await third.read() == b"", "one too many is shown out"
    count, size = 40, MAX_WAITING_BYTES // 8
    for number in range(count):
        await asyncio.to_thread(readers.deliver, [record(number, size)])
        assert json.loads(await quick.readline())["frame_id"] == number
    assert readers.missed > 0
    found = []

    async def read() -> None:
        data = b""
        while not found or found[-1].get("frame_id") != count:
            data += await slow.read(1 << 16)
            *whole, data = data.split(b"\n")
            found.extend(map(json.loads, whole))
            if len(found) == count - readers.missed:  # it has caught up: what comes now is told again
                await asyncio.to_thread(readers.deliver, [record(count)])

    await asyncio.wait_for(read(), 20)
    gap = found[-2]
    assert (gap["type"], gap["records"]) == ("missed", readers.missed)
    assert [one["frame_id"] for one in found[:-2]] == list(range(count - readers.missed))
    for writer in (slow_writer, third_writer, quick_writer):
        writer.close()
    await eventually(lambda: readers.deliver([record(0)]) or not len(readers), "they have left")
    await readers.stop()
    assert not (tmp_path / "sock").exists()


async def test_sockets_that_are_taken(tmp_path):
    path = tmp_path / "sock"
    listening = listen_unix(path, 0o600)
    with pytest.raises(ListenError, match="another process does"):
        listen_unix(path, 0o600)
    listening.close()
    listen_unix(path, 0o600).close()  # a killed process's makes room
    (tmp_path / "file").write_text("")
    with pytest.raises(ListenError, match="and no socket"):
        listen_unix(tmp_path / "file", 0o600)
    with pytest.raises(ListenError, match="cannot listen"):
        listen_unix(tmp_path / ("x" * 200), 0o600)


async def test_outputs_change_while_they_run(tmp_path):
    outputs = Outputs(tmp_path)
    one, two = LinesOutput(path=str(tmp_path / "one")), LinesOutput(path=str(tmp_path / "two"))
    await outputs.change([one])
    outputs.tell(telling(0))
    await outputs.change([one, two])
    outputs.tell(telling(1))
    with pytest.raises(ConfigError, match="is no MQTT target"):
        await outputs.change([MqttOutput(broker="nowhere")])
    outputs.tell(telling(2))
    await outputs.change([two])
    outputs.tell(telling(3))
    await outputs.close(5)
    numbers = {
        name: [json.loads(line)["frame_id"] for line in (tmp_path / name).read_text().splitlines()]
        for name in ("one", "two")
    }
    assert numbers == {"one": [0, 1, 2], "two": [1, 2, 3]}


async def test_what_is_durable_waits_for_the_next_daemon(tmp_path):
    hook = WebhookOutput(url="http://127.0.0.1:9/", durable=True)
    outputs = Outputs(tmp_path)
    await outputs.change([hook])
    outputs.tell(telling(0))
    await outputs.close(0.1)
    again = Outputs(tmp_path)
    await again.change([hook])
    assert again.counts()["webhook http://127.0.0.1"].waiting == 1
    await again.close(0.1)


async def test_outputs_that_cannot_be_change_nothing(tmp_path):
    taken = listen_unix(tmp_path / "taken", 0o600)
    outputs = Outputs(tmp_path)
    one, two = LinesOutput(path=str(tmp_path / "one")), LinesOutput(path=str(tmp_path / "two"))
    free, new = SocketOutput(path=str(tmp_path / "free")), SocketOutput(path=str(tmp_path / "new"))
    await outputs.change([one, free])
    with pytest.raises(ListenError, match="another process does"):
        await outputs.change([two, new, SocketOutput(path=str(tmp_path / "taken"))])
    assert set(outputs.counts()) == {str(tmp_path / "one"), f"unix:{tmp_path / 'free'}"}
    assert not (tmp_path / "new").exists()
    outputs.tell(telling(0))
    _, writer = await asyncio.open_unix_connection(tmp_path / "free")
    writer.close()
    await outputs.close(20)
    assert [json.loads(line)["frame_id"] for line in (tmp_path / "one").read_text().splitlines()] == [0]
    taken.close()


async def test_a_sockets_settings_change_under_its_readers(tmp_path):
    outputs = Outputs(tmp_path)
    path = tmp_path / "sock"
    await outputs.change([SocketOutput(path=str(path), readers=1)])
    reader, writer = await asyncio.open_unix_connection(path)
    await eventually(lambda: len(outputs._open[f"socket {path}"].readers) == 1, "it is there")
    await outputs.change([SocketOutput(path=str(path), readers=2, mode="0600")])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    _, another = await asyncio.open_unix_connection(path)
    await eventually(lambda: len(outputs._open[f"socket {path}"].readers) == 2, "both are there")
    outputs.tell(telling(0))
    assert json.loads(await asyncio.wait_for(reader.readline(), 20))["frame_id"] == 0
    await outputs.close(1)
    for one in (writer, another):
        one.close()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"durable": True}, {"durable": True, "durable_mib": 32}),
        ({}, {"ca": "none"}),
        ({}, {"durable": True}),
    ],
)
async def test_what_waits_for_a_receiver_that_is_down_waits_on_under_other_settings(
    tmp_path, monkeypatch, before, after
):
    monkeypatch.setattr(outbox, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(outbox, "LONGEST_PAUSE_S", 0.05)
    with receiving(*[503] * 100_000) as hook:
        url = f"http://127.0.0.1:{hook.port}/"
        outputs = Outputs(tmp_path)
        await outputs.change([WebhookOutput(url=url, **before)])
        for number in range(40):
            outputs.tell(telling(number))
        await eventually(lambda: counts(outputs).retries > 1, "it is down")
        changing = asyncio.create_task(outputs.change([WebhookOutput(url=url, **after)]))
        for number in range(40, 50):  # also in the middle of it
            outputs.tell(telling(number))
            await asyncio.sleep(0)
        while not changing.done():
            assert counts(outputs).retries > 1, "they never run back"
            await asyncio.sleep(0.005)
        await changing
        outputs.tell(telling(50))
        now = counts(outputs)
        assert (now.dropped, now.waiting, now.delivered) == (0, 51, 0)
        assert now.retries > 1
        hook.script.clear()
        await eventually(lambda: counts(outputs).delivered == 51, "all are delivered")
        ids = [one["frame_id"] for one in hook.records]
        assert list(dict.fromkeys(ids)) == list(range(51))
        await outputs.close(1)


def counts(outputs: Outputs) -> SinkCounts:
    return outputs.counts()["webhook http://127.0.0.1"]


async def test_a_secret_that_was_replaced_under_its_name_counts(tmp_path):
    secret = tmp_path / "secret"
    with receiving() as hook:
        output = WebhookOutput(url=f"http://127.0.0.1:{hook.port}/", secret_file=str(secret))
        outputs = Outputs(tmp_path)
        for number, word in enumerate((b"old", b"new")):
            secret.write_bytes(word)
            await outputs.change([output])
            outputs.tell(telling(number))
            await eventually(lambda number=number: len(hook.requests) == number + 1, "it is delivered")
            headers, body = hook.requests[-1]
            assert verify(word, body, headers[SIGNATURE], time.time())
        await eventually(lambda: counts(outputs).delivered == 2, "both count")
        secret.unlink()
        with pytest.raises(ConfigError, match="cannot be read"):
            await outputs.change([output])
        await outputs.close(1)


async def test_nobody_waits_for_a_disk_that_is_full(tmp_path, monkeypatch):
    """It may be the spool that has filled it, and it gives room back when it goes on."""

    def full(self):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(DurableOutbox, "_opened", full)
    outputs = Outputs(tmp_path)
    await outputs.change([WebhookOutput(url="http://127.0.0.1:9/", durable=True)])
    outputs.tell(telling(0))
    await asyncio.wait_for(outputs.kept(), 20)
    assert counts(outputs).waiting == 1
    await outputs.close(0.1)


async def test_who_wants_it_waits_until_what_was_told_is_on_disk(tmp_path):
    outputs = Outputs(tmp_path)
    await outputs.change([WebhookOutput(url="http://127.0.0.1:9/", durable=True)])
    await asyncio.wait_for(outputs.kept(), 20)
    other = sqlite3.connect(next((tmp_path / "outbox").glob("*.db")), timeout=20, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    outputs.tell(telling(0))
    waiting = asyncio.create_task(outputs.kept())
    for _ in range(10):
        await asyncio.sleep(0.01)
    assert not waiting.done()
    other.execute("ROLLBACK")
    await asyncio.wait_for(waiting, 20)
    assert other.execute("SELECT COUNT(*) FROM waiting").fetchone() == (1,)
    other.close()
    await outputs.close(0.1)


def test_secrets_are_read_and_urls_checked(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        make_sink(WebhookOutput(url="https://far.example/", secret_file=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="would not be encrypted"):
        make_sink(WebhookOutput(url="http://far.example/"))
    assert isinstance(make_sink(SocketOutput(path=str(tmp_path / "s"))), Readers)


async def asked(where: str, request: bytes) -> bytes:
    host, _, port = where.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), 20)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def test_pages_and_rude_requests(tmp_path):
    def broken() -> Page:
        raise RuntimeError("broken")

    server = HttpServer("127.0.0.1:0", {"/ok": lambda: Page("200 OK", "text/plain", b"fine"), "/broken": broken})
    await server.start()
    assert (await asked(server.where, b"GET /ok?x=1 HTTP/1.1\r\nHost: a\r\n\r\n")).endswith(b"\r\n\r\nfine")
    head = await asked(server.where, b"HEAD /ok HTTP/1.1\r\n\r\n")
    assert b"Content-Length: 4" in head
    assert not head.endswith(b"fine")
    for request, status in (
        (b"GET /none HTTP/1.0\r\n\r\n", b"404"), (b"POST /ok HTTP/1.1\r\n\r\n", b"405"), (b"\xff\r\n\r\n", b"400"),
        (b"GET /broken HTTP/1.1\r\n\r\n", b"500"),
    ):  # fmt: skip
        assert (await asked(server.where, request)).startswith(b"HTTP/1.1 " + status)
    assert await asked(server.where, b"x" * (MAX_REQUEST_BYTES * 3)) == b""
    await server.stop()
    unix = HttpServer(f"unix:{tmp_path}/m", {"/ok": lambda: Page("200 OK", "text/plain", b"fine")})
    await unix.start()
    reader, writer = await asyncio.open_unix_connection(tmp_path / "m")
    writer.write(b"GET /ok HTTP/1.1\r\n\r\n")
    assert (await reader.read()).endswith(b"fine")
    writer.close()
    await unix.stop()
    assert not (tmp_path / "m").exists()


async def test_figures_are_for_this_machine():
    with pytest.raises(ConfigError, match="can be reached from other machines"):
        check_listen("0.0.0.0:9464")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = HttpServer(f"127.0.0.1:{taken.getsockname()[1]}", {})
        with pytest.raises(ListenError, match="for metrics"):
            await server.start()


def test_the_journal_gets_priorities():
    formatter = logs.JournalFormatter("%(message)s")
    for level, text in ((logging.WARNING, "<4>a\n<4>b"), (logging.INFO, "<6>a\n<6>b"), (logging.DEBUG, "<7>a\n<7>b")):
        assert formatter.format(logging.LogRecord("x", level, "", 0, "a\nb", None, None)) == text
    with Path(os.devnull).open("w") as null:
        state = os.fstat(null.fileno())
        assert logs.for_journal(null, {"JOURNAL_STREAM": f"{state.st_dev}:{state.st_ino}"})
        assert not logs.for_journal(null, {"JOURNAL_STREAM": "1:1"})
    assert not logs.for_journal(sys.stderr, {})


async def test_whoever_does_not_read_a_page_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(http, "SECONDS", 0.1)
    body = bytes(64 * 1024 * 1024)
    server = HttpServer("127.0.0.1:0", {"/large": lambda: Page("200 OK", "text/plain", body)})
    await server.start()
    host, _, port = server.where.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /large HTTP/1.1\r\n\r\n")
    await eventually(lambda: server._open == 1, "it is asked")
    await eventually(lambda: server._open == 0, "it is given up")
    got = b""
    with contextlib.suppress(ConnectionResetError):
        got = await reader.read(-1)
    assert len(got) < len(body)
    writer.close()
    await server.stop()
