"""The client's part of docs/protocol.md, beside scripted servers on real sockets."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from support import bundles
from support.linked import FRAMES, all_of, check
from support.scripted import Conversation, EndedError, echo, scripted
from support.waiting import eventually

from narrowcast.head import endpoints, liveness, stream, unanswered
from narrowcast.head.client import AsyncClient
from narrowcast.head.errors import PeerUnreachableError, RefusedError
from narrowcast.head.link import MAX_FRUITLESS_STREAMS
from narrowcast.head.session import HeadSession
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.rpc import tail_pb2 as pb

pytestmark = pytest.mark.usefixtures("given_order")


EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]


EXPIRED = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


@pytest.fixture
def exiting(tmp_path) -> HeadSession:
    """A head with a local exit."""
    return HeadSession(bundles.open_made(bundles.with_exit(bundles.make()).write(tmp_path / "exit.ncb"), "device"))


class TestDrain:
    async def test_answers_still_arrive_while_the_next_stream_is_in_use(self, session):
        """The first server holds its answers back until the second has frames."""
        moved = asyncio.Event()

        async def draining(talk: Conversation) -> None:
            await talk.frame()
            talk.say(drain=pb.Drain(grace_ms=20_000, reason="shutdown", come_back=False))
            await asyncio.wait_for(talk.half_closed.wait(), 20)
            await asyncio.wait_for(moved.wait(), 20)
            for frame_id in talk.arrived:
                talk.answer(frame_id)

        async def other(talk: Conversation) -> None:
            async for frame_id in talk.frames():
                moved.set()
                talk.answer(frame_id)

        troubles: list[str] = []
        async with scripted(draining, window=3) as first, scripted(other) as second:
            to = [first.address, second.address]
            async with AsyncClient(session, to, window=20, on_trouble=troubles.append) as client:
                check(await all_of(client, 20), 20)
                assert client.counters.drains == 1
                assert client.counters.packets_resent == client.counters.results_late == 0
                assert client.counters.streams_opened == 2
        assert troubles == []
        assert 1 <= len(first.streams[0].arrived) <= 3
        assert not set(first.streams[0].arrived) & set(second.streams[0].arrived)

    async def test_an_old_stream_comes_back_to_its_server(self, session):
        async def ageing(talk: Conversation) -> None:
            async for frame_id in talk.frames():
                talk.answer(frame_id)
                if len(talk.arrived) == 5:
                    talk.say(drain=pb.Drain(grace_ms=1000, reason="age", come_back=True))

        async with scripted(ageing) as first, scripted(echo) as second:
            async with AsyncClient(session, f"{first.address},{second.address}", window=2) as client:
                check(await all_of(client, 20), 20)
                assert client.counters.drains >= 3
        assert len(first.streams) >= 3
        assert second.streams == []

    async def test_what_is_unanswered_at_its_end_is_sent_again(self, session):
        async def draining(talk: Conversation) -> None:
            if talk.number:
                return await echo(talk)
            await talk.frame()
            talk.say(drain=pb.Drain(reason="shutdown", come_back=True))
            raise EndedError(grpc.StatusCode.UNAVAILABLE)

        async with scripted(draining) as server, AsyncClient(session, server.address) as client:
            check(await all_of(client, 5), 5)
            assert client.counters.packets_resent >= 1
            assert client.counters.results_late == 0

    async def test_a_server_that_drains_new_streams_is_asked_with_pauses(self, session):
        async def nervous(talk: Conversation) -> None:
            if talk.number == 3:
                return await echo(talk)
            talk.say(drain=pb.Drain(grace_ms=1000, reason="age", come_back=True))
            await talk.half_closed.wait()

        async with scripted(nervous) as server, AsyncClient(session, server.address) as client:
            (endpoint,) = client._link.endpoints.in_order()
            under_way = asyncio.create_task(all_of(client, 3))
            await eventually(lambda: len(server.streams) == 3, "the third stream")
            assert endpoint.retry_at > 0
            check(await under_way, 3)

    async def test_the_only_server_is_waited_for(self, session):
        async def leaving(talk: Conversation) -> None:
            await talk.frame()
            talk.say(drain=pb.Drain(grace_ms=1000, reason="shutdown"))
            await talk.half_closed.wait()

        async with scripted(leaving) as server:
            async with AsyncClient(session, server.address) as client:
                under_way = asyncio.create_task(all_of(client, 5))
                await eventually(lambda: client.counters.drains, "the server drains")
                server.script = echo  # it is back
                check(await under_way, 5)

    async def test_a_frame_whose_model_goes_is_answered_elsewhere(self, session):
        async def unloading(talk: Conversation) -> None:
            async for frame_id in talk.frames():
                talk.answer(frame_id, code=UNAVAILABLE, message="the model is being unloaded")

        async with scripted(unloading) as first, scripted(echo) as second:
            async with AsyncClient(session, [first.address, second.address]) as client:
                check(await all_of(client, 10), 10)
                await eventually(first.streams[0].half_closed.is_set, "the first stream is left")

    async def test_a_frame_that_is_unavailable_everywhere_fails_in_the_end(self, session, monkeypatch):
        monkeypatch.setattr(unanswered, "MAX_PUT_OFFS", 2)

        async def unloading(talk: Conversation) -> None:
            async for frame_id in talk.frames():
                talk.answer(frame_id, code=UNAVAILABLE, message="unloaded")

        async with scripted(unloading) as server, AsyncClient(session, server.address) as client:
            result = await asyncio.wait_for(client.infer(FRAMES[0]), 30)
            assert (result.status, result.error) == ("UNAVAILABLE", "unloaded")

    async def test_a_drained_stream_that_is_never_ended_is_not_kept(self, session, monkeypatch):
        monkeypatch.setattr(stream, "LEAVING_MS", 50)
        monkeypatch.setattr(stream, "LAST_ANSWERS_SECONDS", 0.05)

        async def lingering(talk: Conversation) -> None:
            talk.answer(await talk.frame())
            talk.say(drain=pb.Drain(grace_ms=2**32 - 1, come_back=True))
            await echo(talk)
            await asyncio.Event().wait()

        async with scripted(lingering) as server, AsyncClient(session, server.address) as client:
            for frame in FRAMES[:6]:
                assert (await asyncio.wait_for(client.infer(frame), 20)).error is None
            assert client.counters.drains > 1
            await eventually(lambda: not client._link._drained, "the streams that were drained are gone")


class TestCredits:
    async def test_a_smaller_window_holds_at_once_and_a_larger_one_is_used(self, session):
        late: list[int] = []
        most = 0

        async def scarce(talk: Conversation) -> None:
            nonlocal most
            for _ in range(8):  # what the window of the opening lets through
                await talk.frame()
            talk.say(credits=pb.Credits(window=1))
            for frame_id in range(8):
                talk.answer(frame_id)
            while len(talk.arrived) < 20:
                frame_id = await talk.frame()
                await asyncio.sleep(0.01)  # time enough to break the rule
                late.append(len(talk.arrived) - talk.answered)
                talk.answer(frame_id)
            talk.say(credits=pb.Credits(window=6))
            async for frame_id in talk.frames():
                if frame_id == 20:
                    await eventually(lambda: len(talk.arrived) - talk.answered >= 6, "the larger window is used")
                most = max(most, len(talk.arrived) - talk.answered)
                talk.answer(frame_id)

        async with scripted(scarce) as server, AsyncClient(session, server.address, window=8) as client:
            check(await all_of(client, 40), 40)
        assert set(late) == {1}
        assert most == 6

    async def test_no_more_than_was_asked_for_whatever_the_server_grants(self, session):
        async def generous(talk: Conversation) -> None:
            talk.say(credits=pb.Credits(window=2**32 - 1))
            await eventually(lambda: len(talk.arrived) == 4, "four frames")
            await asyncio.sleep(0.02)  # time enough for a fifth
            assert len(talk.arrived) == 4
            await echo(talk)

        async with scripted(generous, window=2**32 - 1) as server:
            async with AsyncClient(session, server.address, window=4, deadline_ms=20_000) as client:
                check(await all_of(client, 10), 10)

    async def test_none_at_all_until_there_are_more(self, session):
        async def closed(talk: Conversation) -> None:
            await talk.frame()
            talk.say(credits=pb.Credits(window=0))
            talk.answer(0)
            talk.say(credits=pb.Credits(window=2))
            await echo(talk)

        async with scripted(closed, window=1) as server, AsyncClient(session, server.address) as client:
            check(await all_of(client, 10), 10)

    async def test_a_server_that_lets_nothing_be_sent_any_more_is_given_up(self, session, monkeypatch):
        monkeypatch.setattr(liveness, "TICK_SECONDS", 0.01)

        async def shut(talk: Conversation) -> None:
            first = await talk.frame()
            talk.say(credits=pb.Credits(window=0))
            talk.answer(first)
            await talk.frame()

        async with scripted(shut, window=1) as server:
            async with AsyncClient(session, server.address, give_up_seconds=3.0) as client:
                assert (await asyncio.wait_for(client.infer(FRAMES[0]), 20)).error is None
                with pytest.raises(PeerUnreachableError, match="a window of 0"):
                    await asyncio.wait_for(client.infer(FRAMES[1]), 20)


class TestHints:
    async def test_what_is_put_off_is_sent_again_and_is_no_failure(self, session):
        async def full(talk: Conversation) -> None:
            async for frame_id in talk.frames():
                if frame_id == 3 and talk.arrived.count(3) <= 2:
                    talk.answer(3, code=EXHAUSTED, message="full", retry_after_ms=20)
                else:
                    talk.answer(frame_id)

        async with scripted(full) as server, AsyncClient(session, server.address, window=1) as client:
            results = await all_of(client, 8)
            check(results, 8)
            assert [result.frame_id for result in results] == list(range(8))
            assert (client.counters.results_put_off, client.counters.packets_resent) == (2, 2)
            assert client.counters.streams_opened == 1
        assert server.streams[0].arrived == [0, 1, 2, 3, 3, 3, 4, 5, 6, 7]

    @pytest.mark.parametrize(("hint_ms", "deadline_ms"), [(1, None), (0, None), (31_000, None), (20_000, 10_000)])
    async def test_what_is_put_off_for_good_fails(self, session, hint_ms, deadline_ms):
        async def full(talk: Conversation) -> None:
            async for frame_id in talk.frames():
                talk.answer(frame_id, code=EXHAUSTED, message="full", retry_after_ms=hint_ms)

        async with scripted(full) as server, AsyncClient(session, server.address) as client:
            result = await asyncio.wait_for(client.infer(FRAMES[0], deadline_ms=deadline_ms), 9)
            assert (result.status, result.error) == ("RESOURCE_EXHAUSTED", "full")
            again = unanswered.MAX_PUT_OFFS if hint_ms == 1 else 0
            assert client.counters.results_put_off == again == len(server.streams[0].arrived) - 1


class TestDeadlines:
    async def test_what_is_left_of_it_goes_with_the_packet(self, session):
        async with scripted(echo) as server, AsyncClient(session, server.address, deadline_ms=20_000) as client:
            check([await client.infer(FRAMES[0])], 1)
            assert (await client.infer(FRAMES[1], deadline_ms=30_000)).error is None
        first, second = server.streams[0].deadlines_ms
        assert 0 < first <= 20_000 < second <= 30_000

    async def test_without_one_none_goes(self, session):
        async with scripted(echo) as server, AsyncClient(session, server.address) as client:
            check(await all_of(client, 2), 2)
        assert server.streams[0].deadlines_ms == [0, 0]

    async def test_the_servers_word_is_the_result(self, session):
        async def slow(talk: Conversation) -> None:
            async for frame_id in talk.frames():
                talk.answer(frame_id, code=EXPIRED, message="waited 3 ms longer than its deadline")

        async with scripted(slow) as server, AsyncClient(session, server.address, deadline_ms=20_000) as client:
            result = await asyncio.wait_for(client.infer(FRAMES[0]), 10)
            assert (result.status, result.error) == ("DEADLINE_EXCEEDED", "waited 3 ms longer than its deadline")

    async def test_nothing_is_learned_of_the_link_from_an_answer_that_says_no_times(self, session):
        """It waited in the server's queue, for how long nobody says: it was not the link."""

        async def busy(talk: Conversation) -> None:
            async for frame_id in talk.frames():
                await asyncio.sleep(0.05)
                talk.answer(frame_id, code=EXPIRED, message="waited 3 ms longer than its deadline")

        class Heard:
            answers: list[int] = []
            losses: list[int] = []

            def queued(self, frame_id, size): ...
            def sent(self, frame_id, size): ...
            def answered(self, frame_id, server_seconds):
                self.answers.append(frame_id)

            def lost(self, frame_id):
                self.losses.append(frame_id)

        heard = Heard()
        async with scripted(busy) as server, AsyncClient(session, server.address, deadline_ms=20_000) as client:
            client._link._frames.listener = heard
            await asyncio.wait_for(client.infer(FRAMES[0]), 10)
            assert client._link.endpoints.current.pace._mean_seconds is None
        assert (heard.answers, heard.losses) == ([], [0])

    async def test_an_answer_after_it_is_discarded_and_counted(self, session):
        asked = asyncio.Event()

        async def late(talk: Conversation) -> None:
            await talk.frame()
            await asked.wait()
            talk.answer(0)
            await echo(talk)

        async with scripted(late) as server, AsyncClient(session, server.address) as client:
            asking = asyncio.create_task(client.infer(FRAMES[0], deadline_ms=60_000))
            await eventually(lambda: server.streams and server.streams[0].arrived == [0], "it is on its way")
            client._link._frames._expire(0)
            result = await asyncio.wait_for(asking, 20)
            assert (result.status, result.outputs) == ("DEADLINE_EXCEEDED", {})
            asked.set()
            assert (await asyncio.wait_for(client.infer(FRAMES[1]), 10)).outputs["output"].tolist() == [1, 1, 1]
            assert (client.counters.results_late, client.counters.results) == (1, 1)

    @pytest.mark.parametrize("deadline_ms", [0, -5, float("nan"), float("inf")])
    async def test_one_that_cannot_be(self, session, deadline_ms):
        with pytest.raises(ConfigError, match="above 0"):
            AsyncClient(session, "127.0.0.1:9", deadline_ms=deadline_ms)
        async with AsyncClient(session, "127.0.0.1:9") as client:
            with pytest.raises(ConfigError, match="above 0"):
                await client.infer(FRAMES[0], deadline_ms=deadline_ms)

    async def test_one_of_years_goes_as_the_longest_there_is(self, session):
        async with scripted(echo) as server, AsyncClient(session, server.address, deadline_ms=1e12) as client:
            check(await all_of(client, 1), 1)
        assert server.streams[0].deadlines_ms == [2**32 - 1]

    async def test_it_counts_while_there_is_no_server(self, session):
        async with AsyncClient(session, "127.0.0.1:9", give_up_seconds=None) as client:
            result = await asyncio.wait_for(client.infer(FRAMES[0], deadline_ms=100), 10)
            assert result.status == "DEADLINE_EXCEEDED"

    async def test_the_exit_answers_instead_and_a_late_answer_is_discarded(self, exiting):
        answered = asyncio.Event()

        async def late(talk: Conversation) -> None:
            await talk.frame()
            await answered.wait()
            talk.answer(0)
            await echo(talk)

        async with scripted(late) as server:
            async with AsyncClient(exiting, server.address, deadline_ms=60_000, exit_after_seconds=60) as client:
                asking = asyncio.create_task(client.infer(FRAMES[0]))
                await eventually(lambda: server.streams and server.streams[0].arrived == [0], "it is on its way")
                client._link._frames._expire(0)
                result = await asyncio.wait_for(asking, 20)
                assert (result.source, result.status) == ("exit", "OK")
                answered.set()
                await eventually(lambda: client.counters.results_late == 1, "the late answer is counted")
                result = await asyncio.wait_for(client.infer(FRAMES[1]), 20)
                assert (result.source, client.counters.results) == ("server", 1)

    async def test_the_exits_patience_is_a_deadline_too(self, exiting):
        async with scripted(echo) as server, AsyncClient(exiting, server.address, exit_after_seconds=15) as client:
            assert (await client.infer(FRAMES[0])).source == "server"
        assert 0 < server.streams[0].deadlines_ms[0] <= 15_000


class TestResume:
    async def test_a_new_stream_says_what_is_reported_and_gets_the_rest_in_order(self, session):
        async def breaking(talk: Conversation) -> None:
            if talk.number:
                return await echo(talk)
            for _ in range(6):
                await talk.frame()
            talk.answer(0)
            talk.answer(1)
            talk.answer(3)
            await eventually(talk.said.empty, "the answers leave")
            raise EndedError(grpc.StatusCode.UNAVAILABLE)

        async with scripted(breaking, window=6) as first, AsyncClient(session, first.address) as client:
            check(await all_of(client, 12), 12)
        old, new = first.streams
        assert (old.opening.resume_from, new.opening.resume_from) == (0, 2)
        assert old.opening.stream_id == new.opening.stream_id
        assert [frame_id for frame_id in new.arrived if frame_id < 6] == [2, 4, 5]
        assert new.arrived == sorted(new.arrived)

    async def test_a_large_packet_is_not_sent_where_it_is_refused(self, session):
        async with scripted(echo, max_packet_bytes=64) as server, AsyncClient(session, server.address) as client:
            result = await asyncio.wait_for(client.infer(FRAMES[0]), 10)
            assert result.status == "INVALID_ARGUMENT"
            assert "the server takes 64" in result.error
        assert server.streams[0].arrived == []

    async def test_servers_that_take_streams_and_answer_nothing_are_given_up(self, session, monkeypatch):
        monkeypatch.setattr(endpoints, "LONGEST_PAUSE_SECONDS", 0.01)

        async def fruitless(talk: Conversation) -> None:
            await talk.frame()

        async with scripted(fruitless) as server, AsyncClient(session, server.address) as client:
            with pytest.raises(PeerUnreachableError, match="the server ended the stream"):
                await asyncio.wait_for(client.infer(FRAMES[0]), 20)
        assert len(server.streams) == MAX_FRUITLESS_STREAMS

    async def test_one_that_ends_a_stream_for_want_of_newer_papers_is_asked_again(self, session, monkeypatch):
        """A certificate has run out while its stream was open; whether the new one is good, only a new stream can tell."""
        monkeypatch.setattr(endpoints, "LONGEST_PAUSE_SECONDS", 0.01)

        async def ends_once(talk: Conversation) -> None:
            if talk.number:
                return await echo(talk)
            talk.answer(await talk.frame())
            await eventually(talk.said.empty, "the answer leaves")
            raise EndedError(grpc.StatusCode.UNAUTHENTICATED, "the certificate has run out")

        async with scripted(ends_once) as server, AsyncClient(session, server.address) as client:
            check(await all_of(client, 3), 3)
        assert len(server.streams) == 2

    async def test_one_that_takes_a_stream_and_ends_it_for_its_caller_at_once_refuses(self, session):
        async def refuses(talk: Conversation) -> None:
            await talk.frame()
            raise EndedError(grpc.StatusCode.PERMISSION_DENIED, "not you")

        async with scripted(refuses) as server, AsyncClient(session, server.address) as client:
            with pytest.raises(RefusedError, match="not you"):
                await asyncio.wait_for(client.infer(FRAMES[0]), 20)
        assert len(server.streams) == 1

    async def test_one_that_answers_now_and_then_is_not(self, session, monkeypatch):
        monkeypatch.setattr(endpoints, "LONGEST_PAUSE_SECONDS", 0.01)

        async def breaking(talk: Conversation) -> None:
            talk.answer(await talk.frame())
            await eventually(talk.said.empty, "the answer leaves")

        async with scripted(breaking) as server, AsyncClient(session, server.address) as client:
            check(await all_of(client, 2 * MAX_FRUITLESS_STREAMS), 2 * MAX_FRUITLESS_STREAMS)
