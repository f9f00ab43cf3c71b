"""What happens to a board: its disk fills up, its clock jumps, its camera is unplugged, and it is started twice."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from support import bundles
from support.disks import small_disk
from support.server import serving
from support.waiting import until

from narrowcast.cli import main
from narrowcast.head import replay
from narrowcast.head.client import Client
from narrowcast.head.session import HeadSession
from narrowcast.head.sources import Feed, open_source
from narrowcast.head.sources.raw import RawForm
from narrowcast.head.spool import Spool

FRAMES = bundles.random_frames(120)
SIDE = bundles.SIDE
YEAR_SECONDS = 365 * 86_400
SHIM = Path(__file__).parents[1] / "support" / "clock_shim.c"


@pytest.fixture(scope="module")
def session(tiny_folder) -> HeadSession:
    return HeadSession(bundles.open_made(tiny_folder / "tiny.ncb"))


@pytest.fixture
def trusted(keys_folder):
    bundles.trusted_key().write(keys_folder / "trusted" / "test.pub")


def right(outputs, number: int) -> bool:
    return np.allclose(outputs, bundles.expected_output(FRAMES[number], 1), atol=1e-3)


def test_the_disk_is_full_and_has_room_again(session, tiny_folder, tmp_path, monkeypatch):
    """Frames that do not fit are dropped with that reason; those that do are replayed, each once."""
    monkeypatch.setattr(replay, "IDLE_SECONDS", 0.02)
    replayed = []
    with small_disk(tmp_path / "disk") as disk, Spool(disk / "spool", max_bytes=1 << 20, overflow="newest") as spool:
        others = disk / "others"
        others.write_bytes(bytes(172 * 1024))
        options = {"on_outage": "spool", "spool": spool, "exit_after_seconds": 0.01}
        with Client(session, "127.0.0.1:9", **options) as client:
            full = list(client.stream(FRAMES[:80]))
            assert full[0].spooled
            assert full[79].error == "dropped (spool: disk full): no server answered in time"
            others.unlink()
            again = list(client.stream(FRAMES[80:]))
            assert all(result.spooled for result in again)
            account, stream_id = client.ledger.account, client._client._link.context.stream_id
        spooled = [result.frame_id for result in [*full, *again] if result.spooled]
        assert account.adds_up
        assert (account.captured, account.spooled) == (120, len(spooled))
        assert sum(account.dropped.values()) == 120 - len(spooled)
        with serving(tiny_folder, tiny_folder / "test.pub") as server:
            options |= {"on_replayed": replayed.append, "exit_after_seconds": 30}
            with Client(session, server.address, **options) as client:
                until(lambda: spool.waiting == 0, "all is replayed", 30)
                assert client.replay_counters.answered == len(spooled)
    assert [one.frame_id for one in replayed] == spooled
    assert {one.stream_id for one in replayed} == {stream_id}
    assert all(right(one.outputs["output"], one.frame_id) for one in replayed)


@contextlib.contextmanager
def killed(process: subprocess.Popen):
    """Whatever fails before it ends by itself: else nobody could close what a thread reads of it."""
    try:
        yield
    finally:
        process.kill()


def test_the_clock_jumps(tiny_folder, trusted, tmp_path):
    """By years, ahead and back, while frames are spooled, replayed and answered before their deadline: nobody minds."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler for the shim that moves the clock")
    shim, moved = tmp_path / "shim.so", tmp_path / "moved"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, SHIM], check=True)
    moved.write_bytes(struct.pack("q", 0))

    def jump(seconds: int) -> None:
        with moved.open("r+b") as file:
            file.write(struct.pack("q", seconds))

    with serving(tiny_folder, tiny_folder / "test.pub") as server:
        port = server.address
    command = [
        sys.executable, "-m", "narrowcast", "stream", tiny_folder / "tiny.ncb", "-", "--raw", f"{SIDE}x{SIDE}", "--to", port,
        "--deadline-ms", 30_000, "--on-outage", "spool", "--spool", tmp_path / "spool", "--spool-hours", 1,
        "--exit-after", 0.3, "--drain", 30, "--full", "--data-cap", "1GB/day", "--data-used", tmp_path / "cap.json",
    ]  # fmt: skip
    environment = {**os.environ, "LD_PRELOAD": str(shim), "CLOCK_SHIM": str(moved)}
    with subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment,
    ) as board, killed(board):  # fmt: skip
        lines: list[dict] = []
        reading = threading.Thread(target=lambda: lines.extend(json.loads(line) for line in board.stdout))
        reading.start()

        def live() -> list[dict]:
            return [one for one in lines if one["from"] != "spool"]

        def feed(first: int, last: int) -> None:
            for frame in FRAMES[first:last]:
                board.stdin.write(frame.tobytes())
            board.stdin.flush()
            until(lambda: len(live()) == last, f"frame {last} has an end", 60)

        for k, years in enumerate((10, -20, 5)):
            feed(3 * k, 3 * k + 3)
            jump(years * YEAR_SECONDS)
        with serving(tiny_folder, tiny_folder / "test.pub", listen=str(port)):
            count = 9
            while live()[-1]["fate"] == "spooled":
                count += 1
                feed(count - 1, count)
            for years in (-30, 30):
                jump(years * YEAR_SECONDS)
                feed(count, count + 3)
                count += 3
            board.stdin.close()
            assert board.wait(60) == 0, board.stderr.read()
        reading.join(10)
    spooled = [line["frame"] for line in live() if line["fate"] == "spooled"]
    assert [line["frame"] for line in live()] == list(range(count))
    assert [line["fate"] for line in live()[-7:]] == ["answered"] * 7
    replayed = [line for line in lines if line["from"] == "spool"]
    assert [line["frame"] for line in replayed] == spooled
    assert spooled[:9] == list(range(9))
    for line in [*replayed, *live()[-7:]]:
        assert right(line["outputs"]["output"]["values"], line["frame"])


CAMERA = """
import socket, sys, time
camera = socket.socket(socket.AF_UNIX)
camera.connect(sys.argv[1])
while data := sys.stdin.buffer.read(int(sys.argv[2])):
    camera.sendall(data)
    time.sleep(0.002)
"""


def test_the_camera_is_unplugged_and_comes_back(session, tiny_folder, tmp_path):
    """In the middle of a frame, which is none then; the process that writes frames is killed, and another one comes."""
    path, size, results = tmp_path / "camera", SIDE * SIDE * 3, []
    source = open_source(f"unix:{path}", raw=RawForm(SIDE, SIDE))

    def camera(first: int, last: int) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", CAMERA, str(path), str(size)], stdin=subprocess.PIPE)
        process.stdin.write(b"".join(frame.tobytes() for frame in FRAMES[first:last]))
        process.stdin.flush()
        return process

    with (
        serving(tiny_folder, tiny_folder / "test.pub") as server,
        Client(session, server.address) as client,
        Feed(source, queue=100, on_drop=lambda: client.ledger.drop("overtaken")) as feed,
    ):
        now = camera(0, 30)
        for result in client.stream(feed):
            results.append(result)
            if len(results) == 30:
                now.stdin.write(FRAMES[30].tobytes()[: size // 2])
                now.stdin.close()
                now.wait()
                until(lambda: feed.counters.openings >= 2, "it is opened again")
                now = camera(31, 60)
            elif len(results) == 59:
                now.kill()
                now.communicate()
                break
        account = client.ledger.account
    numbers = [*range(30), *range(31, 60)]
    assert [result.frame_id for result in results] == list(range(59))
    assert all(right(result.outputs["output"], number) for result, number in zip(results, numbers, strict=True))
    assert account.adds_up
    assert account.answered == 59


def test_two_on_one_state_folder(tiny_folder, trusted, tmp_path, capsys):
    """The second one says so, and touches nothing."""
    with Spool(tmp_path / "spool"):
        words = [tiny_folder / "tiny.ncb", "-", "--raw", f"{SIDE}x{SIDE}", "--to", "127.0.0.1:9"]
        options = ["--on-outage", "spool", "--spool", tmp_path / "spool"]
        assert main(["stream", *map(str, words), *map(str, options)]) == 1
    assert "a folder of its own" in capsys.readouterr().err
