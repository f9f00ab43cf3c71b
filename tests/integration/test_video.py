"""Frames by reference: the protocol on the server, the client's packets, and both with real processes that die."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys

import grpc
import numpy as np
import pytest
from PIL import Image
from support import bundles
from support.inprocess import held, running, stream, until
from support.scripted import scripted
from support.server import ServerProcess, serving

from narrowcast.head import replay
from narrowcast.head.client import AsyncClient, Client
from narrowcast.head.session import HeadSession
from narrowcast.head.spool import Spool
from narrowcast.head.video import chain
from narrowcast.tail import references
from narrowcast.tail.batcher import Batcher
from narrowcast.tail.drift.profile import profiles
from narrowcast.tail.store import load_model
from narrowcast.transport.errors import ConfigError, ManifestError, MissingPartError
from narrowcast.transport.packet import CodecId, Kind, Packet
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.tensors import from_tensors

INVALID = grpc.StatusCode.INVALID_ARGUMENT.value[0]
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION.value[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for a server: a bundle with video tables, and the key to trust."""
    folder = tmp_path_factory.mktemp("video")
    bundles.with_video(bundles.make()).write(folder / "tiny.ncb")
    bundles.trusted_key().write(folder / "test.pub")
    return folder


@pytest.fixture(scope="module")
def session(folder) -> HeadSession:
    return HeadSession(bundles.open_made(folder / "tiny.ncb"))


@pytest.fixture
def model(folder):
    return held(load_model(bundles.open_made(folder / "tiny.ncb")), held=False)


def filmed(count: int) -> np.ndarray:
    """A still picture, through which a dot goes; every third frame shows what the one before it did, but for noise."""
    random = np.random.default_rng(0)
    still = random.integers(0, 16, (8, 8, 3)) * 16
    frames = []
    for k in range(count):
        frame = still.copy()
        moved = k - (k % 3 == 2)
        frame[moved % 8, moved // 8 % 8] = 255 - frame[moved % 8, moved // 8 % 8]
        frames.append(frame + random.integers(0, 16, frame.shape))
    return np.clip(frames, 0, 255).astype(np.uint8)


FILM = filmed(60)


def check(results, frames=FILM, level: int = 1) -> None:
    """Every frame was answered once, in order, as its own symbols or those of its reference are."""
    assert [result.frame_id for result in results] == list(range(len(frames)))
    for result, frame in zip(results, frames, strict=True):
        assert result.error is None
        shown = frames[result.reference] if result.kind == "skipped" else frame
        assert np.allclose(result.outputs["output"], bundles.expected_output(shown, level), atol=1e-4)


class Wire:
    """A raw stream that sends what a client would."""

    def __init__(self, raw, model) -> None:
        self.raw, self.model, self.memories = raw, model, {}

    @staticmethod
    def symbols(value: int, dot: int = 0) -> np.ndarray:
        symbols = np.full(bundles.SHAPE, value, np.uint8)
        symbols[:, dot, dot] = 15
        return symbols

    async def say(self, frame_id: int, symbols: np.ndarray, reference: int | None = None, **change) -> pb.Result:
        codec, video = self.model.codec, self.model.video
        before = None if reference is None else self.memories[reference]
        payload = codec.encode(symbols, 1) if before is None else video.encode(symbols, 1, before)
        if before is not None:
            kind = {"kind": Kind.PREDICTED, "codec": CodecId.RANS_PREDICTED, "reference": reference}
            change = {**kind, **change}
        self.memories[frame_id] = video.memory(symbols, before)
        await self.raw.send(frame_id, **{"payload": payload, **change})
        return await self.raw.result()

    async def skip(self, frame_id: int, reference: int, **change) -> pb.Result:
        change = {"payload": b"", **change}
        await self.raw.send(frame_id, kind=Kind.SKIP, codec=CodecId.NONE, reference=reference, **change)
        return await self.raw.result()


def opening(model, count: int = 9) -> dict:
    return {"references": count, "video_fingerprint": model.video.fingerprint}


def value(result: pb.Result) -> list[float]:
    return from_tensors(result.outputs, bundles.OUTPUTS)["output"].tolist()


def mean(symbols: np.ndarray) -> list[float]:
    return pytest.approx((symbols.mean((1, 2)) + 100).tolist(), abs=1e-4)


class TestServer:
    async def test_a_chain_of_frames_and_those_that_show_nothing_new(self, model):
        async with running(model) as server, stream(server, model, **opening(model)) as raw:
            wire = Wire(raw, model)
            assert value(await wire.say(0, wire.symbols(3))) == mean(wire.symbols(3))
            assert value(await wire.say(1, wire.symbols(3, 1), 0)) == mean(wire.symbols(3, 1))
            assert value(await wire.say(4, wire.symbols(3, 2), 1)) == mean(wire.symbols(3, 2))
            skipped = await wire.skip(5, 4)
            assert (skipped.code, skipped.same_as, list(skipped.outputs)) == (0, 4, [])
            assert (await wire.skip(6, 1)).same_as == 1
            assert value(await wire.say(7, wire.symbols(3, 3), 4)) == mean(wire.symbols(3, 3))
            records = server.recorder.frames
            assert [record.packet.kind.name for record in records] == (
                ["SYMBOLS", "PREDICTED", "PREDICTED", "SKIP", "SKIP", "PREDICTED"]
            )
            assert value(records[3].result) == mean(wire.symbols(3, 2))  # whoever watches sees the whole answer
            assert records[3].result_bytes < 30
            dots = [0, 1, 2, 2, 1, 3]
            for record, dot in zip(records, dots, strict=True):
                alone = Packet.from_bytes(record.alone().to_bytes())
                assert (alone.kind, alone.reference, alone.frame_id) == (Kind.SYMBOLS, None, record.packet.frame_id)
                decoded, errors = model.codec.decode_batch([alone.payload], [alone.level])
                assert errors == [None]
                assert np.array_equal(decoded[0], wire.symbols(3, dot))

    async def test_what_is_not_there_or_another_is_answered_with_the_wish_for_a_key(self, model, monkeypatch):
        async with running(model) as server, stream(server, model, **opening(model, 3)) as raw:
            wire = Wire(raw, model)
            for frame_id in range(4):
                await wire.say(frame_id, wire.symbols(frame_id))
            wire.memories[9] = wire.memories[1]
            for reference, said in ((0, "frame 0 is not kept"), (9, "frame 9 is not kept")):
                result = await wire.say(20 + reference, wire.symbols(1), reference)
                assert (result.code, result.need_key) == (FAILED_PRECONDITION, True)
                assert said in result.message
                assert "send this frame as a key frame" in result.message
            result = await wire.say(40, wire.symbols(1), 3, level=0)
            assert (result.need_key, "level 1, its successor of 0" in result.message) == (True, True)
            assert (await wire.skip(41, 3, payload=b"\1\1")).need_key
            assert value(await wire.say(42, wire.symbols(1), 3)) == mean(wire.symbols(1))
            result = await wire.say(
                43, wire.symbols(1), 3, payload=b"\0" * 9
            )  # no payload at all: not the reference's fault
            assert (result.code, result.need_key) == (INVALID, False)
            assert (await wire.say(44, wire.symbols(1), 42)).code == 0

    async def test_without_an_agreement_references_are_refused(self, model):
        other = {"references": 9, "video_fingerprint": bytes(16)}
        async with running(model) as server:
            for given in ({}, other):
                async with stream(server, model, **given) as raw:
                    wire = Wire(raw, model)
                    await wire.say(0, wire.symbols(1))
                    for result in (await wire.say(1, wire.symbols(1), 0), await wire.skip(2, 0)):
                        assert (result.code, result.need_key) == (INVALID, False)
                        assert "a stream on which references were agreed" in result.message
            async with server.stub() as stub:
                packet = raw.packet(3, kind=Kind.SKIP, codec=CodecId.NONE, reference=0, payload=b"")
                result = (await stub.Infer(pb.InferRequest(model=model.name, packet=packet.to_bytes()))).result
                assert result.code == INVALID
                assert "kind SKIP, which refers to frame 0" in result.message

    async def test_so_much_is_kept_and_no_more(self, model, monkeypatch):
        size = 3 * int(np.prod(bundles.SHAPE))
        monkeypatch.setattr(references, "MAX_STREAM_BYTES", 3 * size + size // 2)
        async with running(model) as server, stream(server, model, **opening(model, 1000)) as raw:
            wire = Wire(raw, model)
            for frame_id in range(6):
                await wire.say(frame_id, wire.symbols(frame_id))
            room = server.service._room
            assert 0 < room.used <= 3 * size + size // 2
            assert room.clients == {server.recorder.frames[0].stream.client: room.used}
            assert (await wire.skip(10, 5)).same_as == 5
            assert (await wire.skip(11, 2)).need_key
            room.limit = room.used  # other streams have the rest: this one keeps its latest
            await wire.say(12, wire.symbols(1))
            assert (await wire.skip(13, 12)).same_as == 12
            room.limit = 0
            await wire.say(14, wire.symbols(1))
            assert (await wire.skip(15, 14)).need_key
            raw.call.cancel()
            await until(lambda: room.used == 0, "what a stream kept is gone with it")

    async def test_an_answer_that_is_too_large_to_be_kept_is_not_repeated(self, model, monkeypatch):
        monkeypatch.setattr(references, "MAX_ANSWER_BYTES", 10)
        async with running(model) as server, stream(server, model, **opening(model)) as raw:
            wire = Wire(raw, model)
            await wire.say(0, wire.symbols(1))
            assert (await wire.skip(1, 0)).same_as == 0
            assert list(server.recorder.frames[1].result.outputs) == []
            assert server.service._room.used == 3 * int(np.prod(bundles.SHAPE))

    async def test_another_release_answers_for_itself(self, model, folder, tmp_path):
        bundles.with_video(bundles.make(release=2)).write(tmp_path / "2.ncb")
        bundles.make(release=3).write(tmp_path / "3.ncb")
        async with running(model) as server, stream(server, model, **opening(model)) as raw:
            wire = Wire(raw, model)
            await wire.say(0, wire.symbols(1))
            server.table.publish(Batcher(load_model(bundles.open_made(tmp_path / "2.ncb"))))
            result = await wire.skip(1, 0)
            assert (result.need_key, "answered by release 1; now it is 2" in result.message) == (True, True)
            assert value(await wire.say(2, wire.symbols(1, 1), 0)) == mean(wire.symbols(1, 1))
            assert (await wire.skip(3, 2)).same_as == 2
            server.table.publish(Batcher(load_model(bundles.open_made(tmp_path / "3.ncb"))))
            result = await wire.say(4, wire.symbols(1), 2)
            assert (result.need_key, "other video tables" in result.message) == (True, True)
            assert value(await wire.say(5, wire.symbols(1))) == mean(wire.symbols(1))

    async def test_drift_sees_a_predicted_frame_as_it_sees_a_key_frame(self, model):
        async with running(model) as server, stream(server, model, **opening(model)) as raw:
            server.recorder.wants_profiles = True
            wire = Wire(raw, model)
            await wire.say(0, wire.symbols(3))
            await wire.say(1, wire.symbols(3, 1), 0)
            await wire.skip(2, 1)
            key = model.codec.encode(wire.symbols(3, 1), 1)
            wanted = profiles(wire.symbols(3, 1)[None], [len(key)])[0]
            found = [record.profile for record in server.recorder.frames]
            assert np.array_equal(found[1], wanted)
            assert found[2] is None


class TestClient:
    def test_a_camera_s_frames_take_few_bytes_and_their_answers_are_right(self, session, folder):
        with serving(folder, folder / "test.pub") as server:
            with Client(session, server.address, window=1) as client:
                plain = list(client.stream(FILM))
            with Client(session, server.address, window=1, video=True) as client:
                results = list(client.stream(FILM))
                counters, account = client.counters, client.ledger.account
        check(plain)
        check(results)
        assert {result.kind for result in plain} == {"key"}
        kinds = [result.kind for result in results]
        assert kinds[0] == "key"
        assert kinds.count("skipped") == counters.packets_skipped == 20
        assert kinds.count("predicted") == counters.packets_predicted == 39
        assert [r.reference for r in results[:6]] == [None, 0, 1, 1, 3, 4]
        assert {r.packet_bytes for r in results if r.kind == "skipped"} == {24}
        before, after = (sum(r.packet_bytes for r in some) for some in (plain, results))
        assert after < 0.5 * before
        assert after == counters.packet_bytes_sent
        assert (account.captured, account.answered, account.dropped) == (60, 60, {})

    async def test_with_many_under_way_every_reference_is_an_answered_frame(self, session, model, monkeypatch):
        monkeypatch.setattr(chain, "MAX_SYMBOLS_ON_LOOP", 0)  # as for large frames
        async with running(model) as server, AsyncClient(session, server.address, window=8, video=True) as client:
            tasks = [await client.submit(frame) for frame in FILM]
            results = await asyncio.gather(*tasks)
            check(results)
            assert {"key", "predicted"} <= {result.kind for result in results}
            assert client.counters.keys_wanted == 0
            changed = await client.infer(FILM[0], 0)  # another level begins anew
            assert (changed.kind, changed.level) == ("key", 0)
            assert (await client.infer(FILM[1], 0)).kind == "predicted"
            assert (await client.infer(FILM[1], 1)).kind == "key"

    async def test_frames_of_another_size_begin_anew(self, tmp_path):
        path = bundles.with_video(bundles.make_free()).write(tmp_path / "free.ncb")
        bundle = bundles.open_made(path)
        small = [frame[:4] for frame in FILM[:3]]
        frames = [*FILM[:3], *small, FILM[2]]
        async with running(load_model(bundle)) as server:
            async with AsyncClient(bundle, server.address, window=1, video=True) as client:
                results = [await client.infer(frame) for frame in frames]
        assert [r.kind for r in results] == ["key", "predicted", "skipped", "key", "predicted", "skipped", "key"]
        check(results, frames)
        assert results[2].packet_bytes == 26  # it says its size
        skipped = server.recorder.frames[2]
        assert (skipped.packet.payload, skipped.alone().payload[:2]) == (b"\2\2", b"\2\2")

    async def test_a_server_that_keeps_nothing_gets_key_frames(self, session, tiny):
        async with running(held(load_model(tiny), held=False)) as server:
            async with AsyncClient(session, server.address, window=1, video=True) as client:
                results = [await client.infer(frame) for frame in FILM[:9]]
                check(results, FILM[:9])
                assert {result.kind for result in results} == {"key"}

    async def test_a_frame_whose_reference_is_gone_is_sent_again_by_itself_and_the_next_ones_wait_a_while(
        self, session
    ):
        async def forgetful(talk):
            async for frame_id in talk.frames():
                packet = talk.packets[-1]
                if packet.kind.has_reference:
                    talk.answer(frame_id, code=FAILED_PRECONDITION, message="forgotten", need_key=True)
                else:
                    talk.answer(frame_id)

        async with scripted(forgetful, references=9) as server:
            async with AsyncClient(session, server.address, window=1, video=True) as client:
                results = [await client.infer(frame) for frame in FILM[:20]]
                assert [result.error for result in results] == [None] * 20
                assert {result.kind for result in results} == {"key"}
                assert [result.outputs["output"][0] for result in results] == list(range(20))
                # 0 by itself; 1 and 2 again; two rest; 5 again; six rest; 12 again; fourteen rest.
                again = [p.frame_id for p in server.streams[0].packets if p.kind.has_reference]
                assert again == [1, 2, 5, 12]
                assert client.counters.keys_wanted == 4
                assert client.ledger.account.answered == 20

    async def test_a_wish_for_a_key_where_there_was_one_is_the_frames_end(self, session):
        async def confused(talk):
            async for frame_id in talk.frames():
                talk.answer(frame_id, code=FAILED_PRECONDITION, message="no", need_key=True)

        async with scripted(confused, references=9) as server:
            async with AsyncClient(session, server.address, window=1, video=True) as client:
                result = await client.infer(FILM[0])
                assert (result.status, result.error) == ("FAILED_PRECONDITION", "no")
                assert client.counters.packets_resent == 0

    async def test_rate_control_knows_what_frames_take(self, session, model):
        async with running(model) as server:
            async with AsyncClient(session, server.address, window=1, video=True, budget_kbit=1e6) as client:
                for frame in FILM:
                    await client.infer(frame)
                assert client.rate._share < 0.5
                assert client.rate._key_sizes == {}
            async with AsyncClient(session, server.address, window=1, budget_kbit=1e6) as client:
                for frame in FILM[:9]:
                    await client.infer(frame)
                assert client.rate._share == 1

    async def test_what_cannot_be_is_said(self, session, tiny):
        with pytest.raises(ConfigError, match="images have no symbols to predict"):
            AsyncClient(session, "127.0.0.1:1", way="image", video=True)
        with pytest.raises(MissingPartError, match=r"no video tables: compile with video = true under \[coding\]"):
            AsyncClient(tiny, "127.0.0.1:1", video=True)


class TestTrouble:
    def test_a_server_that_is_killed_takes_its_references_along(self, session, folder):
        servers = [ServerProcess(folder, folder / "test.pub") for _ in range(2)]
        film = filmed(150)
        try:
            with Client(session, [server.address for server in servers], window=4, video=True) as client:
                results = []
                for result in client.stream(film):
                    results.append(result)
                    if len(results) in (40, 90):
                        used = client._client._link._stream.endpoint.address
                        hit = next(server for server in servers if server.address == used)
                        hit.kill(signal.SIGKILL)
                        hit.process.communicate()
                        servers.remove(hit)
                        servers.append(ServerProcess(folder, folder / "test.pub", listen=str(hit.address)))
                check(results, film)
                assert client.counters.streams_opened >= 3
                kinds = [result.kind for result in results]
                assert kinds.count("key") >= 3
                assert kinds.count("predicted") + kinds.count("skipped") > 100
                assert client.counters.keys_wanted == 0  # another stream begins with a key by itself
                assert client.ledger.account.answered == 150
        finally:
            for server in servers:
                server.process.kill()
                server.process.communicate()

    async def test_what_is_spooled_can_be_read_by_itself(self, session, model, tmp_path, monkeypatch):
        monkeypatch.setattr(replay, "IDLE_SECONDS", 3600)  # else the client takes it out again
        with Spool(tmp_path / "spool") as spool:
            async with running(model) as server:
                options = {"on_outage": "spool", "spool": spool, "window": 1, "video": True, "exit_after_seconds": 3}
                async with AsyncClient(session, server.address, **options) as client:
                    first = [await client.infer(frame) for frame in FILM[:3]]
                    assert [result.kind for result in first] == ["key", "predicted", "skipped"]
                    model.backend.go.clear()
                    late = await client.infer(FILM[3])
                    assert (late.spooled, late.kind) == (True, "key")
                    packet = spool.next().packet()
                    assert (packet.kind, packet.reference, packet.frame_id) == (Kind.SYMBOLS, None, 3)
                    model.backend.go.set()


def test_the_command_line(folder, tmp_path):
    for number, frame in enumerate(FILM[:6]):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    environment = ["--trust", str(folder / "test.pub"), "--window", "1"]
    with serving(folder, folder / "test.pub") as server:
        command = [sys.executable, "-m", "narrowcast", "stream", str(folder / "tiny.ncb"), str(tmp_path), "--to"]
        command += [str(server.address), *environment]
        found = {}
        for words in (("--video", "on"), ()):
            done = subprocess.run([*command, *words], capture_output=True, text=True, check=True)
            found[words] = [json.loads(line) for line in done.stdout.splitlines()]
            if words:
                assert "2 skipped" in done.stderr
    assert [line["kind"] for line in found["--video", "on"]] == ["key", "predicted", "skipped"] * 1 + [
        "predicted", "predicted", "skipped",
    ]  # fmt: skip
    assert [line["reference"] for line in found["--video", "on"]] == [None, 0, 1, 1, 3, 4]
    assert {line["kind"] for line in found[()]} == {"key"}  # images of a folder are not taken for a camera's


def test_the_manifest_may_list_tables_that_are_none(tmp_path):
    made = bundles.with_video(bundles.make())
    broken = bundles.describe_part("video", b"NCVT", "video", ["device", "server"])
    path = made.with_part(broken, b"NCVT").write(tmp_path / "broken.ncb")
    with pytest.raises(ManifestError, match="video tables have a header of 16 bytes"):
        bundles.open_made(path).video()
    assert bundles.open_made(bundles.make().write(tmp_path / "plain.ncb")).video() is None
