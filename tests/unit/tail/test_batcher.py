"""Frames into batches."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from support import bundles, waiting
from support.inprocess import HeldBackend, Recorder, held, until

from narrowcast.head.session import HeadSession
from narrowcast.tail import batcher as batching
from narrowcast.tail.answering import answer_batch
from narrowcast.tail.batcher import Batcher
from narrowcast.tail.errors import FrameRefusedError, TailBackendError
from narrowcast.tail.frame import Frame
from narrowcast.tail.observe import Silent
from narrowcast.tail.seldom import Seldom
from narrowcast.tail.store import Model, load_model
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.images import encode_image
from narrowcast.transport.packet import CodecId, Kind, Packet
from narrowcast.transport.rpc.tensors import from_tensors


@pytest.fixture
def model(tiny) -> Model:
    """The tiny model with a tail that can be held."""
    return held(load_model(tiny))


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


def payload(tiny, level: int = 1) -> Packet:
    return packet(tiny, bundles.random_frames(1)[0], level=level)


async def test_an_expired_frame_is_answered_and_not_computed(tiny, model):
    """While the batch before it still runs; those with time left, or without a deadline, are computed."""
    batcher, one = Batcher(model, max_batch=4), payload(tiny)
    running = batcher.submit(one)
    await until(lambda: model.backend.batches, "a batch runs")
    now = time.perf_counter()
    late = [batcher.submit(one, deadline=now + seconds) for seconds in (-1.0, 0.0, 0.02)]
    on_time = [batcher.submit(one, deadline=now + 60), batcher.submit(one)]
    for result in await asyncio.gather(*late, return_exceptions=True):
        assert isinstance(result, FrameRefusedError)
        assert result.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        assert "was not computed" in str(result)
    assert not running.done()
    model.backend.go.set()
    await asyncio.gather(running, *on_time)
    assert model.backend.batches == [1, 2]
    await batcher.close()


async def test_what_expires_before_its_batch_is_taken_is_not_computed(tiny, model, monkeypatch):
    monkeypatch.setattr(batching, "SWEEP_SECONDS", 3600)  # only the thread looks
    batcher, one = Batcher(model), payload(tiny)
    running = batcher.submit(one)
    await until(lambda: model.backend.batches, "a batch runs")
    late = batcher.submit(one, deadline=time.perf_counter() - 1)
    model.backend.go.set()
    with pytest.raises(FrameRefusedError, match="deadline"):
        await late
    await running
    assert model.backend.batches == [1]
    await batcher.close()


async def test_gathering_does_not_make_a_frame_miss_its_deadline(tiny, model):
    model.backend.go.set()
    batcher = Batcher(model, max_delay_ms=60_000)
    for seconds in (0.5, 4, 16):  # a machine that stands still in between misses the first
        with contextlib.suppress(FrameRefusedError):
            answer = await batcher.submit(payload(tiny), deadline=time.perf_counter() + seconds)
            assert answer.outputs
            break
    else:
        raise AssertionError("the delay is waited out whatever the deadline")
    await batcher.close()


async def test_a_flooding_client_does_not_push_out_another(tiny, model):
    batcher, one = Batcher(model, max_batch=2, max_queue=8, max_client_queue=6), payload(tiny)
    running = batcher.submit(one, client="first")
    await until(lambda: model.backend.batches, "a batch runs")
    flood = [batcher.submit(one, client="flood") for _ in range(20)]
    refused = [answer.exception() for answer in flood if answer.done()]
    assert len(refused) == 14
    assert all("this client's part" in str(error) for error in refused)
    order = []
    quiet = batcher.submit(one, client="quiet")
    quiet.add_done_callback(lambda _: order.append("quiet"))
    for answer in flood:
        answer.add_done_callback(lambda _: order.append("flood"))
    await asyncio.sleep(0)
    order.clear()
    model.backend.go.set()
    await asyncio.gather(running, quiet, *flood, return_exceptions=True)
    assert "quiet" in order[:2]
    await batcher.close()


async def test_a_full_queue_says_when_to_come_back_by_the_rate_of_the_last_batches(tiny, model):
    class Slow:
        name = "slow"

        def run(self, symbols, levels):
            assert begin.wait(60)
            time.sleep(0.05)
            return inner.run(symbols, levels)

    begin, inner, one = threading.Event(), model.backend.inner, payload(tiny)
    batcher = Batcher(Model(model.manifest, model.codec, Slow()), max_batch=1, max_queue=40, max_client_queue=40)
    answers = [batcher.submit(one) for _ in range(60)]
    early = [answer.exception() for answer in answers if answer.done()]
    assert early
    assert {error.retry_after_ms for error in early} == {0}  # nothing is known yet
    begin.set()
    await answers[0]
    while not (last := batcher.submit(one)).done():
        answers.append(last)
    assert 500 <= last.exception().retry_after_ms <= 60_000  # half of 40 frames of 50 ms or more
    answers = [answer for answer in answers if not answer.done()]
    await batcher.close()
    await asyncio.gather(*answers, return_exceptions=True)


async def test_overload_goes_on_at_a_half_and_off_at_an_eighth(tiny, model):
    batcher, one = Batcher(model, max_batch=1, max_queue=16, max_client_queue=16), payload(tiny)
    answers = [batcher.submit(one)]
    await until(lambda: model.backend.batches, "a batch runs")
    seen = []
    for _ in range(10):
        answers.append(batcher.submit(one))
        seen.append(batcher.overloaded)
    assert seen == [False] * 8 + [True] * 2
    for left in range(9, -1, -1):
        answers.pop().cancel()
        await asyncio.sleep(0)
        assert (batcher.queued, batcher.overloaded) == (left, left > 2)
    model.backend.go.set()
    await answers[0]
    await batcher.close()


async def test_idle_is_when_nothing_waits_and_nothing_runs(tiny, model):
    batcher, one = Batcher(model), payload(tiny)
    await asyncio.wait_for(batcher.idle(), 5)
    answers = [batcher.submit(one) for _ in range(3)]
    idle = asyncio.create_task(batcher.idle())
    await until(lambda: model.backend.batches, "a batch runs")
    assert not idle.done()
    model.backend.go.set()
    await asyncio.wait_for(idle, 20)
    await asyncio.gather(*answers)
    await batcher.close()
    with pytest.raises(FrameRefusedError, match="being unloaded"):
        await batcher.submit(one)


async def test_it_is_not_idle_while_a_batch_is_taken(tiny, model, monkeypatch):
    """On the thread's way from the queue to the batch, a frame is in neither."""
    seen = []

    class Watched(threading.Condition):
        wanted: set[threading.Thread] = set()

        def __enter__(self):
            self.wanted.add(threading.current_thread())
            return super().__enter__()

    class Taking(Batcher):
        def _take(self):
            found = super()._take()
            looking = threading.Thread(target=self._weigh)
            looking.start()
            waiting.until(lambda: looking in Watched.wanted or not looking.is_alive(), "somebody has looked")
            seen.append(self._idle.is_set())
            return found

    with monkeypatch.context() as patched:
        thread = {"Lock": threading.Lock, "Thread": threading.Thread}
        patched.setattr(batching, "threading", SimpleNamespace(Condition=Watched, **thread))
        batcher = Taking(model)
    answer = batcher.submit(packet(tiny, bundles.random_frames(1)[0]))
    model.backend.go.set()
    assert (await answer).outputs
    assert seen == [False]
    await batcher.close()


async def test_observers_are_told_of_batches(tiny, model):
    recorder = Recorder()
    batcher, one = Batcher(model, max_batch=2, observer=recorder), payload(tiny)
    answers = [batcher.submit(one)]
    await until(lambda: model.backend.batches, "a batch runs")
    answers += [batcher.submit(one) for _ in range(3)]
    model.backend.go.set()
    await asyncio.gather(*answers)
    assert recorder.batches == [("tiny", 1, 3), ("tiny", 2, 1), ("tiny", 1, 0)]
    await batcher.close()


async def test_symbols_and_images_share_batches(tmp_path):
    """Images go to the uncut network, the rest of the batch to the tail; a damaged one of either fails alone."""
    whole = load_model(bundles.open_made(bundles.with_whole(bundles.make()).write(tmp_path / "whole.ncb")))
    model, frames = held(whole), bundles.random_frames(2)
    batcher = Batcher(model, max_batch=8)
    symbols = packet(bundles.open_made(tmp_path / "whole.ncb"), frames[0])
    image = Packet(
        CodecId.WEBP, 0, 1, 0, encode_image(np.full((16, 16, 3), 100, np.uint8), CodecId.WEBP), bytes(16), bytes(16),
        Kind.IMAGE,
    )  # fmt: skip
    first = batcher.submit(symbols)
    await until(lambda: model.backend.batches, "a batch runs")
    answers = [
        batcher.submit(one)
        for one in (image, symbols, image._replace(payload=b"none"), symbols._replace(payload=b"none"), image)
    ]
    model.backend.go.set()
    found = await asyncio.gather(first, *answers, return_exceptions=True)
    for answer in (found[0], found[2]):
        outputs = from_tensors(answer.outputs, bundles.OUTPUTS)
        assert np.allclose(outputs["output"], bundles.expected_output(frames[0], 1), atol=1e-4)
    for answer in (found[1], found[5]):
        outputs = from_tensors(answer.outputs, bundles.OUTPUTS)
        assert np.allclose(outputs["output"], 100 + 100 // 16)
        assert answer.times.batch == 5
        assert answer.times.decode_us > 0
    assert "no whole WEBP file" in str(found[3])
    assert found[4].code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert model.backend.batches == [1, 1]
    await batcher.close()


@pytest.mark.parametrize("light_seconds", [3600.0, 0.0])
async def test_every_frame_has_its_profile_where_it_is_wanted(tiny, model, monkeypatch, light_seconds):
    class Wanting(Silent):
        wants_profiles = True

    monkeypatch.setattr(batching, "LIGHT_SECONDS", light_seconds)
    model.backend.go.set()
    batcher, found = Batcher(model, observer=Wanting()), []
    for _ in range(3):
        batcher.put(Frame(packet(tiny, bundles.random_frames(1)[0]), on_done=found.append))
        await until(lambda: found and batcher._sleeping, "it is answered")
        assert found.pop().profile is not None
    await batcher.close()


async def test_a_frame_that_the_network_cannot_take_fails_alone(tiny, model, monkeypatch):
    class Picky(HeldBackend):
        def run(self, symbols, levels):
            self.batches.append(len(symbols))
            assert self.go.wait(20)
            if (levels == 0).any():
                raise TailBackendError("this one is too much")
            return self.inner.run(symbols, levels)

    picky, frame = Picky(model.backend.inner), bundles.random_frames(1)[0]
    batcher = Batcher(Model(model.manifest, model.codec, picky))
    first = batcher.submit(packet(tiny, frame))
    await until(lambda: picky.batches, "a batch runs")
    answers = [batcher.submit(packet(tiny, frame, level=level)) for level in (1, 0, 1)]
    picky.go.set()
    found = await asyncio.gather(first, *answers, return_exceptions=True)
    assert [isinstance(one, FrameRefusedError) for one in found] == [False, False, True, False]
    assert "too much" in str(found[2])
    assert picky.batches == [1, 3, 1, 1, 1]
    await batcher.close()


async def test_failing_frames_are_told_once_a_minute_and_counted(tiny, model, caplog, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(batching, "Seldom", lambda: Seldom(lambda: now))

    class Lost(HeldBackend):
        def run(self, symbols, levels):
            raise TailBackendError("the GPU is lost") if len(symbols) == 1 else RuntimeError("a batch too many")

    batcher = Batcher(Model(model.manifest, model.codec, Lost(model.backend.inner)))
    one = packet(tiny, bundles.random_frames(1)[0])
    for _ in range(100):
        with pytest.raises(FrameRefusedError, match="the GPU is lost"):
            await batcher.submit(one)
    assert [record.getMessage() for record in caplog.records] == ["'tiny': a frame failed"]
    assert "the GPU is lost" in caplog.text
    now += 61
    with pytest.raises(FrameRefusedError):
        await batcher.submit(one)
    assert caplog.records[-1].getMessage() == "'tiny': a frame failed (and 99 times before)"
    caplog.clear()
    for _ in range(2):
        answer_batch(batcher.model, [Frame(one), Frame(one)], failures=batcher._failures)
    assert [record.getMessage() for record in caplog.records] == [
        "'tiny': a batch of 2 frames failed, and is computed frame by frame: a batch too many"
    ]
    await batcher.close()
