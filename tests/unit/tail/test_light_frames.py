"""Frames that take next to nothing: answered on the event loop, alone or with those of the same turn."""

from __future__ import annotations

import asyncio
import threading
import time

import grpc
import numpy as np
import pytest
from support import bundles
from support.inprocess import held, until

from narrowcast.head.session import HeadSession
from narrowcast.tail import batcher as batching
from narrowcast.tail.answering import answer_batch
from narrowcast.tail.batcher import Batcher
from narrowcast.tail.frame import Frame
from narrowcast.tail.store import Model, load_model
from narrowcast.transport.packet import CodecId, Packet
from narrowcast.transport.rpc.tensors import from_tensors


@pytest.fixture
def model(tiny) -> Model:
    """The tiny model with a tail that writes down its batches."""
    return held(load_model(tiny), held=False)


def packet(tiny, frame: np.ndarray, level: int = 1, number: int = 0) -> Packet:
    payload = HeadSession(tiny).encode(frame, level).payload
    return Packet(CodecId.RANS, level, number, 0, payload, bytes(16), bytes(16))


@pytest.fixture
async def light(tiny, model, monkeypatch):
    """A batcher that knows its model to be light, and a packet for it."""
    monkeypatch.setattr(batching, "LIGHT_SECONDS", 3600.0)
    batcher, one = Batcher(model, max_batch=4), packet(tiny, bundles.random_frames(1)[0])
    await batcher.submit(one)
    await until(lambda: batcher._sleeping, "the thread sleeps")
    model.backend.batches.clear()
    yield batcher, one
    await batcher.close()


@pytest.mark.parametrize("light_seconds", [3600.0, 0.0])
async def test_a_frame_that_takes_next_to_nothing_is_answered_without_the_thread(
    tiny, model, monkeypatch, light_seconds
):
    """Once its time is known; and the answers are the same."""
    monkeypatch.setattr(batching, "LIGHT_SECONDS", light_seconds)
    model.backend.go.set()
    batcher, frame = Batcher(model), bundles.random_frames(1)[0]
    threads = []
    monkeypatch.setattr(
        batching, "answer_batch",
        lambda *given, **more: (threads.append(threading.current_thread()), answer_batch(*given, **more))[1],
    )  # fmt: skip
    for _ in range(3):
        answer = batcher.submit(packet(tiny, frame), deadline=time.perf_counter() + 60)
        outputs = from_tensors((await answer).outputs, bundles.OUTPUTS)["output"]
        assert np.allclose(outputs, bundles.expected_output(frame, 1), atol=1e-4)
        await until(lambda: batcher._sleeping, "the thread sleeps")
    here = threading.main_thread()
    assert [thread is here for thread in threads] == [False, light_seconds > 0, light_seconds > 0]
    await batcher.close()


async def test_frames_of_one_turn_are_one_batch(light, model):
    batcher, one = light
    done: list[Frame] = []
    for k in range(6):
        batcher.put(Frame(one._replace(frame_id=k), on_done=done.append), more=True)
    assert not done
    batcher.put(Frame(one._replace(frame_id=9), on_done=done.append))  # nobody waits with this one
    assert [frame.packet.frame_id for frame in done] == [9]
    await asyncio.wait_for(batcher.idle(), 20)
    assert [frame.response.result.frame_id for frame in done] == [9, *range(6)]
    assert not any(frame.response.result.code for frame in done)
    assert model.backend.batches == [1, 4, 2]


async def test_one_that_nobody_waits_for_any_more_is_left_out(light, model):
    batcher, one = light
    frames = [Frame(one) for _ in range(3)]
    for frame in frames:
        batcher.put(frame, more=True)
    frames[1].drop()
    await asyncio.wait_for(batcher.idle(), 20)
    assert model.backend.batches == [2]
    assert [frame.response is None for frame in frames] == [False, True, False]
    for frame in frames[:1] * 2:
        batcher.put(gone := Frame(frame.packet), more=True)
        gone.drop()
    await asyncio.wait_for(batcher.idle(), 20)
    assert model.backend.batches == [2]


async def test_closing_refuses_what_was_put_in_this_turn(light, model):
    batcher, one = light
    batcher.put(frame := Frame(one), more=True)
    await batcher.close()
    await asyncio.wait_for(batcher.idle(), 20)
    assert frame.response.result.code == grpc.StatusCode.UNAVAILABLE.value[0]
    assert model.backend.batches == []


async def test_one_slow_frame_may_be_the_machines_doing_several_are_the_models(light, model, monkeypatch):
    batcher, one = light
    here, threads = threading.current_thread(), []
    monkeypatch.setattr(
        batching, "answer_batch",
        lambda *given, **more: (threads.append(threading.current_thread() is here), answer_batch(*given, **more))[1],
    )  # fmt: skip

    async def answered(light_seconds: float) -> bool:
        monkeypatch.setattr(batching, "LIGHT_SECONDS", light_seconds)
        await batcher.submit(one)
        await until(lambda: batcher._sleeping, "the thread sleeps")
        return threads.pop()

    assert [await answered(3600.0) for _ in range(12)] == [True] * 12
    assert await answered(0.0)
    assert await answered(3600.0)
    assert [await answered(0.0) for _ in range(4)] == [True, False, False, False]
    assert [await answered(3600.0) for _ in range(5)] == [False, False, False, False, True]
