"""A daemon in the test's own process: refusals, lost sources, models that are not what they say, and nothing left behind."""

from __future__ import annotations

import asyncio
import errno
import gc
import itertools
import os
from collections import Counter

import grpc
import numpy as np
import pytest
from PIL import Image
from support import bundles
from support.running import FRAMES, Run, photos, settings, told, told_count
from support.scripted import EndedError, echo, scripted
from support.waiting import eventually

from narrowcast.head.daemon import clients
from narrowcast.head.daemon import lane as lanes
from narrowcast.head.daemon.model import load_model
from narrowcast.head.errors import BackendError, ModelRefusedError, SourceError, StuckSourceError
from narrowcast.head.rate import budget
from narrowcast.head.session import HeadSession
from narrowcast.head.sources import feed
from narrowcast.transport.bundle import describe_part
from narrowcast.transport.codec import open_codec
from narrowcast.transport.contract import InputContract
from narrowcast.transport.errors import CertificateError, FrameError, MissingPartError
from narrowcast.transport.selfcheck import SelfCheck, SymbolBound, reference_frames
from narrowcast.transport.structs import to_json


async def test_servers_that_refuse_are_an_outage_and_are_tried_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(lanes, "FIRST_RENEWAL_SECONDS", 0.0)
    refusing = [True]

    async def script(talk):
        if refusing:
            raise EndedError(grpc.StatusCode.PERMISSION_DENIED, "not you")
        async for frame_id in talk.frames():
            talk.answer(frame_id, code=3, message="a word of its own")

    async with scripted(script) as server:
        made = bundles.with_exit(bundles.make())
        config = settings(tmp_path, server.address, photos(tmp_path, 2) + "exit_after_seconds = 60", made)
        async with Run(config, tmp_path) as run:
            await eventually(lambda: len(told(tmp_path)) == 2, "the local exit answers")
            assert {line["from"] for line in told(tmp_path)} == {"exit"}
            refusing.clear()
            Image.fromarray(FRAMES[2]).save(tmp_path / "in" / "later.png")
            await eventually(lambda: len(told(tmp_path)) == 3, "a third frame")
            streams = len(server.streams)
            for number in range(10):
                Image.fromarray(FRAMES[3]).save(tmp_path / "in" / f"more{number}.png")
                await eventually(lambda number=number: len(told(tmp_path)) == 4 + number, "one more")
                if told(tmp_path)[-1].get("message") == "a word of its own":
                    break
            assert told(tmp_path)[-1]["code"] == 3, "the server was tried anew"
            assert len(server.streams) >= streams
            ledger = run.daemon.status().ledger
            assert ledger.local >= 2
            theirs = [line for line in told(tmp_path) if line.get("message") == "a word of its own"]
            assert ledger.dropped == {"INVALID_ARGUMENT": len(theirs)}


async def test_certificates_that_are_being_replaced_put_a_new_link_off(tmp_path, monkeypatch, caplog):
    """A link that is refused is made anew, and at that moment one of the files is not there."""
    monkeypatch.setattr(lanes, "FIRST_RENEWAL_SECONDS", 0.0)
    refusing, replacing = [True], []

    def files(*args, **more) -> None:
        if replacing:
            raise CertificateError("tls.crt is not there")

    async def script(talk):
        if refusing:
            raise EndedError(grpc.StatusCode.PERMISSION_DENIED, "not you")
        await echo(talk)

    monkeypatch.setattr(clients, "client_tls", files)
    async with scripted(script) as server:
        made = bundles.with_exit(bundles.make())
        config = settings(tmp_path, server.address, '[tls]\ndir = "tls"\n' + photos(tmp_path, 1), made)
        async with Run(config, tmp_path) as run:
            replacing.append(True)
            await eventually(lambda: run.task.done() or "tls.crt is not there; trying anew" in caplog.text, "it fails")
            replacing.clear()
            refusing.clear()
            for number in itertools.count(2):  # those before there is a link are the local exit's
                Image.fromarray(FRAMES[2]).save(tmp_path / "in" / f"{number}.png")
                await eventually(lambda number=number: run.task.done() or len(told(tmp_path)) == number, "one more")
                assert not run.task.done()
                if told(tmp_path)[-1]["from"] == "server":
                    break
                assert number < 60, "no server was tried anew"


async def test_who_blocks_waits_for_servers_that_refuse(tmp_path):
    refusals = 2

    async def script(talk):
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise EndedError(grpc.StatusCode.PERMISSION_DENIED, "not you")
        await echo(talk)

    async with scripted(script) as server:
        tables = '[[sources]]\nname = "in"\nuri = "pipe"\nraw = "8x8"\non_outage = "block"\nwindow = 2'
        config = settings(tmp_path, server.address, tables)
        (tmp_path / "pipe").write_bytes(bytes(8 * 8 * 3 * 40))
        async with Run(config, tmp_path) as run:
            assert await asyncio.wait_for(run.task, 60) == 0
            ledger = run.daemon.status().ledger
    assert (ledger.captured, ledger.answered, ledger.dropped) == (40, 40, {})
    assert [line["frame_id"] for line in told(tmp_path)] == list(range(40))


async def test_frames_that_are_refused_do_not_hold_up_another_model(tmp_path):
    """Those that wait for a server that knows the new one alone are given up; those to come go through the new one."""
    old = bundles.make().manifest.release

    async def script(talk):
        if refusing:
            raise EndedError(grpc.StatusCode.NOT_FOUND, "not that one")
        await echo(talk)

    refusing = True
    async with scripted(script) as server:
        tables = '[[sources]]\nname = "in"\nuri = "pipe"\nraw = "8x8"\non_outage = "block"\nwindow = 2'
        config = settings(tmp_path, server.address, "check_bundle_seconds = 0.1\n" + tables)
        (tmp_path / "pipe").write_bytes(bytes(8 * 8 * 3 * 10))
        async with Run(config, tmp_path) as run:
            await eventually(lambda: server.streams, "it is refused")
            bundles.make(release=old + 1).write(tmp_path / "new.ncb").rename(tmp_path / "tiny.ncb")
            await eventually(lambda: run.daemon.model_changes == 1, "the new model takes over")
            await eventually(lambda: run.daemon.status().ledger.dropped, "those under way are given up")
            refusing = False
            assert await asyncio.wait_for(run.task, 60) == 0
            ledger = run.daemon.status().ledger
    assert ledger.dropped == {"refused": 2}
    assert ledger.answered == 8
    assert {line["release"] for line in told(tmp_path) if line["code"] == 0} == {old + 1}


async def test_what_was_captured_when_it_ends_is_spooled_to_the_last_frame(tmp_path, monkeypatch):
    monkeypatch.setattr(lanes, "SPOOLING_SECONDS", 60)
    tables = '[[sources]]\nname = "in"\nuri = "unix:in.sock"\nraw = "8x8"\non_outage = "spool"\nwindow = 2\nqueue = 8'
    tables += "\nexit_after_seconds = 60"
    config = settings(tmp_path, "127.0.0.1:9", tables)
    async with Run(config, tmp_path) as run:
        await eventually((tmp_path / "in.sock").exists, "it listens")
        _, camera = await asyncio.open_unix_connection(tmp_path / "in.sock")
        camera.write(bytes(8 * 8 * 3 * 8))
        await eventually(lambda: run.daemon.lanes["in"].feed.counters.frames == 4, "under way, at the door, ahead")
        await eventually(lambda: len(run.daemon.lanes["in"].feed._frames) == 4, "four wait")
        run.stop.set()
        assert await run.task == 0
        ledger = run.daemon.status().ledger
        camera.close()
    assert (ledger.captured, ledger.spooled, ledger.dropped, ledger.under_way) == (8, 8, {}, 0)
    found = told(tmp_path)
    assert [line["frame_id"] for line in found] == list(range(8))
    assert {line["type"] for line in found} == {"spooled"}


async def test_what_was_captured_when_it_ends_is_accounted_for_to_the_last_frame_where_nothing_keeps_it(tmp_path):
    """More frames wait than may be under way: each one that is given up lets the next one come."""
    tables = '[[sources]]\nname = "in"\nuri = "unix:in.sock"\nraw = "8x8"\non_outage = "block"\nwindow = 1\nqueue = 8'
    config = settings(tmp_path, "127.0.0.1:9", tables)
    async with Run(config, tmp_path) as run:
        await eventually((tmp_path / "in.sock").exists, "it listens")
        _, camera = await asyncio.open_unix_connection(tmp_path / "in.sock")
        camera.write(bytes(8 * 8 * 3 * 8))
        await eventually(
            lambda: len(run.daemon.lanes["in"].feed._frames) == 5, "under way, at the door, ahead; five wait"
        )
        lane = run.daemon.lanes["in"]
        run.stop.set()
        await run.task
        await eventually(lambda: not lane._thread.is_alive(), "no thread is left")
        ledger = run.daemon.status().ledger
        camera.close()
    assert (ledger.captured, ledger.dropped["closed"], ledger.under_way) == (8, 8, 0)


@pytest.mark.parametrize("stage", ["head", "resize"])
async def test_what_a_library_raises_loses_one_frame(tmp_path, monkeypatch, caplog, stage):
    where = HeadSession if stage == "head" else InputContract
    name = "encode" if stage == "head" else "prepare"
    right, bad = getattr(where, name), FRAMES[1]

    def fails(self, frame, *args, **more):
        if np.array_equal(getattr(frame, "frame", frame), bad):
            raise ValueError("could not broadcast")
        return right(self, frame, *args, **more)

    async with scripted(echo) as server:
        config = settings(tmp_path, server.address, photos(tmp_path, 12) + "exit_after_seconds = 60")
        monkeypatch.setattr(where, name, fails)
        async with Run(config, tmp_path) as run:
            assert await asyncio.wait_for(run.task, 60) == 0
            ledger = run.daemon.status().ledger
    assert (ledger.captured, ledger.answered, ledger.dropped) == (12, 9, {"not encoded": 3})
    assert len(told(tmp_path)) == 9
    told_of = [record for record in caplog.records if "could not be encoded" in record.message]
    assert [record.args[-1] for record in told_of] == [1, 2], "not a line for each"
    assert "001.png: ValueError('could not broadcast')" in told_of[0].message
    assert told_of[0].exc_info is not None


async def test_a_head_that_fails_again_and_again_ends_the_source_and_a_good_frame_begins_the_count_anew(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(lanes, "MAX_FAILURES", 3)
    encode, frames = HeadSession.encode, 0

    def fails(self, *args, **more):
        nonlocal frames
        frames += 1
        if frames in (1, 2, 4, 5) or frames > 6:
            raise RuntimeError("the device is lost")
        return encode(self, *args, **more)

    async with scripted(echo) as server:
        config = settings(tmp_path, server.address, photos(tmp_path, 15) + "exit_after_seconds = 60")
        monkeypatch.setattr(HeadSession, "encode", fails)
        async with Run(config, tmp_path) as run:
            with pytest.raises(BackendError, match=r"3 frames in a row .*008.png: RuntimeError.*the device is lost"):
                await asyncio.wait_for(run.task, 60)
            ledger = run.daemon.status().ledger
    assert (ledger.captured, ledger.answered, ledger.dropped, ledger.under_way) == (9, 2, {"not encoded": 7}, 0)
    assert any("in: the source ends: 3 frames in a row" in record.message for record in caplog.records)


async def test_images_that_are_no_frames_end_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(lanes, "MAX_FAILURES", 1)

    def refuses(self, *args, **more):
        raise FrameError("no frame")

    config = settings(tmp_path, "127.0.0.1:9", photos(tmp_path, 10))
    monkeypatch.setattr(HeadSession, "encode", refuses)
    async with Run(config, tmp_path) as run:
        assert await asyncio.wait_for(run.task, 60) == 0
        assert run.daemon.status().ledger.dropped == {"not encoded": 10}


async def test_a_disk_that_turns_read_only_does_not_end_what_has_a_data_cap(tmp_path, monkeypatch, caplog):
    def read_only(path, **how):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    async with scripted(echo) as server:
        more = photos(tmp_path, 2) + 'data_cap = "100MB/day"\nexit_after_seconds = 60'
        config = settings(tmp_path, server.address, "check_bundle_seconds = 0.1\n" + more)
        async with Run(config, tmp_path) as run:
            await eventually(lambda: len(told(tmp_path)) == 2, "two frames")
            monkeypatch.setattr(budget, "replacing", read_only)
            cap = run.daemon.figures["in"].cap
            left = cap.left()
            cap.spend(90_000_000)
            bundles.make(release=2).write(tmp_path / "new.ncb").rename(tmp_path / "tiny.ncb")
            await eventually(lambda: run.task.done() or run.daemon.model_changes == 1, "the new model takes over")
            config = tmp_path / "edge.toml"
            config.write_text(config.read_text().replace("100MB", "95MB"))
            run.daemon.reload()
            await eventually(lambda: run.task.done() or cap.most_bytes == 95_000_000, "it is reloaded")
            Image.fromarray(FRAMES[2]).save(tmp_path / "in" / "later.png")
            await eventually(lambda: run.task.done() or len(told(tmp_path)) == 3, "a third frame")
            assert not run.task.done()
            assert 0 < cap.left() <= left - 95_000_000
            assert run.daemon.status().ledger.answered == 3
    assert caplog.text.count("counted in memory") == 1


async def test_a_source_that_is_lost_in_the_system_ends_it(tmp_path, monkeypatch):
    monkeypatch.setattr(feed, "MAX_STUCK", 0)
    config = settings(
        tmp_path, "127.0.0.1:9", f'[[sources]]\nname = "cam"\nuri = "unix:{tmp_path}/in.sock"\nraw = "4x4"'
    )
    async with Run(config, tmp_path) as run:
        with pytest.raises(StuckSourceError, match="source 'cam' is lost"):
            await run.task


async def test_a_file_that_is_no_video_is_an_error(tmp_path):
    (tmp_path / "raw").write_bytes(b"123")
    config = settings(tmp_path, "127.0.0.1:9", '[[sources]]\nname = "file"\nuri = "raw"\nraw = "4x4"')
    async with Run(config, tmp_path) as run:
        with pytest.raises(SourceError, match="it ends after 3"):
            await run.task


def checked(symbols_of: int) -> bundles.Made:
    """A bundle with a self-check: symbols of the head, moved by so much."""
    made = bundles.make()
    codec = open_codec(made.manifest.codec, bundles.tables())
    frames = reference_frames((bundles.SIDE, bundles.SIDE), 1)
    payloads = [
        [codec.encode(np.minimum((frame // divisor).transpose(2, 0, 1) + symbols_of, 15).astype(np.uint8), level)]
        for level, divisor in enumerate((32, 16))
        for frame in frames
    ]
    data = to_json(SelfCheck(payloads=payloads, bounds={"fp32": [SymbolBound(moved=0.01, step=1)] * 2}))
    return made.with_part(describe_part("selfcheck.json", data, "selfcheck", ["device"]), data)


def test_a_model_that_does_not_give_its_own_symbols_is_refused(tmp_path):
    config = settings(tmp_path, "127.0.0.1:9", photos(tmp_path, 1), checked(0))
    model = load_model(config, lambda: ["onnxruntime"])
    assert model.manifest.release == 1
    checked(2).write(tmp_path / "tiny.ncb")
    with pytest.raises(ModelRefusedError, match="does not run as it should here"):
        load_model(config, lambda: ["onnxruntime"], model)


async def test_a_local_exit_that_is_not_there_is_said_at_the_start(tmp_path):
    config = settings(tmp_path, "127.0.0.1:9", photos(tmp_path, 1) + 'on_outage = "local"')
    async with Run(config, tmp_path) as run:
        with pytest.raises(MissingPartError, match="has no local exit"):
            await run.task


async def test_many_frames_leave_nothing_behind(tmp_path):
    """Counted in objects, while nothing is under way, which is exact; in bytes, bench/ does it for half an hour."""

    async def forgetful(talk):
        async for frame_id in talk.frames():
            talk.answer(frame_id)
            for kept in (talk.packets, talk.arrived, talk.deadlines_ms):
                kept.clear()

    async with scripted(forgetful) as server:
        config = settings(tmp_path, server.address, '[[sources]]\nname = "in"\nuri = "pipe"\nraw = "8x8"')
        counts = []
        os.mkfifo(tmp_path / "pipe")
        async with Run(config, tmp_path) as run:
            with await asyncio.to_thread((tmp_path / "pipe").open, "wb") as pipe:
                for stage in (1, 2, 3):
                    pipe.write(bytes(8 * 8 * 3 * 150))
                    pipe.flush()
                    await eventually(lambda stage=stage: told_count(tmp_path) == 150 * stage, "all are told", 60)
                    gc.collect()
                    counts.append(Counter(type(one).__qualname__ for one in gc.get_objects()))
            assert await run.task == 0
    # After the first frames, 300 more. What stays of a frame is 300 of some type; the loop keeps up to 100 cancelled timers.
    assert {name: count for name, count in (counts[2] - counts[0]).items() if count >= 150} == {}
