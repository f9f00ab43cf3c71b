"""Servicers behind iterators and generators, as Ray Serve calls them; no Ray here."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from support import bundles

from narrowcast.head.session import HeadSession
from narrowcast.tail.batcher import Batcher
from narrowcast.tail.models import ModelTable
from narrowcast.tail.observe import Silent
from narrowcast.tail.ray_bridge import MAX_WAITING, AbortError, BridgedContext
from narrowcast.tail.service import TailService
from narrowcast.tail.store import load_model
from narrowcast.transport.packet import VERSION, CodecId, Packet, StreamContext
from narrowcast.transport.rpc import tail_pb2 as pb


class Caller:
    """What Ray knows of a call."""

    def __init__(self):
        self.code, self.details, self.trailing = None, "", []

    def peer(self):
        return "ipv4:192.0.2.7:5000"

    def auth_context(self):
        return {}

    def invocation_metadata(self):
        return []

    def set_code(self, code):
        self.code = code

    def set_details(self, details):
        self.details = details

    def set_trailing_metadata(self, trailing):
        self.trailing = trailing


class Closed(Silent):
    def __init__(self):
        self.reasons = []

    def stream_closed(self, stream, reason):
        self.reasons.append(reason)


@pytest.fixture
async def service(tiny):
    """A service, and what it told its observer of ended streams."""
    table, observer = ModelTable(), Closed()
    batcher = Batcher(load_model(tiny))
    table.publish(batcher)
    yield TailService(table, observer=observer), observer
    await batcher.close()


def requests_of(tiny, count, model="tiny"):
    fingerprint, session = bytes.fromhex(tiny.manifest.fingerprint), HeadSession(tiny)
    agreed = StreamContext(bytes(16), fingerprint, 0)
    yield pb.StreamRequest(
        open=pb.Open(
            model=model, codec_fingerprint=fingerprint, packet_version=VERSION, stream_id=bytes(16), window=count
        )
    )
    for number, frame in enumerate(bundles.random_frames(count)):
        payload = session.encode(frame, 1).payload
        packet = Packet(CodecId.RANS, 1, number, 0, payload, bytes(16), fingerprint)
        yield pb.StreamRequest(packet=packet.to_stream_bytes(agreed))


async def each(requests, then=None):
    for request in requests:
        yield request
    if then is not None:
        await then.wait()


async def test_a_stream_is_answered_in_order_and_ends(tiny, service):
    context = BridgedContext(Caller(), each(requests_of(tiny, 5)))
    responses = [response async for response in context.responses(service[0].Stream)]
    assert responses[0].opened.client == "192.0.2.7"
    assert [response.result.frame_id for response in responses[1:]] == list(range(5))
    assert service[1].reasons == ["OK"]


async def test_a_refused_stream_has_its_status(tiny, service):
    caller = Caller()
    with pytest.raises(AbortError, match="FAILED_PRECONDITION: no model 'other' here; there is tiny"):
        async for _ in BridgedContext(caller, each(requests_of(tiny, 1, model="other"))).responses(service[0].Stream):
            pass
    assert (caller.code, caller.details) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "no model 'other' here; there is tiny",
    )


async def test_a_client_that_goes_away_with_its_answers_ends_well(tiny, service):
    responses = BridgedContext(Caller(), each(requests_of(tiny, 1), asyncio.Event())).responses(service[0].Stream)
    assert (await anext(responses)).HasField("opened")
    assert (await anext(responses)).result.frame_id == 0
    await responses.aclose()
    assert service[1].reasons == ["OK"]


async def test_a_client_that_goes_away_without_an_answer_is_told_apart(tiny):
    table, observer = ModelTable(), Closed()
    batcher = Batcher(load_model(tiny), max_delay_ms=3_600_000)  # a second frame never comes
    table.publish(batcher)
    servicer = TailService(table, observer=observer).Stream
    sent = asyncio.Event()

    async def requests():
        async for request in each(requests_of(tiny, 1)):
            yield request
        sent.set()  # asked for more: the frame has been taken
        await asyncio.Event().wait()

    responses = BridgedContext(Caller(), requests()).responses(servicer)
    assert (await anext(responses)).HasField("opened")
    await sent.wait()
    await responses.aclose()
    assert observer.reasons == ["CANCELLED"]
    await batcher.close()


async def test_a_slow_taker_holds_the_servicer_back():
    written = []

    async def servicer(_, context):
        for number in range(100):
            await context.write(number)
            written.append(number)

    responses = BridgedContext(Caller()).responses(servicer)
    taken = [await anext(responses)]
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(written) <= MAX_WAITING + 1
    taken += [response async for response in responses]
    assert taken == list(range(100))


async def test_a_servicer_that_fails_fails_the_stream():
    async def servicer(_, context):
        await context.write(1)
        raise ZeroDivisionError

    responses = BridgedContext(Caller()).responses(servicer)
    assert await anext(responses) == 1
    with pytest.raises(ZeroDivisionError):
        await anext(responses)


async def test_the_status_carries_metadata():
    caller = Caller()
    context = BridgedContext(caller)
    with pytest.raises(AbortError, match="RESOURCE_EXHAUSTED: later"):
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "later", (("retry", "5"),))
    assert caller.trailing == [("retry", "5")]
    assert context.time_remaining() is None
