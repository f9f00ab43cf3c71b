"""Which server a client goes to, and whether that one is alive: beside scripted servers on real sockets."""

from __future__ import annotations

import asyncio
import socket
import time
from itertools import pairwise

import grpc
import numpy as np
import pytest
from support.linked import FRAMES, all_of, check
from support.relay import thin
from support.scripted import NOT_SERVING, Conversation, EndedError, echo, scripted
from support.waiting import eventually

from narrowcast.head import liveness
from narrowcast.head.client import AsyncClient
from narrowcast.head.errors import PeerUnreachableError, RefusedError
from narrowcast.head.link import Link
from narrowcast.head.stream import Stream
from narrowcast.transport.packet import CodecId, Packet

pytestmark = pytest.mark.usefixtures("given_order")


class TestTroubles:
    async def test_a_link_that_worked_and_broke_is_not_blamed_on_tls(self, session):
        async def breaking(talk: Conversation) -> None:
            if talk.number:
                await echo(talk)
            talk.answer(await talk.frame())
            await talk.frame()
            raise EndedError(
                grpc.StatusCode.UNAVAILABLE, "Socket closed"
            )  # as gRPC says it where the other end is killed

        troubles: list[str] = []
        async with scripted(breaking) as server:
            async with AsyncClient(session, server.address, on_trouble=troubles.append) as client:
                for frame in FRAMES[:2]:
                    assert (await asyncio.wait_for(client.infer(frame), 20)).error is None
        assert troubles == [f"link to {server.address}: UNAVAILABLE: Socket closed; trying again"]


class TestClosing:
    async def test_the_link_ends_where_that_coincides_with_an_opening(self, session, monkeypatch):
        begin = Stream._begin
        ends: list[bool] = []

        async def coinciding(stream: Stream, *args) -> None:
            await begin(stream, *args)
            # Runs when this has returned, and before the link is woken.
            asyncio.get_running_loop().call_soon(lambda: ends.append(client._link._task.cancel()))

        monkeypatch.setattr(Stream, "_begin", coinciding)
        async with scripted(echo) as server:
            client = AsyncClient(session, server.address)
            task = await client.submit(FRAMES[0])
            await eventually(lambda: ends, "the link is told to end")
            done, _ = await asyncio.wait([client._link._task], timeout=3)
            assert done
            assert client._link._task.cancelled()
            await client.close()
            await asyncio.gather(task, return_exceptions=True)


class TestChoice:
    async def test_a_server_that_is_not_serving_is_passed_over(self, session):
        async with scripted(echo, status=NOT_SERVING) as first, scripted(echo) as second:
            async with AsyncClient(session, [first.address, second.address]) as client:
                check(await all_of(client, 3), 3)
        assert all(talk.arrived == [] for talk in first.streams)
        assert second.streams[0].arrived == [0, 1, 2]

    async def test_where_none_is_serving_one_that_takes_frames_is_better_than_none(self, session):
        async with scripted(echo, status=NOT_SERVING) as first, scripted(echo, status=NOT_SERVING) as second:
            async with AsyncClient(session, [first.address, second.address]) as client:
                check(await all_of(client, 3), 3)

    async def test_a_server_that_refuses_is_passed_over(self, session):
        async def other_codec(talk: Conversation) -> None:
            raise EndedError(grpc.StatusCode.FAILED_PRECONDITION, "another codec")

        async with scripted(other_codec) as first, scripted(echo) as second:
            async with AsyncClient(session, [first.address, second.address]) as client:
                check(await all_of(client, 3), 3)

    async def test_where_all_refuse_that_is_the_error(self, session):
        async def other_codec(talk: Conversation) -> None:
            raise EndedError(grpc.StatusCode.FAILED_PRECONDITION, "another codec")

        async with scripted(other_codec) as first, scripted(other_codec) as second:
            async with AsyncClient(session, [first.address, second.address]) as client:
                with pytest.raises(RefusedError) as refused:
                    await asyncio.wait_for(client.infer(FRAMES[0]), 20)
        for server in (first, second):
            assert f"{server.address} refuses: another codec" in str(refused.value)

    async def test_one_that_refuses_and_one_that_is_gone_are_both_tried_until_it_is_given_up(self, session):
        async def other_codec(talk: Conversation) -> None:
            raise EndedError(grpc.StatusCode.FAILED_PRECONDITION, "another codec")

        async with scripted(other_codec) as first:
            to, troubles = [first.address, "127.0.0.1:9"], []
            async with AsyncClient(session, to, give_up_seconds=5, on_trouble=troubles.append) as client:
                with pytest.raises(PeerUnreachableError, match="another codec"):
                    await asyncio.wait_for(client.infer(FRAMES[0]), 20)
        for address in to:
            told = [trouble for trouble in troubles if address in trouble]
            assert told
            assert all(a != b for a, b in pairwise(told)), "the same trouble again is no news"

    async def test_it_stays_with_its_server_when_the_first_choice_is_back(self, session):
        async def breaking(talk: Conversation) -> None:
            if talk.number == 0:
                await talk.frame()
                raise EndedError(grpc.StatusCode.UNAVAILABLE)
            await echo(talk)

        async with scripted(breaking) as first, scripted(echo) as second:
            async with AsyncClient(session, [first.address, second.address]) as client:
                check(await all_of(client, 30), 30)
        assert (len(first.streams), len(second.streams)) == (1, 1)

    async def test_a_name_stands_for_all_its_addresses_and_is_looked_up_again(self, session, monkeypatch):
        there = ["127.0.0.2", "127.0.0.3"]

        def known(host, port, *rest, **options):
            assert host == "tails.test"
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (where, port)) for where in there]

        async def moving(talk: Conversation) -> None:
            talk.answer(await talk.frame())
            await talk.frame()
            raise EndedError(grpc.StatusCode.UNAVAILABLE)

        monkeypatch.setattr(socket, "getaddrinfo", known)
        async with scripted(moving, listen="127.0.0.3:0") as third:
            port = third.address.rpartition(":")[2]
            async with scripted(echo, listen=f"127.0.0.4:{port}") as fourth:
                async with AsyncClient(session, f"tails.test:{port}") as client:
                    check([await client.infer(FRAMES[0])], 1)  # 127.0.0.2 is nobody
                    there[:] = ["127.0.0.4"]
                    assert (await asyncio.wait_for(client.infer(FRAMES[1]), 20)).error is None
        assert (third.streams[0].arrived, fourth.streams[0].arrived) == ([0, 1], [1])


class TestLiveness:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch):
        monkeypatch.setattr(liveness, "HUNG_SECONDS", 0.4)
        monkeypatch.setattr(liveness, "TICK_SECONDS", 0.02)
        monkeypatch.setattr(liveness, "PROMISE_SECONDS", 0.5)

    async def test_a_server_that_is_slow_and_lives_is_waited_for(self, session):
        async def slow(talk: Conversation) -> None:
            frame_id = await talk.frame()
            await eventually(lambda: talk.pings >= 8, "pings")
            talk.answer(frame_id)
            await echo(talk)

        async with scripted(slow) as server, AsyncClient(session, server.address) as client:
            check(await all_of(client, 3), 3)
            assert (client.counters.streams_opened, client.counters.hangs) == (1, 0)
            assert client.counters.packets_resent == 0
        assert len(server.streams) == 1

    async def test_a_server_that_hears_nothing_is_left(self, session):
        async def hung(talk: Conversation) -> None:
            talk.deaf = True
            await asyncio.Event().wait()

        async with scripted(hung) as first, scripted(echo) as second:
            async with AsyncClient(session, [first.address, second.address]) as client:
                check(await all_of(client, 12), 12)
                assert client.counters.hangs == 1
        assert second.streams[0].arrived == list(range(12))
        assert first.streams[0].pings >= 1

    async def test_nothing_goes_over_an_idle_link(self, session):
        async with scripted(echo) as server, AsyncClient(session, server.address) as client:
            check(await all_of(client, 3), 3)
            pings = server.streams[0].pings
            # What follows the answers (acknowledgements of HTTP/2) has passed when nothing has moved for a while.
            before, since = client.socket_bytes(), time.monotonic()
            quiet = 4 * liveness.HUNG_SECONDS
            deadline = since + 20
            while time.monotonic() < since + quiet:
                assert time.monotonic() < deadline, "bytes are moving all the time on an idle link"
                if (now := client.socket_bytes()) != before:
                    before, since = now, time.monotonic()
                await asyncio.sleep(0.02)
            assert server.streams[0].pings == pings
            assert client.socket_bytes() == before is not None

    async def test_the_server_is_promised_more_time_for_a_large_packet(self, session, monkeypatch):
        monkeypatch.setattr(liveness, "ASSUMED_BYTES_PER_SECOND", 100)
        async with scripted(echo) as server, AsyncClient(session, server.address) as client:
            check(await all_of(client, 1), 1)
        size = len(server.streams[0].packets[0].payload)
        assert server.streams[0].limits_ms[0] == 500
        assert server.streams[0].limits_ms[1] >= 1.5 * size / 100 * 1000 - 1


async def test_a_wall_clock_that_jumps_changes_nothing(session, monkeypatch):
    """The wall clock is read once, for the packets' epoch; from there they go by the monotonic clock."""
    jumps = iter(range(10**9, 10**15, 10**9))

    async def breaking(talk: Conversation) -> None:
        if talk.number:
            return await echo(talk)
        await talk.frame()
        raise EndedError(grpc.StatusCode.UNAVAILABLE)

    async with scripted(breaking) as server, AsyncClient(session, server.address, deadline_ms=20_000) as client:
        monkeypatch.setattr(time, "time", lambda: float(next(jumps)))
        monkeypatch.setattr(time, "time_ns", lambda: -next(jumps))
        check(await all_of(client, 10), 10)
        monkeypatch.undo()
        assert client.counters.streams_opened == 2
    epoch_us = server.streams[0].opening.epoch_us
    times_us = [packet.capture_us for packet in server.streams[1].packets]
    assert times_us == sorted(times_us)
    assert times_us[0] >= epoch_us
    assert times_us[-1] - epoch_us < 60e6


class TestThinLink:
    """Large packets take longer than the time after which nothing heard means hung."""

    BYTES_PER_SECOND = 20_000
    PACKET_BYTES = 30_000

    async def test_it_does_not_flap(self, tiny, monkeypatch):
        # Well above what a busy machine holds a process up for; the rest is in proportion.
        monkeypatch.setattr(liveness, "HUNG_SECONDS", 1.0)
        monkeypatch.setattr(liveness, "PROMISE_SECONDS", 1.0)
        monkeypatch.setattr(liveness, "TICK_SECONDS", 0.02)
        monkeypatch.setattr(liveness, "ASSUMED_BYTES_PER_SECOND", self.BYTES_PER_SECOND)
        async with scripted(echo) as server, thin(server.address, self.BYTES_PER_SECOND) as relay:
            link = Link(relay.address, "tiny", tiny.codec().fingerprint, window=3)
            try:
                answers = [await link.send(packet(link, k, self.PACKET_BYTES)) for k in range(3)]
                results = [one.result for one in await asyncio.wait_for(asyncio.gather(*answers), 60)]
            finally:
                await link.close()
            assert [result.frame_id for result in results] == list(range(3))
            assert (link.counters.streams_opened, link.counters.hangs, link.counters.packets_resent) == (1, 0, 0)
            assert relay.connections == 1
        assert server.streams[0].arrived == list(range(3))


def packet(link: Link, frame_id: int, size: int) -> Packet:
    """A packet of so many random bytes."""
    payload = np.random.default_rng(frame_id).bytes(size)
    stream_id, fingerprint, _ = link.context
    return Packet(CodecId.RANS, 0, frame_id, link.now_us(), payload, stream_id, fingerprint)
