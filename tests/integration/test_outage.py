"""Frames without a server: dropped, held, answered here or spooled, and always accounted for."""

from __future__ import annotations

import asyncio
import time

import grpc
import numpy as np
import pytest
from support import bundles
from support.scripted import Conversation, echo, scripted
from support.server import ServerProcess, serving
from support.waiting import eventually, until

from narrowcast.head import replay
from narrowcast.head.client import AsyncClient, Client
from narrowcast.head.errors import LinkClosedError
from narrowcast.head.outage import Note
from narrowcast.head.session import HeadSession
from narrowcast.head.spool import Spool
from narrowcast.transport.errors import ConfigError, FrameError
from narrowcast.transport.packet import Packet
from narrowcast.transport.rpc import tail_pb2 as pb

FRAMES = bundles.random_frames(60)
NOWHERE = "127.0.0.1:9"  # discard: nobody listens
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


@pytest.fixture(scope="module")
def session(tiny_folder) -> HeadSession:
    return HeadSession(bundles.open_made(tiny_folder / "tiny.ncb"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(replay, "IDLE_SECONDS", 0.02)


def counts(client) -> tuple[int, int, int, dict[str, int]]:
    """Answered, answered here, spooled, dropped; and that they add up."""
    account = client.ledger.account
    assert account.adds_up
    assert account.under_way == 0
    return account.answered, account.local, account.spooled, account.dropped


def test_dropped(session):
    with Client(session, NOWHERE, on_outage="drop", exit_after_seconds=0.05) as client:
        results = list(client.stream(FRAMES[:10]))
        assert [result.frame_id for result in results] == list(range(10))
        assert {(result.error, result.status) for result in results} == {
            ("dropped: no server answered in time", "UNAVAILABLE")
        }
        assert counts(client) == (0, 0, 0, {"UNAVAILABLE": 10})


def test_answered_here(tmp_path):
    made = bundles.with_exit(bundles.make()).write(tmp_path / "exit.ncb")
    session = HeadSession(bundles.open_made(made, "device"))
    with Client(session, NOWHERE, on_outage="local", exit_after_seconds=0.05) as client:
        assert {result.source for result in client.stream(FRAMES[:10])} == {"exit"}
        assert counts(client) == (0, 10, 0, {})


async def test_held_until_there_is_a_server(session):
    async with scripted(echo) as server:
        address = server.address
    async with AsyncClient(session, address, on_outage="block", give_up_seconds=0.01, window=2) as client:
        tasks = [asyncio.create_task(client.infer(frame)) for frame in FRAMES[:4]]
        await eventually(lambda: client.ledger.account.captured == 4, "all are handed over")
        await eventually(
            lambda: not client._link._task.done() and client._link.endpoints.troubles(), "the server is missed"
        )
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert counts(client) == (0, 0, 0, {"cancelled": 4})


async def test_closing_is_an_end_too(session, tmp_path):
    client = AsyncClient(session, NOWHERE, give_up_seconds=None)
    tasks = [await client.submit(frame) for frame in FRAMES[:3]]
    await client.close()
    assert {type(error) for error in await asyncio.gather(*tasks, return_exceptions=True)} == {LinkClosedError}
    with pytest.raises(FrameError):
        await client.infer(np.zeros((3, 3), np.uint8))
    await asyncio.sleep(0)
    assert counts(client) == (0, 0, 0, {"closed": 3, "not encoded": 1})
    with Spool(tmp_path) as spool:
        client = AsyncClient(session, NOWHERE, on_outage="spool", spool=spool, exit_after_seconds=60)
        tasks = [await client.submit(frame) for frame in FRAMES[:3]]
        await client.close()
        assert [task.result().fate for task in tasks] == ["spooled"] * 3
        await asyncio.sleep(0)
        assert counts(client) == (0, 0, 3, {})
        assert [spool.next().packet().frame_id for _ in range(3)] == [0, 1, 2]


async def test_given_up_in_their_order(session, tmp_path, monkeypatch):
    """Frames that come while the link is known to be down wait for those that still hope."""
    with Spool(tmp_path) as spool:
        async with AsyncClient(
            session, NOWHERE, on_outage="spool", spool=spool, exit_after_seconds=0.2, window=30
        ) as client:
            monkeypatch.setattr(client._replayer, "_window", 0)  # nothing of it is taken out
            tasks = []
            for k, frame in enumerate(FRAMES[:20]):
                tasks.append(await client.submit(frame))
                if k == 9:
                    await asyncio.wait(tasks[:1])
            assert {result.spooled for result in await asyncio.gather(*tasks)} == {True}
        spool.rewind()
        assert [spool.next().packet().frame_id for _ in range(20)] == list(range(20))


def test_a_server_is_killed_and_comes_back(session, tiny_folder, tmp_path):
    """Nothing is lost, nothing counted twice; what was spooled comes back in order, with its own times."""
    trust, replayed, live = tiny_folder / "test.pub", [], []
    captured = {}

    def frames():
        for k in range(40):
            captured[k] = client._client._link.now_us()
            yield FRAMES[k]

    with serving(tiny_folder, trust) as first, Spool(tmp_path) as spool:
        options = {"on_outage": "spool", "spool": spool, "exit_after_seconds": 1.0, "on_replayed": replayed.append}
        with Client(session, first.address, **options) as client:
            stream_id = client._client._link.context.stream_id
            for result in client.stream(frames()):
                live.append(result)
                if len(live) == 15:
                    first.kill()
            spooled = [result.frame_id for result in live if result.spooled]
            # Nobody answers what is handed over afterwards; on a busy machine frames before may have waited too long.
            assert spooled == sorted({*spooled, *range(24, 40)})
            assert counts(client) == (40 - len(spooled), 0, len(spooled), {})
            second = ServerProcess(tiny_folder, trust, listen=str(first.address))
            try:
                until(lambda: spool.waiting == 0, "all is replayed", 40)
                until(lambda: client.infer(FRAMES[50]).error is None, "a live frame is answered", 30)
                until(lambda: spool.waiting == 0, "one that was not is replayed as well", 40)
            finally:
                second.end()
            account = client.ledger.account
            assert account.adds_up
            assert client.replay_counters.answered == account.spooled == len(replayed)
    assert [one.frame_id for one in replayed if one.frame_id < 40] == spooled
    replayed = replayed[: len(spooled)]
    assert {one.stream_id for one in replayed} == {stream_id}
    for one in replayed:
        assert one.error is None
        assert np.allclose(one.outputs["output"], bundles.expected_output(FRAMES[one.frame_id], 1), atol=1e-4)
        assert 0 <= one.capture_us - captured[one.frame_id] < 20_000_000
    for result in live:
        if not result.spooled:
            assert np.allclose(result.outputs["output"], bundles.expected_output(FRAMES[result.frame_id], 1), atol=1e-4)


def packet(session, frame_id: int, stream: int = 1, **change) -> Packet:
    payload = session.encode(FRAMES[frame_id], 1).payload
    made = Packet(
        session.codec.codec_id,
        1,
        frame_id,
        time.time_ns() // 1000,
        payload,
        bytes([stream]) * 16,
        session.codec.fingerprint,
    )
    return made._replace(**change)


def spooling(session, address, spool, replayed) -> AsyncClient:
    return AsyncClient(session, address, on_outage="spool", spool=spool, on_replayed=replayed.append)


async def test_what_earlier_runs_left(session, tmp_path):
    """Each stream goes on under its own id, from its own epoch, in the background."""
    replayed = []
    async with scripted(echo) as server:
        with Spool(tmp_path) as spool:
            for k in range(12):
                spool.append(packet(session, k % 4 + k // 4, stream=k // 4))
            async with spooling(session, server.address, spool, replayed):
                await eventually(lambda: spool.waiting == 0, "all is replayed")
    assert [(one.stream_id[0], one.frame_id) for one in replayed] == [(k // 4, k % 4 + k // 4) for k in range(12)]
    assert [one.outputs["output"][0] for one in replayed] == [one.frame_id for one in replayed]
    openings = [talk.opening for talk in server.streams]
    assert [opening.stream_id[0] for opening in openings] == [0, 1, 2]
    assert {opening.priority for opening in openings} == {pb.PRIORITY_BACKGROUND}


async def test_a_server_that_is_full(session, tmp_path):
    """It puts frames off again and again: they come back in order, each told once."""
    replayed, refused = [], 0

    async def full(talk: Conversation) -> None:
        nonlocal refused
        async for frame_id in talk.frames():
            if refused < 3 and frame_id >= 2:
                refused += 1
                talk.say(result=pb.Result(frame_id=frame_id, code=EXHAUSTED, message="full"))
            else:
                talk.answer(frame_id)

    async with scripted(full) as server:
        with Spool(tmp_path) as spool:
            for k in range(8):
                spool.append(packet(session, k))
            async with spooling(session, server.address, spool, replayed) as client:
                client._replayer._pause = 0.01
                await eventually(lambda: spool.waiting == 0, "all is replayed")
                assert client.replay_counters.answered == spool.counters.acknowledged == 8
    assert sorted(one.frame_id for one in replayed) == list(range(8))


async def test_what_no_server_will_ever_answer(session, tmp_path):
    async def picky(talk: Conversation) -> None:
        async for frame_id in talk.frames():
            if frame_id == 1:
                talk.say(result=pb.Result(frame_id=1, code=grpc.StatusCode.INVALID_ARGUMENT.value[0], message="no"))
            else:
                talk.answer(frame_id)

    replayed = []
    async with scripted(picky) as server:
        with Spool(tmp_path) as spool:
            for k in range(3):
                spool.append(packet(session, k), b"no note that anybody wrote")
            async with spooling(session, server.address, spool, replayed) as client:
                await eventually(lambda: spool.waiting == 0, "all is replayed")
                assert (client.replay_counters.answered, client.replay_counters.dropped) == (2, {"INVALID_ARGUMENT": 1})
    assert [one.error for one in replayed] == [None, "no", None]


def test_packets_of_another_model(session, tiny_folder, tmp_path):
    replayed = []
    with serving(tiny_folder, tiny_folder / "test.pub") as server, Spool(tmp_path) as spool:
        spool.append(packet(session, 0, fingerprint=bytes(16)))
        spool.append(packet(session, 1))
        with Client(session, server.address, on_outage="spool", spool=spool, on_replayed=replayed.append) as client:
            client._client._replayer._pause = 0.01
            until(lambda: spool.waiting == 0, "all is dealt with")
            assert client.replay_counters.dropped == {"of a model that no server has": 1}
    assert [(one.frame_id, one.status) for one in replayed] == [(0, "FAILED_PRECONDITION"), (1, "OK")]


def test_a_full_spool_is_a_reason(session, tmp_path):
    with Spool(tmp_path, max_bytes=4096, overflow="newest") as spool:
        with Client(session, NOWHERE, on_outage="spool", spool=spool, exit_after_seconds=0.01) as client:
            results = list(client.stream(FRAMES))
            answered, local, spooled, dropped = counts(client)
            assert (answered, local) == (0, 0)
            assert 0 < spooled < 60
            assert dropped == {"UNAVAILABLE": 60 - spooled}
            assert results[-1].error == "dropped (spool: full): no server answered in time"
            assert spool.counters.spooled == spooled


def test_settings_that_do_not_go_together(session, tmp_path):
    with Spool(tmp_path) as spool:
        for options in (
            {"on_outage": "spool"}, {"spool": spool}, {"on_outage": "drop", "spool": spool}, {"on_outage": "panic"},
            {"on_outage": "drop", "local_exit": True},
        ):  # fmt: skip
            with pytest.raises(ConfigError, match="on_outage"):
                Client(session, NOWHERE, **options)


def test_notes_lead_boxes_back(session):
    placement = session.encode(np.zeros((30, 50, 3), np.uint8), 1).placement
    assert Note.read(Note.of(placement).to_bytes()).placed((8, 8)) == placement
    for damaged in (b"", b"\xff", b"\x80", Note([1, 2]).to_bytes()):
        assert Note.read(damaged).placed((8, 6)).source == (8, 6)
