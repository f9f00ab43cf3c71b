"""Spooled frames and servers that are in trouble: what is kept, and for how long."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import grpc
import pytest
from support import bundles, rated
from support.scripted import Conversation, EndedError, echo, scripted
from support.waiting import eventually

from narrowcast.head import doubts, replay
from narrowcast.head.client import AsyncClient
from narrowcast.head.rate.budget import DailyCap
from narrowcast.head.session import HeadSession
from narrowcast.head.spool import Spool
from narrowcast.transport.packet import Packet

FRAMES = bundles.random_frames(60)
OLD = bytes(range(16))  # the codec of a model before


@pytest.fixture(scope="module")
def session(tiny_folder) -> HeadSession:
    return HeadSession(bundles.open_made(tiny_folder / "tiny.ncb"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(replay, "IDLE_SECONDS", 0.02)
    monkeypatch.setattr(replay, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(replay, "LONGEST_PAUSE_SECONDS", 0.05)


def packet(session, frame_id: int, fingerprint: bytes | None = None, payload: bytes | None = None) -> Packet:
    payload = payload or session.encode(FRAMES[frame_id % 60], 1).payload
    codec = session.codec
    return Packet(
        codec.codec_id, 1, frame_id, time.time_ns() // 1000, payload, bytes(16), fingerprint or codec.fingerprint
    )


@pytest.fixture
def wide(tmp_path) -> HeadSession:
    """Packets of 3.5 kB."""
    return HeadSession(bundles.open_made(rated.make().write(tmp_path / "rated.ncb"), "device"))


def fill(spool: Spool, session, count: int, fingerprint: bytes | None = None) -> None:
    for k in range(count):
        assert spool.append(packet(session, k, fingerprint)) is None


def spooling(session, address, spool, replayed, **options) -> AsyncClient:
    return AsyncClient(session, address, on_outage="spool", spool=spool, on_replayed=replayed.append, **options)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("UNAUTHENTICATED", "the token has expired"),
        ("UNIMPLEMENTED", "unknown service"),  # a proxy
        ("FAILED_PRECONDITION", "no model 'tiny' here; there is none at all"),
    ],
)
async def test_a_refusal_for_another_reason_costs_no_frame_of_a_model_before(session, tmp_path, status, words):
    replayed = []

    async def refuses_at_first(talk: Conversation) -> None:
        if talk.number < 3:
            raise EndedError(grpc.StatusCode[status], words)
        await echo(talk)

    async with scripted(refuses_at_first) as server:
        with Spool(tmp_path) as spool:
            fill(spool, session, 10, OLD)
            async with spooling(session, server.address, spool, replayed) as client:
                await eventually(lambda: spool.waiting == 0, "all is replayed", 40)
                assert (client.replay_counters.answered, client.replay_counters.dropped) == (10, {})
    assert [one.frame_id for one in replayed] == list(range(10))


async def test_a_model_before_is_given_up_where_every_server_says_so(session, tmp_path):
    """One of two servers says that it has another codec; the other one's token has expired."""
    replayed = []
    said = EndedError(
        grpc.StatusCode.FAILED_PRECONDITION, f"the client's bundle has the codec {OLD.hex()}, the server's"
    )

    async def has_another(talk: Conversation) -> None:
        if talk.opening.codec_fingerprint == OLD:
            raise said
        await echo(talk)

    async def shut(talk: Conversation) -> None:
        if talk.opening.codec_fingerprint == OLD and not opened:
            raise EndedError(grpc.StatusCode.UNAUTHENTICATED, "the token has expired")
        await has_another(talk)

    opened = False
    async with scripted(has_another) as one, scripted(shut) as other:
        with Spool(tmp_path) as spool:
            fill(spool, session, 3, OLD)
            async with spooling(session, [one.address, other.address], spool, replayed) as client:
                await eventually(lambda: len(other.streams) + len(one.streams) >= 6, "it is tried again")
                assert spool.waiting == 3
                opened = True
                await eventually(lambda: spool.waiting == 0, "they are given up", 40)
                assert client.replay_counters.dropped == {"of a model that no server has": 3}
    assert {one.status for one in replayed} == {"FAILED_PRECONDITION"}


async def test_the_spool_forgets_a_frame_once_what_was_told_of_it_is_kept(session, tmp_path):
    told, kept = [], asyncio.Event()

    def tell(replayed):
        told.append(replayed.frame_id)
        return kept.wait()

    async with scripted(echo) as server:
        with Spool(tmp_path) as spool:
            fill(spool, session, 3)
            async with AsyncClient(session, server.address, on_outage="spool", spool=spool, on_replayed=tell) as client:
                await eventually(lambda: len(told) == 3, "all are told")
                assert (spool.waiting, client.replay_counters.answered) == (3, 0)
                kept.set()
                await eventually(lambda: spool.waiting == 0, "all are acknowledged")
                assert client.replay_counters.answered == 3
    assert sorted(told) == [0, 1, 2]


INTERNAL = grpc.StatusCode.INTERNAL.value[0]


def fails(talk: Conversation, frame_id: int, code: int = INTERNAL) -> None:
    talk.answer(frame_id, code=code, message="the tail failed: CUDA error")


@pytest.mark.parametrize("code", [INTERNAL, grpc.StatusCode.UNKNOWN.value[0]])
async def test_a_server_that_fails_on_everything_costs_nothing(session, tmp_path, code):
    """It is asked again, with few frames, until it is mended."""
    replayed, mended = [], False
    failed = 0

    async def broken(talk: Conversation) -> None:
        nonlocal failed
        async for frame_id in talk.frames():
            if mended:
                talk.answer(frame_id)
            else:
                failed += 1
                fails(talk, frame_id, code)

    async with scripted(broken) as server:
        with Spool(tmp_path) as spool:
            fill(spool, session, 60)
            async with spooling(session, server.address, spool, replayed) as client:
                await eventually(lambda: failed > 100, "it fails again and again", 40)
                assert (spool.waiting, len(replayed)) == (60, 0)
                tried = {frame_id for talk in server.streams for frame_id in talk.arrived}
                assert max(tried) < doubts.LOOK_AHEAD + 4
                mended = True
                await eventually(lambda: spool.waiting == 0, "all is replayed", 40)
                assert (client.replay_counters.answered, client.replay_counters.dropped) == (60, {})
    assert {one.error for one in replayed} == {None}


@pytest.mark.parametrize("poison", [{0}, {0, 1, 2, 3, 4, 5, 11}], ids=["one", "more than the window"])
async def test_a_packet_that_a_server_fails_on_again_and_again_is_given_up(session, tmp_path, poison):
    replayed = []

    async def picky(talk: Conversation) -> None:
        async for frame_id in talk.frames():
            if frame_id in poison:
                fails(talk, frame_id)
            else:
                talk.answer(frame_id)

    async with scripted(picky) as server:
        with Spool(tmp_path) as spool:
            fill(spool, session, 60)
            async with spooling(session, server.address, spool, replayed) as client:
                await eventually(lambda: spool.waiting == 0, "all is dealt with", 40)
                counters = client.replay_counters
                assert (counters.answered, counters.dropped) == (60 - len(poison), {"INTERNAL": len(poison)})
        tries = sum(talk.arrived.count(0) for talk in server.streams)
        assert tries == doubts.STRIKES + 1
    assert {one.frame_id for one in replayed if one.error == "the tail failed: CUDA error"} == poison
    assert sorted(one.frame_id for one in replayed) == list(range(60))


async def test_live_frames_show_that_it_is_the_packet(session, tmp_path):
    """The only one in the spool: it goes once live frames are answered, and not before."""
    replayed = []

    async def picky(talk: Conversation) -> None:
        async for frame_id in talk.frames():
            if talk.opening.stream_id == bytes(16):
                fails(talk, frame_id)
            else:
                talk.answer(frame_id)

    async with scripted(picky) as server:
        with Spool(tmp_path) as spool:
            fill(spool, session, 1)
            async with spooling(session, server.address, spool, replayed, exit_after_seconds=30) as client:
                await eventually(lambda: len(server.streams) > 2 * doubts.STRIKES, "it is tried again")
                assert spool.waiting == 1
                while spool.waiting:
                    tried = len(server.streams)
                    assert (await client.infer(FRAMES[0])).error is None
                    await eventually(lambda: len(server.streams) > tried or not spool.waiting, "it is tried again")  # noqa: B023
                assert client.replay_counters.dropped == {"INTERNAL": 1}
    assert [one.status for one in replayed] == ["INTERNAL"]


async def test_what_would_be_late_is_spooled(wide, tmp_path):
    """A server hangs: rate control sends hardly anything any more, and nothing is lost."""
    speaking, replayed, results = asyncio.Event(), [], []
    speaking.set()

    async def hangs(talk: Conversation) -> None:
        async for frame_id in talk.frames():
            await speaking.wait()
            talk.answer(frame_id)

    async def feed(client: AsyncClient, until, what: str) -> None:
        tasks = []
        ends = time.monotonic() + 40
        while not until():
            assert time.monotonic() < ends, f"still not: {what}"
            tasks.append(asyncio.create_task(client.infer(rated.frames(1)[0])))
            await asyncio.wait(tasks, timeout=0.05)
        results.extend(await asyncio.gather(*tasks))

    async with scripted(hangs) as server:
        with Spool(tmp_path / "spool") as spool:
            options = {"level": "auto", "deadline_ms": 500, "exit_after_seconds": 2}
            async with spooling(wide, server.address, spool, replayed, **options) as client:
                await feed(client, lambda: client.counters.results >= 10, "frames are answered")
                before = client.rate.dropped["late"]
                speaking.clear()
                await feed(client, lambda: client.rate.dropped["late"] >= before + 10, "frames would be late")
                speaking.set()
                await eventually(lambda: spool.waiting == 0, "all is replayed", 40)
                account = client.ledger.account
                assert (account.answered + account.spooled, account.dropped) == (account.captured, {})
    late = [result for result in results if result.dropped == "late"]
    assert {(result.spooled, result.level) for result in late} == {(True, rated.LEVELS - 1)}
    assert late[-1].error == "spooled: not sent: no answer would have been there before its deadline"
    assert len(late) >= 10
    assert sorted(one.frame_id for one in replayed) == sorted(one.frame_id for one in results if one.spooled)


def fill_wide(spool: Spool, session, count: int) -> None:
    payload = session.encode(rated.frames(1)[0], rated.LEVELS - 1).payload
    for k in range(count):
        assert spool.append(packet(session, k, payload=payload)) is None


async def test_replays_leave_live_frames_their_budget(wide, tmp_path):
    """Twice as many bytes are replayed as the bucket holds; no live frame is dropped for it."""
    replayed = []
    async with scripted(echo) as server:
        with Spool(tmp_path / "spool") as spool:
            fill_wide(spool, wide, 120)
            options = {"budget_kbit": 400, "exit_after_seconds": 30}
            async with spooling(wide, server.address, spool, replayed, **options) as client:
                for k in range(1, 7):
                    await eventually(lambda: len(replayed) >= 10 * k, "spooled frames are replayed", 40)  # noqa: B023
                    result = await client.infer(rated.frames(1)[0])
                    assert (result.dropped, result.error) == (None, None)
                assert client.rate.dropped == {}


async def test_replays_leave_live_frames_half_of_the_day(wide, tmp_path):
    replayed = []
    async with scripted(echo) as server:
        with Spool(tmp_path / "spool") as spool:
            fill_wide(spool, wide, 120)
            cap = DailyCap(200_000, tmp_path / "used.json")
            options = {"data_cap": cap, "exit_after_seconds": 30}
            async with spooling(wide, server.address, spool, replayed, **options) as client:
                await eventually(lambda: not cap.has_spare(), "half is used up", 40)
                await eventually(lambda: not client._replayer._running, "nothing is under way")
                assert 15 < len(replayed) < 60  # 27 by what is charged for each
                live = [await client.infer(rated.frames(1)[0]) for _ in range(10)]
                assert {(result.dropped, result.error) for result in live} == {(None, None)}
                assert spool.waiting > 50


class HeldDisk:
    """Each sync waits until it is let go; whoever waits in vain is known."""

    def __init__(self) -> None:
        self.syncing, self.let_go = threading.Event(), threading.Event()
        self.threads: set[int] = set()
        self.in_vain = False
        self._sync = os.fdatasync

    def __call__(self, file: int) -> None:
        self.threads.add(threading.get_ident())
        self.syncing.set()
        if not self.in_vain:
            self.in_vain = not self.let_go.wait(30)
        self._sync(file)


async def test_a_disk_that_takes_its_time_holds_nobody_up(session, tmp_path, monkeypatch):
    """While an acknowledgement is put on disk, live frames are answered and the spool tells how much waits."""
    replayed, disk = [], HeldDisk()
    async with scripted(echo) as server:
        with Spool(tmp_path, sync_seconds=0) as spool:
            fill(spool, session, 5)
            monkeypatch.setattr(os, "fdatasync", disk)
            async with spooling(session, server.address, spool, replayed, exit_after_seconds=30) as client:
                await eventually(disk.syncing.is_set, "an acknowledgement is put on disk", 40)
                assert 0 < spool.waiting < 5
                assert spool.size_bytes > 0
                assert (await client.infer(FRAMES[0])).error is None
                assert threading.get_ident() not in disk.threads
                disk.let_go.set()
                await eventually(lambda: spool.waiting == 0, "all is replayed", 40)
                assert client.replay_counters.answered == spool.counters.acknowledged == 5
    assert not disk.in_vain


async def test_what_was_told_is_not_told_again_by_the_next_client(session, tmp_path, monkeypatch):
    """A client is closed while the disk holds acknowledgements up: they are waited for."""
    replayed, disk = [], HeldDisk()
    async with scripted(echo) as server:
        with Spool(tmp_path, sync_seconds=0) as spool:
            fill(spool, session, 3)
            monkeypatch.setattr(os, "fdatasync", disk)
            async with spooling(session, server.address, spool, replayed) as client:
                await eventually(disk.syncing.is_set, "an acknowledgement is put on disk", 40)
                closing = asyncio.create_task(client.close())
                await asyncio.sleep(0)
                disk.let_go.set()
                await closing
            async with spooling(session, server.address, spool, replayed):
                await eventually(lambda: spool.waiting == 0, "the others are told", 40)
    assert [one.frame_id for one in replayed] == [0, 1, 2]


async def test_a_client_that_has_retired_leaves_the_spool_alone(session, tmp_path):
    """It is closed while the next one's frames are under way: none of them is handed out again."""
    replayed, speaking = [], asyncio.Event()

    async def holds(talk: Conversation) -> None:
        async for frame_id in talk.frames():
            await speaking.wait()
            talk.answer(frame_id)

    async with scripted(holds) as server:
        with Spool(tmp_path) as spool:
            fill(spool, session, 10)
            async with spooling(session, "127.0.0.1:9", spool, replayed) as old:
                await old.retire()
                async with spooling(session, server.address, spool, replayed) as new:
                    await eventually(lambda: server.streams and len(server.streams[0].arrived) == 4, "four are sent")
                    await old.close()
                    speaking.set()
                    await eventually(lambda: spool.waiting == 0, "all is replayed", 40)
                    assert (new.replay_counters.answered, new.replay_counters.late) == (10, 0)
    assert [one.frame_id for one in replayed] == list(range(10))
