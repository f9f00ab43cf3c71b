"""Clients and several real servers, which are killed, stopped and drained while frames flow."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support import bundles
from support.scripted import echo, scripted
from support.server import ServerProcess

from narrowcast.head import liveness
from narrowcast.head.client import AsyncClient, Client
from narrowcast.head.session import HeadSession

FRAMES = bundles.random_frames(300)


@pytest.fixture(scope="module")
def session(tiny_folder) -> HeadSession:
    return HeadSession(bundles.open_made(tiny_folder / "tiny.ncb"))


@pytest.fixture
def servers(tiny_folder) -> Iterator[list[ServerProcess]]:
    """Two servers."""
    with ThreadPoolExecutor(2) as pool:
        starting = [pool.submit(ServerProcess, tiny_folder, tiny_folder / "test.pub") for _ in range(2)]
    with contextlib.ExitStack() as stack:
        for one in starting:
            stack.callback(end, one.result())
        yield [one.result() for one in starting]


def end(server: ServerProcess) -> None:
    if server.process.poll() is None:
        server.process.kill()
    server.process.communicate()


def used(client: Client, servers: list[ServerProcess]) -> tuple[ServerProcess, ServerProcess]:
    """The server that the client uses, and the other one."""
    stream = client._client._link._stream
    assert stream is not None
    return tuple(sorted(servers, key=lambda server: server.address != stream.endpoint.address))


def check(results, frames) -> None:
    """Every frame was answered once, in order, rightly."""
    assert [result.frame_id for result in results] == list(range(len(frames)))
    for result, frame in zip(results, frames, strict=True):
        assert result.error is None
        assert np.allclose(result.outputs["output"], bundles.expected_output(frame, 1), atol=1e-4)


def harmed(client: Client, servers: list[ServerProcess], number: int) -> tuple[list, ServerProcess]:
    """All frames' results where the server in use gets a signal while they flow; and that server."""
    results, hit = [], None
    for result in client.stream(FRAMES):
        results.append(result)
        if len(results) == 60:
            hit, _ = used(client, servers)
            hit.kill(number)
    return results, hit


def test_one_is_killed(session, servers):
    with Client(session, [server.address for server in servers], window=16) as client:
        results, _ = harmed(client, servers, signal.SIGKILL)
        check(results, FRAMES)
        assert client.counters.streams_opened >= 2


def test_one_stands_still_and_goes_on_after_the_other_has_answered(session, servers, monkeypatch):
    """Its answers come late, or never: nothing is reported twice."""
    monkeypatch.setattr(liveness, "HUNG_SECONDS", 1.0)
    with Client(session, [server.address for server in servers], window=16) as client:
        results, stopped = harmed(client, servers, signal.SIGSTOP)
        check(results, FRAMES)
        assert client.counters.hangs >= 1
        stopped.kill(signal.SIGCONT)
        assert client.infer(FRAMES[0]).error is None
        assert used(client, servers)[0] is not stopped
        assert client.counters.results == len(FRAMES) + 1


def test_one_is_drained_and_nobody_notices(session, servers):
    troubles: list[str] = []
    to = ",".join(str(server.address) for server in servers)
    with Client(session, to, window=16, on_trouble=troubles.append) as client:
        results, drained = harmed(client, servers, signal.SIGTERM)
        check(results, FRAMES)
        assert drained.process.wait(30) == 0
        assert client.counters.drains == 1
        assert client.counters.packets_resent == 0
    assert troubles == []


def test_they_change_places_again_and_again(session, servers, tiny_folder):
    """Each is killed in turn, and comes back on its own port."""
    results = []
    with Client(session, [server.address for server in servers], window=8) as client:
        for result in client.stream(FRAMES):
            results.append(result)
            if len(results) in (50, 150):
                hit, _ = used(client, servers)
                end(hit)
                again = ServerProcess(tiny_folder, tiny_folder / "test.pub", listen=str(hit.address))
                servers[servers.index(hit)] = again
        check(results, FRAMES)
        assert client.counters.streams_opened >= 3
    for server in servers:
        end(server)


async def test_many_clients_spread_over_the_servers(session):
    async with scripted(echo) as first, scripted(echo) as second:
        to = [first.address, second.address]
        clients = [AsyncClient(session, to) for _ in range(16)]
        await asyncio.gather(*(client.infer(FRAMES[0]) for client in clients))
        for client in clients:
            await client.close()
    assert len(first.streams) + len(second.streams) == 16
    assert first.streams  # all at one: once in 2^15 runs
    assert second.streams
