"""Rate control in the real client, against a real server, through a link whose rate changes."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque

import numpy as np
import pytest
from support import bundles, rated
from support.relay import thin
from support.server import serving

from narrowcast.cli import main
from narrowcast.head.client import AsyncClient, Client
from narrowcast.head.rate.budget import DailyCap
from narrowcast.head.session import HeadSession
from narrowcast.transport.errors import ConfigError

FPS = 12
DEADLINE_MS = 500
WIDE, NARROW = 120_000, 24_000  # bytes a second; level 2 alone takes 42 kB, level 0 21 kB


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("rated")
    rated.with_exit(rated.make()).write(made / "rated.ncb")
    bundles.trusted_key().write(made / "test.pub")
    return made


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder, folder / "test.pub") as running:
        yield running


@pytest.fixture
def session(folder):
    return HeadSession(bundles.open_made(folder / "rated.ncb", "device"))


class Camera:
    """Frames at an even rate; remembers the levels of the last ones that were sent."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self.levels: deque[int] = deque(maxlen=FPS)
        self.results = []
        self.asked = 0
        self._waiting = []

    async def until(self, condition, what: str, seconds: float = 30.0) -> None:
        frames, ends = rated.frames(8), time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < ends, f"after {seconds} s still not: {what}; last levels {list(self.levels)}"
            self._waiting.append(asyncio.create_task(self._frame(frames[self.asked % 8])))
            self.asked += 1
            await asyncio.sleep(1 / FPS)

    async def _frame(self, frame) -> None:
        result = await self.client.infer(frame)
        self.results.append(result)
        if result.dropped is None:
            self.levels.append(result.level)

    def mean_level(self) -> float:
        return float(np.mean(self.levels)) if len(self.levels) == FPS else -1.0

    async def end(self) -> None:
        await asyncio.gather(*self._waiting)


async def test_levels_follow_the_link_down_and_up_again(session, server):
    async with (
        thin(str(server.address), WIDE) as relay,
        AsyncClient(session, relay.address, level="auto", deadline_ms=DEADLINE_MS, local_exit=False) as client,
    ):
        camera = Camera(client)
        await camera.until(lambda: camera.mean_level() > 1.6, "the highest level on a wide link")
        relay.bytes_per_second = NARROW
        camera.levels.clear()
        await camera.until(lambda: 0 <= camera.mean_level() < 0.6, "the lowest level on a narrow link")
        relay.bytes_per_second = WIDE
        camera.levels.clear()
        await camera.until(lambda: camera.mean_level() > 1.6, "the highest level again")
        await camera.end()
    assert len(camera.results) == camera.asked  # each frame once
    for result in camera.results:
        assert (result.error is None) == (result.status == "OK")
        assert result.dropped in (None, "late")


async def test_what_cannot_be_in_time_is_not_sent_and_probes_are_few(session, server):
    """A link that carries no frame within its deadline: nearly all are dropped at once, a few are sent to see."""
    async with (
        thin(str(server.address), 2_000) as relay,
        AsyncClient(session, relay.address, level="auto", deadline_ms=200, local_exit=False) as client,
    ):
        camera = Camera(client)
        await camera.until(lambda: client.rate.dropped["late"] >= 20, "20 frames dropped early")
        assert client.counters.packets_sent < camera.asked / 2
        await camera.end()
    dropped = [result for result in camera.results if result.dropped]
    assert {(result.dropped, result.status, result.packet_bytes) for result in dropped} == {
        ("late", "DEADLINE_EXCEEDED", 0)
    }


def test_the_exit_answers_what_is_not_sent(session, server, tmp_path):
    cap = DailyCap(40_000, tmp_path / "used.json")
    frames = rated.frames(40)
    with Client(
        session, server.address, level="auto", deadline_ms=60_000, exit_after_seconds=60, data_cap=cap
    ) as client:
        results = list(client.stream(frames))
        assert client.rate.dropped["data-cap"] > 0
    assert [result.frame_id for result in results] == list(range(40))
    assert {result.source for result in results} == {"server", "exit"}
    for result, frame in zip(results, frames, strict=True):
        assert result.error is None
        assert (result.source == "exit") == (result.dropped == "data-cap")
        gain = 16 << (2 - result.level)
        expected = (frame // gain).reshape(-1, 3).mean(0) + 100 * result.level
        assert np.allclose(result.outputs["output"], expected + 1000 * (result.source == "exit"), atol=1e-2)
    with Client(session, server.address, local_exit=False, data_cap=DailyCap(40_000, tmp_path / "used.json")) as client:
        again = client.infer(frames[0])  # the cap outlives the process
    assert (again.dropped, again.status) == ("data-cap", "RESOURCE_EXHAUSTED")
    assert "the day's bytes are used up" in again.error


def test_a_budget_is_kept_on_the_socket(session, server):
    """200 frames of 3.5 kB at once: what is not within the budget is not sent."""
    with Client(session, server.address, local_exit=False, budget_kbit=400, window=2) as client:
        started, before = time.monotonic(), sum(client.socket_bytes() or ())  # of clients that were just closed
        results = list(client.stream(rated.frames(200)))
        seconds, carried = time.monotonic() - started, sum(client.socket_bytes()) - before
    sent = [result for result in results if result.dropped is None]
    assert len(sent) >= 10
    assert {result.dropped for result in results} == {None, "budget"}
    # two seconds' worth may go at once; one frame more may pass before the kernel is asked again
    assert carried <= 50_000 * (2 + seconds) + 4 * 4000


def test_packets_that_are_too_large(session, server):
    """Noise takes 2, 3 or 4 bits a symbol: a limit between them decides the level, one below them drops the frame."""
    frame = rated.frames(1)[0]
    with Client(session, server.address, local_exit=False, max_packet_bytes=2700) as client:
        result = client.infer(frame)
        assert (result.error, result.level, client.rate.downgraded) == (None, 1, 1)
    with Client(session, server.address, local_exit=False, max_packet_bytes=500) as client:
        result = client.infer(frame)
        assert (result.dropped, result.status) == ("too-large", "RESOURCE_EXHAUSTED")
        assert client.counters.packets_sent == 0


def test_what_cannot_be_asked_for(session, tmp_path):
    bare = HeadSession(bundles.open_made(rated.make(figures=False).write(tmp_path / "bare.ncb"), "device"))
    with pytest.raises(ConfigError, match="rated does not say what its levels are worth"):
        Client(bare, "127.0.0.1:9", level="auto")
    with pytest.raises(ConfigError, match="images have no levels"):
        Client(session, "127.0.0.1:9", level="auto", way="image")
    with pytest.raises(ConfigError, match="a budget of 0"):
        Client(session, "127.0.0.1:9", budget_kbit=0)
    with pytest.raises(ConfigError, match="header alone"):
        Client(session, "127.0.0.1:9", max_packet_bytes=10)


def test_the_command_line(folder, server, tmp_path, capsys):
    from PIL import Image

    photos = tmp_path / "photos"
    photos.mkdir()
    for number, frame in enumerate(rated.frames(12)):
        Image.fromarray(frame).save(photos / f"{number:02d}.png")
    command = [
        "stream", str(folder / "rated.ncb"), str(photos), "--to", str(server.address), "--no-exit",
        "--trust", str(folder / "test.pub"), "--level", "auto", "--deadline-ms", "60000",
    ]  # fmt: skip
    assert main([*command, "--data-cap", "12kB/day", "--data-used", str(tmp_path / "used.json")]) == 0
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert {line["dropped"] for line in lines} == {None, "data-cap"}
    assert "not sent (data-cap)" in captured.err
    assert main([*command, "--data-cap", "20kB"]) != 0
    assert "it is bytes a day: 1GB/day" in capsys.readouterr().err
    assert main([*command, "--budget", "fast"]) != 0
    assert "it is bits a second: 200kbit" in capsys.readouterr().err
    assert main([*command, "--data-used", "x"]) != 0
