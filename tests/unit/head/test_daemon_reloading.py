"""A daemon that is told other settings while it runs: all of them, or as it was; and what it counts goes on."""

from __future__ import annotations

import asyncio
import re

import msgspec
import pytest
from support import bundles
from support.running import SOCKET, Run, reloaded, settings, told
from support.scripted import echo, scripted
from support.waiting import eventually

from narrowcast.head.daemon.daemon import Daemon
from narrowcast.head.daemon.metrics import Metrics
from narrowcast.transport.errors import ConfigError


@pytest.mark.parametrize(("uri", "why"), [("rstp://camera/1", "no source rstp://"), ("none.png", "no image or folder")])
async def test_a_source_that_cannot_be_is_refused_while_the_one_before_goes_on(tmp_path, uri, why):
    async with scripted(echo) as server:
        config = settings(tmp_path, server.address, SOCKET)
        async with Run(config, tmp_path) as run:
            lane = run.daemon.lanes["in"]
            await reloaded(run, tmp_path, 'unix:in.sock"\nraw = "8x8"', f'{uri}"')
            assert why in run.daemon.status().refused
            assert run.daemon.lanes == {"in": lane}
            _, camera = await asyncio.open_unix_connection(tmp_path / "in.sock")
            camera.write(bytes(8 * 8 * 3))
            await eventually(lambda: len(told(tmp_path)) == 1, "it goes on")
            camera.close()


async def test_a_source_that_turns_out_not_to_open_is_what_it_was(tmp_path):
    """Nothing is wrong with the settings: the socket's folder is not there."""
    async with scripted(echo) as server:
        config = settings(tmp_path, server.address, SOCKET)
        async with Run(config, tmp_path) as run:
            await reloaded(run, tmp_path, "unix:in.sock", "unix:none/in.sock")
            assert "none/in.sock" in run.daemon.status().refused
            _, camera = await asyncio.open_unix_connection(tmp_path / "in.sock")
            camera.write(bytes(8 * 8 * 3))
            await eventually(lambda: len(told(tmp_path)) == 1, "it goes on as it was")
            camera.close()
            (tmp_path / "none").mkdir()
            await reloaded(run, tmp_path, "none/in.sock", "none/./in.sock")
            assert run.daemon.status().refused is None
            assert (tmp_path / "none" / "in.sock").exists()


async def test_what_links_have_done_is_counted_on_while_clients_change_and_end(tmp_path):
    """Also while an old client still waits for its last answers."""
    asked, goes_on = [], asyncio.Event()

    async def script(talk):
        async for frame_id in talk.frames():
            asked.append(frame_id)
            await goes_on.wait()
            talk.answer(frame_id)

    def shown(daemon: Daemon, name: str) -> float:
        text = Metrics(daemon).text().decode()
        return float(re.search(rf'^narrowcast_edge_{name}{{source="in"}} (.*)$', text, re.MULTILINE)[1])

    async with scripted(script) as server:
        config = settings(tmp_path, server.address, SOCKET + "exit_after_seconds = 60\n")
        async with Run(config, tmp_path) as run:
            lane = run.daemon.lanes["in"]
            await eventually((tmp_path / "in.sock").exists, "it listens")
            _, camera = await asyncio.open_unix_connection(tmp_path / "in.sock")
            camera.write(bytes(8 * 8 * 3 * 2))
            await eventually(lambda: shown(run.daemon, "packets_sent_total") == 2, "two are sent")
            await reloaded(run, tmp_path, "exit_after_seconds = 60", "exit_after_seconds = 61")
            assert lane._retired, "the old client is still there"
            assert shown(run.daemon, "packets_sent_total") == 2
            goes_on.set()
            await eventually(lambda: not lane._retired, "it has ended")
            assert shown(run.daemon, "packets_sent_total") == 2
            opened = shown(run.daemon, "source_openings_total")
            run.stop.set()
            await run.task  # its sources are still shown
            assert shown(run.daemon, "packets_sent_total") == 2
            assert shown(run.daemon, "source_openings_total") == opened
            camera.close()


async def test_another_state_folder_counts_from_the_next_start_on_for_all(tmp_path):
    tables = SOCKET + 'on_outage = "spool"\ndata_cap = "1GB/day"\n'
    config = settings(tmp_path, "127.0.0.1:9", tables)
    async with Run(config, tmp_path) as run:
        await reloaded(run, tmp_path, 'state = "state"', 'state = "other"')
        await reloaded(run, tmp_path, 'raw = "8x8"', 'raw = "8x8"\nqueue = 3')
        assert run.daemon.lanes["in"].source.queue == 3, "it is begun anew"
        assert run.daemon.lanes["in"].spool.folder == tmp_path / "state" / "spool" / "in"
    assert not (tmp_path / "other").exists()


async def test_figures_stay_where_they_are_when_the_settings_are_refused(tmp_path):
    config = settings(tmp_path, "127.0.0.1:9", SOCKET + f'[metrics]\nlisten = "unix:{tmp_path}/one"\n')
    async with Run(config, tmp_path) as run:
        await eventually((tmp_path / "one").exists, "they are shown")
        bad = '/two"\n[[outputs]]\nkind = "socket"\npath = "edge.toml"\n'
        await reloaded(run, tmp_path, '/one"\n', bad)
        assert "edge.toml" in run.daemon.status().refused
        assert [(tmp_path / name).exists() for name in ("one", "two")] == [True, False]


async def test_a_source_goes_on_by_reference_when_its_bundle_is_gone(tmp_path):
    """Its video tables were read when it was checked; a client that cannot be made leaves the one before as it was."""
    async with scripted(echo) as server:
        made = bundles.with_video(bundles.make())
        config = settings(tmp_path, server.address, SOCKET + 'video = "on"\n', made)
        async with Run(config, tmp_path) as run:
            lane = run.daemon.lanes["in"]
            bundles.make(name="other").write(tmp_path / "tiny.ncb")
            before = lane.client
            await lane.change(lane.config, lane.source, lane.model)
            assert lane.client is not before
            before, retired = lane.client, []
            before.client.retire = lambda: retired.append(True)
            bad = msgspec.structs.replace(lane.source, level=99)
            with pytest.raises(ConfigError, match="source 'in': level = 99"):
                await lane.change(lane.config, bad, lane.model)
            assert lane.client is before
            assert not retired
            del before.client.retire


async def test_a_bundle_that_is_refused_stays_refused_while_the_one_before_goes_on(tmp_path):
    """Also when the running one's file is looked at again."""
    config = settings(tmp_path, "127.0.0.1:9", "check_bundle_seconds = 0.1\n" + SOCKET)
    async with Run(config, tmp_path) as run:
        lane, looks = run.daemon.lanes["in"], []
        before, look = lane.client, run.daemon._look_at_bundle
        await reloaded(run, tmp_path, 'bundle = "tiny.ncb"', 'bundle = "none.ncb"')

        async def counted():
            await look()
            looks.append(run.daemon.status().refused)

        run.daemon._look_at_bundle = counted
        await eventually(lambda: len(looks) > 1, "it is looked at")
        assert all("none.ncb" in refused for refused in looks)
        assert run.daemon.model_changes == 0
        assert lane.client is before
        await reloaded(run, tmp_path, 'bundle = "none.ncb"', 'bundle = "tiny.ncb"')
        assert run.daemon.status().refused is None


async def test_another_bundle_that_something_unforeseen_keeps_out_leaves_the_running_one_alone(tmp_path):
    config = settings(tmp_path, "127.0.0.1:9", "check_bundle_seconds = 0.1\n" + SOCKET)
    async with Run(config, tmp_path) as run:
        bundles.make(release=2).write(tmp_path / "other.ncb")
        looks, look = [], run.daemon._look_at_bundle

        async def surprising(outputs):
            raise ZeroDivisionError("nobody has foreseen this")

        async def counted():
            await look()
            looks.append(run.daemon.model_changes)

        run.daemon._outputs.change = surprising
        run.daemon._look_at_bundle = counted
        await reloaded(run, tmp_path, 'bundle = "tiny.ncb"', 'bundle = "other.ncb"')
        assert "nobody has foreseen this" in run.daemon.status().refused
        seen = len(looks)
        await eventually(lambda: len(looks) > seen + 1, "it is looked at")
        assert not any(looks)


async def test_settings_that_nobody_foresaw_end_nothing(tmp_path):
    config = settings(tmp_path, "127.0.0.1:9", SOCKET)
    async with Run(config, tmp_path) as run:
        await reloaded(run, tmp_path, 'path = "out"', 'path = "~nobody_has_this_name/out"')
        assert "nobody_has_this_name" in run.daemon.status().refused

        def surprising():
            raise ZeroDivisionError("nobody has foreseen this")

        run.daemon._reread = surprising
        await reloaded(run, tmp_path, "", "")
        assert "nobody has foreseen this" in run.daemon.status().refused
