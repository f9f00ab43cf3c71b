"""Frames into batches."""

from __future__ import annotations

import asyncio
import threading

import grpc
import numpy as np
import pytest
from support import bundles

from narrowcast.head.session import HeadSession
from narrowcast.tail.batcher import Batcher
from narrowcast.tail.errors import FrameRefusedError, TailBackendError
from narrowcast.tail.store import Model, load_model
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.packet import CodecId, Packet
from narrowcast.transport.rpc.tensors import from_tensors


class HeldBackend:
    """Runs the tail when it is told to, and writes down the batches."""

    name = "held"

    def __init__(self, inner) -> None:
        self.inner = inner
        self.go = threading.Event()
        self.batches: list[int] = []

    def run(self, symbols, levels):
        self.batches.append(len(symbols))
        assert self.go.wait(20)
        return self.inner.run(symbols, levels)


@pytest.fixture
def model(tiny) -> Model:
    """The tiny model with a tail that can be held."""
    loaded = load_model(tiny)
    return Model(loaded.manifest, loaded.codec, HeldBackend(loaded.backend))


def packet(tiny, frame: np.ndarray, level: int = 1, number: int = 0) -> Packet:
    payload = HeadSession(tiny).encode(frame, level).payload
    return Packet(CodecId.RANS, level, number, 0, payload, bytes(16), bytes(16))


@pytest.mark.parametrize(
    "limits", [{"max_batch": 0}, {"max_queue": 0}, {"max_delay_ms": -1.0}, {"max_delay_ms": float("nan")}]
)
async def test_limits_that_cannot_be(model, limits):
    with pytest.raises(ConfigError, match="at least 1, 1 .1. and 0"):
        Batcher(model, **limits)


async def test_frames_gather_while_a_batch_runs_and_levels_mix(tiny, model):
    frames = bundles.random_frames(7)
    batcher = Batcher(model, max_batch=4)
    answers = [batcher.submit(packet(tiny, frame, level=k % 2, number=k)) for k, frame in enumerate(frames)]
    while not model.backend.batches:
        await asyncio.sleep(0.001)
    model.backend.go.set()
    for k, answer in enumerate(await asyncio.gather(*answers)):
        assert np.allclose(
            from_tensors(answer.outputs, bundles.OUTPUTS)["output"],
            bundles.expected_output(frames[k], k % 2),
            atol=1e-4,
        )
        assert answer.times.batch in model.backend.batches
    assert sum(model.backend.batches) == 7
    assert max(model.backend.batches) == 4
    await batcher.close()


async def test_a_delay_fills_batches(tiny, model):
    model.backend.go.set()
    batcher = Batcher(model, max_batch=3, max_delay_ms=10_000)
    frame = bundles.random_frames(1)[0]
    answers = []
    for _ in range(3):
        answers.append(batcher.submit(packet(tiny, frame)))
        await asyncio.sleep(0)
    await asyncio.gather(*answers)
    assert model.backend.batches == [3]
    await batcher.close()


async def test_a_bad_payload_fails_alone(tiny, model):
    model.backend.go.set()
    batcher = Batcher(model, max_delay_ms=50)
    frame = bundles.random_frames(1)[0]
    good = packet(tiny, frame)
    results = await asyncio.gather(
        batcher.submit(good),
        batcher.submit(good._replace(payload=b"nonsense")),
        batcher.submit(good),
        return_exceptions=True,
    )
    assert isinstance(results[1], FrameRefusedError)
    assert results[1].code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    for result in (results[0], results[2]):
        assert np.allclose(
            from_tensors(result.outputs, bundles.OUTPUTS)["output"], bundles.expected_output(frame, 1), atol=1e-4
        )
    await batcher.close()


async def test_a_failing_tail_fails_its_frames_and_the_next_batch_runs(tiny, model):
    broken = threading.Event()
    broken.set()

    class Failing(HeldBackend):
        def run(self, symbols, levels):
            if broken.is_set():
                raise TailBackendError("out of memory")
            return self.inner.run(symbols, levels)

    batcher = Batcher(Model(model.manifest, model.codec, Failing(model.backend.inner)))
    one = packet(tiny, bundles.random_frames(1)[0])
    with pytest.raises(FrameRefusedError, match="out of memory") as caught:
        await batcher.submit(one)
    assert caught.value.code == grpc.StatusCode.INTERNAL.value[0]
    broken.clear()
    assert (await batcher.submit(one)).outputs
    await batcher.close()


async def test_a_full_queue_refuses_and_a_cancelled_frame_is_not_computed(tiny, model):
    batcher = Batcher(model, max_batch=1, max_queue=2, max_client_queue=2)
    one = packet(tiny, bundles.random_frames(1)[0])
    running = batcher.submit(one)
    while not model.backend.batches:
        await asyncio.sleep(0.001)
    waiting = [batcher.submit(one), batcher.submit(one)]
    with pytest.raises(FrameRefusedError, match="queue is full") as caught:
        await batcher.submit(one)
    assert caught.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    waiting[0].cancel()
    await asyncio.sleep(0)
    model.backend.go.set()
    await asyncio.gather(running, waiting[1])
    assert model.backend.batches == [1, 1]
    await batcher.close()


async def test_closing_refuses_what_waits(tiny, model):
    batcher = Batcher(model, max_batch=1)
    one = packet(tiny, bundles.random_frames(1)[0])
    answers = [batcher.submit(one) for _ in range(3)]
    while not model.backend.batches:
        await asyncio.sleep(0.001)
    await batcher.close()
    for result in await asyncio.gather(*answers, return_exceptions=True):
        assert isinstance(result, FrameRefusedError)
        assert result.code == grpc.StatusCode.UNAVAILABLE.value[0]
    model.backend.go.set()
