"""Links that are cut, lose packets and hide that a server is gone: real servers, real TCP, packets that are really lost."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from support import bundles
from support.links import wants_packets
from support.server import ServerProcess, serving
from support.waiting import until

from narrowcast.devices.links import emulated
from narrowcast.head import liveness, replay
from narrowcast.head.client import Client
from narrowcast.head.session import HeadSession
from narrowcast.head.spool import Spool

pytestmark = wants_packets
FRAMES = bundles.random_frames(200)


@pytest.fixture(scope="module")
def session(tiny_folder) -> HeadSession:
    return HeadSession(bundles.open_made(tiny_folder / "tiny.ncb"))


def right(answer, frame_id: int) -> bool:
    expected = bundles.expected_output(FRAMES[frame_id % len(FRAMES)], 1)
    return answer.error is None and np.allclose(answer.outputs["output"], expected, atol=1e-4)


@pytest.mark.parametrize("server_dies", [False, True])
def test_the_link_is_cut_and_nobody_says_so(session, tiny_folder, tmp_path, monkeypatch, server_dies):
    """Where the server dies meanwhile, its last word (FIN) is lost: the client's connection is half open.

    Frames of the outage are spooled; each comes back, once; live frames go on by themselves.
    """
    monkeypatch.setattr(liveness, "HUNG_SECONDS", 1.0)
    monkeypatch.setattr(replay, "IDLE_SECONDS", 0.02)
    live, replayed, wanted = [], [], True

    def frames():
        k = 0
        while wanted:
            yield FRAMES[k % len(FRAMES)]
            k += 1

    trust = tiny_folder / "test.pub"
    with (
        serving(tiny_folder, trust) as first,
        emulated("20mbit,2ms,1ms", str(first.address), how="packets") as link,
        Spool(tmp_path) as spool,
        Client(
            session, link.address, on_outage="spool", spool=spool, exit_after_seconds=0.3, on_replayed=replayed.append
        ) as client,
    ):
        second, hangs = None, 0
        for result in client.stream(frames()):
            live.append(result)
            fates = Counter(one.fate for one in live)
            if len(live) == 40:
                link.cut()
                hangs = client.counters.hangs
                if server_dies:
                    first.kill()
            elif fates["spooled"] == 20:
                until(lambda hangs=hangs: client.counters.hangs > hangs, "the silence is noticed while it lasts", 10)
                if server_dies:
                    second = ServerProcess(tiny_folder, trust, listen=str(first.address))
                link.mend()
            wanted = fates["spooled"] < 20 or live[-1].fate != "answered"
        until(lambda: spool.waiting == 0, "all is replayed", 40)
        account, counters, passed = client.ledger.account, client.replay_counters, link.counts()
        if second is not None:
            second.end()
    assert [result.frame_id for result in live] == list(range(len(live)))
    spooled = [result.frame_id for result in live if result.spooled]
    assert all(right(result, result.frame_id) for result in live if not result.spooled)
    assert account.adds_up
    assert (account.captured, account.answered, account.spooled) == (len(live), len(live) - len(spooled), len(spooled))
    assert counters.answered == len(spooled)
    assert [one.frame_id for one in replayed] == spooled
    assert all(right(one, one.frame_id) for one in replayed)
    assert passed.up.cut


def test_packets_are_lost_and_late(session, tiny_folder):
    """TCP sends them again: every answer comes, once, in order."""
    with (
        serving(tiny_folder, tiny_folder / "test.pub") as server,
        emulated("4mbit,10ms,8ms,5%", str(server.address), how="packets", seed=1) as link,
    ):
        with Client(session, link.address, window=16) as client:
            results = list(client.stream(FRAMES))
            account = client.ledger.account
        passed = link.counts()
    assert [result.frame_id for result in results] == list(range(len(FRAMES)))
    assert all(right(result, result.frame_id) for result in results)
    assert account.adds_up
    assert account.answered == len(FRAMES)
    assert passed.up.lost
    assert passed.down.lost


def test_connections_break_again_and_again(session, tiny_folder):
    """A box on the way forgets them: what was under way is sent again and reported once."""
    results = []
    with (
        serving(tiny_folder, tiny_folder / "test.pub") as server,
        emulated("20mbit,2ms", str(server.address), how="packets") as link,
        Client(session, link.address, window=16) as client,
    ):
        for result in client.stream(FRAMES):
            results.append(result)
            if len(results) in (40, 80, 120):
                link.reset()
        counters, account = client.counters, client.ledger.account
    assert [result.frame_id for result in results] == list(range(len(FRAMES)))
    assert all(right(result, result.frame_id) for result in results)
    assert counters.streams_opened > 1
    assert account.adds_up
    assert account.answered == len(FRAMES)
