"""The next frame is resized while the head works on this one."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from support import bundles
from support.scripted import echo, scripted
from support.waiting import until

from narrowcast.head import ahead
from narrowcast.head.ahead import OneAhead, hand_over, made_ready
from narrowcast.head.client import Client
from narrowcast.head.session import HeadSession
from narrowcast.head.sources.base import Captured
from narrowcast.transport.contract import InputContract
from narrowcast.transport.errors import FrameError

CONTRACT = InputContract(size=(8, 8))


def test_in_order_and_one_ahead():
    taken = []

    def items():
        for k in range(4):
            taken.append(k)
            yield k

    with OneAhead(items()) as source:
        items_of = iter(source)
        assert next(items_of) == 0
        until(lambda: len(taken) == 2, "the next one is made meanwhile")
        assert taken == [0, 1]
        assert [0, *items_of] == [0, 1, 2, 3]
        assert list(source) == []
    until(lambda: "narrowcast-ahead" not in {one.name for one in threading.enumerate()}, "the thread has ended")


def test_an_error_comes_in_its_place():
    def items():
        yield 1
        raise FrameError("broken")

    source = iter(OneAhead(items()))
    assert next(source) == 1
    with pytest.raises(FrameError, match="broken"):
        next(source)


def test_closing_ends_both_sides():
    waiting = OneAhead(iter(range(10)))
    taking = iter(waiting)
    assert next(taking) == 0
    waiting.close()
    assert list(taking) == []
    until(lambda: "narrowcast-ahead" not in {one.name for one in threading.enumerate()}, "the thread has ended")


def test_what_is_resized_already_is_not_resized_again():
    frame = bundles.random_frames(1, size=(20, 30))[0]
    ready = made_ready(frame, CONTRACT)
    assert made_ready(ready, CONTRACT) is ready
    other = made_ready(ready, InputContract(size=(4, 4)))  # another model's
    assert other.prepared.image.shape == (4, 4, 3)
    assert other.frame is frame


def test_what_is_handed_over():
    frame = bundles.random_frames(1)[0]
    kept = frame.copy()
    mine = hand_over(frame, CONTRACT)
    cameras = hand_over(Captured(frame, captured_at=5.0, name="camera"), CONTRACT)
    frame[:] = 0  # the next one
    assert np.array_equal(mine.frame.prepared.image, kept)
    assert cameras.captured_at == 5.0
    broken = hand_over(np.zeros((3, 3), np.uint8), CONTRACT)
    assert broken.frame.shape == (3, 3)


async def test_stages_overlap(tiny, monkeypatch):
    """The head does not go on with a frame until the next one has been resized: it would wait for ever in one thread."""
    session, resized, frames = HeadSession(tiny), [], bundles.random_frames(10)
    work, run = ahead.made_ready, session.backend.run

    def counted(frame, contract):
        if not isinstance(frame, ahead.Ready):
            resized.append(frame)
        return work(frame, contract)

    heads = 0

    def head(image, level):
        nonlocal heads
        heads += 1
        until(lambda: len(resized) >= min(heads + 1, len(frames)), "the next frame is resized meanwhile")
        return run(image, level)

    monkeypatch.setattr(ahead, "made_ready", counted)
    monkeypatch.setattr(session.backend, "run", head)
    async with scripted(echo) as server:

        def stream() -> list:
            with Client(session, server.address) as client:
                return list(client.stream(frames))

        results = await asyncio.to_thread(stream)
    assert [result.frame_id for result in results] == list(range(10))
    assert len(resized) == 10
    assert all(result.times.resize_ms > 0 for result in results)
