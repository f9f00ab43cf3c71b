"""Images for the server's operator: with the client's consent alone, real client and server."""

from __future__ import annotations

import asyncio
import json
import math

import grpc
import msgspec
import numpy as np
import pytest
from support import bundles
from support.inprocess import held, running, stream, until
from support.scripted import scripted
from support.server import serving
from support.waiting import until as wait_until

from narrowcast.cli import main
from narrowcast.compiler.data import find_sources
from narrowcast.head import liveness
from narrowcast.head.audit import AuditConsent, AuditFrames
from narrowcast.head.client import AsyncClient, Client
from narrowcast.head.session import HeadSession
from narrowcast.head.unanswered import LinkCounters
from narrowcast.head.wire import Wire
from narrowcast.tail.audit import AuditRecorder, AuditStore, Sampler, open_sample, samples_in
from narrowcast.tail.audit.recorder import MAX_ASKED
from narrowcast.tail.drift import DriftEvent
from narrowcast.tail.drift.detector import Verdict
from narrowcast.tail.drift.watch import CameraKey
from narrowcast.tail.store import load_models
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.frames import read_image
from narrowcast.transport.images import decode_image, encode_image
from narrowcast.transport.packet import CodecId, Kind, Packet, StreamContext
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.sealing import OpeningKey

FAST = AuditConsent(quality=100, frames_per_second=1000.0)
CONTEXT = StreamContext(bytes(16), bytes(16), 0)


@pytest.fixture
def model(tiny_folder):
    return held(load_models(tiny_folder, trusted=[bundles.trusted_key()])["tiny"], held=False)


@pytest.fixture
def key():
    return OpeningKey.new("audit")


@pytest.fixture
def recorder(tmp_path, key):
    made = AuditRecorder(Sampler(1), AuditStore(tmp_path / "samples", key.public))
    yield made
    made.close()


def smooth(count: int) -> list[np.ndarray]:
    """Frames that JPEG keeps nearly as they are."""
    ramp = np.linspace(0, 60, bundles.SIDE).astype(np.uint8)
    return [np.full((bundles.SIDE, bundles.SIDE, 3), 10 * k, np.uint8) + ramp[:, None, None] for k in range(count)]


def image_payload() -> bytes:
    return encode_image(smooth(1)[0])


# End to end


def test_an_operator_sees_frames_of_a_client_that_consents_and_none_of_another(tiny_folder, tiny, tmp_path):
    key, samples, out = tmp_path / "a.key", tmp_path / "samples", tmp_path / "out"
    assert main(["audit", "key", str(key)]) == 0
    options = ("--audit", str(samples), "--audit-key", f"{key}.pub", "--audit-every", "1")
    frames = smooth(6)
    with serving(tiny_folder, tiny_folder / "test.pub", *options) as server:
        with Client(tiny, str(server.address)) as client:
            silent = [client.infer(frame) for frame in frames]
            assert client.counters.audit_sent == client.counters.audit_missed == 0
        with Client(tiny, str(server.address), audit=FAST) as client:
            results = [client.infer(frame) for frame in frames]
            wait_until(lambda: client.counters.audit_sent == len(frames), "all images are sent")
            client.infer(frames[0])  # on the same stream, so behind the images
            assert client.counters.packets_sent == len(frames) + 1  # images are not frames
        code, errors = server.end()
        assert code == 0, errors
    for one, other in zip(silent, results, strict=True):
        np.testing.assert_array_equal(one.outputs["output"], other.outputs["output"])
    assert main(["audit", "export", str(samples), "--key", str(key), "-o", str(out)]) == 0
    index = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
    images = {row["frame_id"]: row for row in index if row["kind"] == "image"}
    symbols = {(row["stream_id"], row["frame_id"]): row for row in index if row["kind"] == "symbols"}
    sources, problems = find_sources("out", tmp_path)  # [data] train = "out", and what evaluate reads
    assert (len(sources), problems) == (len(images), [])
    images.pop(len(frames), None)  # nobody waited for the last one's
    assert sorted(images) == list(range(len(frames)))
    assert len(symbols) == 2 * len(frames) + 1
    for frame_id, row in images.items():
        beside = symbols[row["stream_id"], frame_id]
        assert (row["capture_us"], row["reason"]) == (beside["capture_us"], "every")
        seen = read_image(out / row["file"])
        assert np.abs(seen.astype(int) - frames[frame_id].astype(int)).max() <= 3


async def test_around_an_alarm_earlier_frames_are_asked_for_as_well(model, tiny, tmp_path, key):
    store = AuditStore(tmp_path, key.public)
    recorder = AuditRecorder(Sampler(0, before=3, after=2), store)
    async with running(model, auditor=recorder) as server, AsyncClient(tiny, server.address, audit=FAST) as client:
        frames = smooth(12)
        for frame in frames[:6]:
            await client.infer(frame)
        info = server.recorder.opened[0]
        camera = CameraKey(info.client, info.model, bytes(16), info.stream_id)
        recorder.drifted(DriftEvent(Verdict.DRIFT, camera, 5, 0, 6, "bits", -1.0, 0))
        for frame in frames[6:]:
            await client.infer(frame)
        await until(lambda: recorder.sources_kept == 5, "five images have come")
    recorder.close()
    kept = [open_sample(one.path, key) for one in samples_in(tmp_path)]
    packets = [(one.reason, one.unpacked()) for one in kept]
    wanted = [3, 4, 5, 6, 7]
    assert sorted(packet.frame_id for _, packet in packets if packet.kind is Kind.SYMBOLS) == wanted
    images = {packet.frame_id: packet for _, packet in packets if packet.kind is Kind.IMAGE}
    assert sorted(images) == wanted
    assert {reason for reason, _ in packets} == {"alarm"}
    assert np.abs(decode_image(images[4].payload, images[4].codec).astype(int) - frames[4]).max() <= 3


async def test_images_that_are_sent_anyhow_are_not_asked_for(tmp_path, key, recorder):
    made = bundles.with_whole(bundles.make())
    path = made.write(tmp_path / "whole.ncb")
    bundle = bundles.open_made(path)
    whole = load_models(tmp_path, trusted=[bundles.trusted_key()])["tiny"]
    async with running(whole, auditor=recorder) as server:
        async with AsyncClient(bundle, server.address, audit=FAST, way="image") as client:
            await client.infer(smooth(1)[0])
        assert recorder.sources_asked == 0


def test_the_verb_says_what_it_sent(tiny_folder, model, tmp_path, key, recorder, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    from PIL import Image

    for k, frame in enumerate(smooth(4)):
        Image.fromarray(frame).save(pictures / f"{k}.png")

    async def stream_verb(*options: str) -> int:
        async with running(model, auditor=recorder) as server:
            words = ["stream", str(tiny_folder / "tiny.ncb"), str(pictures), "--to", server.address, "--window", "1"]
            return await asyncio.to_thread(main, [*words, "--trust", str(tiny_folder / "test.pub"), *options])

    assert asyncio.run(stream_verb()) == 0
    assert "operator" not in capsys.readouterr().err
    assert asyncio.run(stream_verb("--audit", "--audit-rate", "1000")) == 0
    assert "images for the server's operator, who asked for them" in capsys.readouterr().err
    assert asyncio.run(stream_verb("--audit", "--audit-quality", "101")) != 0
    assert "1..100" in capsys.readouterr().err


# The server


async def test_nobody_is_asked_without_consent_and_an_image_from_there_ends_the_stream(model, recorder):
    async with running(model, auditor=recorder) as server, stream(server, model) as raw:
        await raw.send(0, 1)
        assert [list((await raw.result()).audit) for _ in range(2)] == [[], []]
        packet = raw.packet(0, kind=Kind.IMAGE, codec=CodecId.JPEG, level=0, payload=image_payload())
        await raw.call.write(pb.StreamRequest(audit=packet.to_stream_bytes(raw.context)))
        code, _ = await raw.ending()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert recorder.sources_kept == 0


async def test_images_take_no_place_in_the_window_and_are_not_answered(model, recorder):
    async with running(model, auditor=recorder) as server, stream(server, model, audit=True, window=1) as raw:
        await raw.send(0)
        assert list((await raw.result()).audit) == [0]
        image = raw.packet(0, kind=Kind.IMAGE, codec=CodecId.JPEG, level=0, payload=image_payload())
        for _ in range(3):  # asked for once: the others are not kept
            await raw.call.write(pb.StreamRequest(audit=image.to_stream_bytes(raw.context)))
        await raw.send(1)
        assert (await raw.result()).frame_id == 1
        assert (recorder.sources_kept, recorder.sources_refused) == (1, 2)


@pytest.mark.parametrize("data", [b"", b"no packet", "symbols"])
async def test_sources_that_are_none(model, recorder, data):
    async with running(model, auditor=recorder) as server, stream(server, model, audit=True) as raw:
        sent = raw.packet(0).to_stream_bytes(raw.context) if data == "symbols" else data
        await raw.call.write(pb.StreamRequest(audit=sent))
        code, _ = await raw.ending()
        wanted = grpc.StatusCode.INVALID_ARGUMENT if data == "symbols" else grpc.StatusCode.DATA_LOSS
        assert code is wanted


async def test_what_is_asked_for_is_bounded(model, recorder):
    async with running(model, auditor=recorder) as server, stream(server, model, audit=True) as raw:
        for frame_id in range(MAX_ASKED + 1):
            await raw.send(frame_id)
            assert list((await raw.result()).audit) == [frame_id]
        for frame_id in (0, MAX_ASKED):
            image = raw.packet(frame_id, kind=Kind.IMAGE, codec=CodecId.JPEG, level=0, payload=image_payload())
            await raw.call.write(pb.StreamRequest(audit=image.to_stream_bytes(raw.context)))
        await until(lambda: recorder.sources_kept, "the one that is still asked for has come")
        assert recorder.sources_refused == 1


# The client


async def test_the_client_holds_a_bounded_number_and_counts_what_is_gone():
    counters = LinkCounters()
    consent = AuditConsent(frames_per_second=1000.0, max_frames=3, max_bytes=10 * 192)
    frames = AuditFrames(consent, CONTEXT, counters, lambda: None)
    for frame_id, image in enumerate(smooth(8)):
        frames.remember(frame_id, 5, image)
    frames.ask([0, 4, 5, 6, 7, 7, 1_000_000])
    sent = []
    while len(sent) < 3:
        if (data := frames.ready()) is not None:
            sent.append(Packet.from_stream_bytes(data, CONTEXT))
        await asyncio.sleep(0.001)
    assert [packet.frame_id for packet in sent] == [5, 6, 7]
    assert {packet.kind for packet in sent} == {Kind.IMAGE}
    assert (counters.audit_sent, counters.audit_missed) == (3, 4)
    await frames.close()


async def test_images_wait_for_what_live_frames_leave_of_a_budget(tiny):
    """And of a day's bytes: the link asks rate control for each."""
    asked, spare = [], []
    frames = AuditFrames(FAST, CONTEXT, LinkCounters(), lambda: None, lambda size: asked.append(size) or bool(spare))
    frames.remember(0, 5, smooth(1)[0])
    frames.ask([0])
    await until(lambda: len(asked) >= 2, "it asks again")
    assert frames.ready() is None
    spare.append(True)
    await until(lambda: frames._ready, "it may go")
    assert len(frames.ready()) == asked[-1]
    await frames.close()
    async with AsyncClient(tiny, "127.0.0.1:9", audit=True, max_packet_bytes=10_000) as client:
        assert client._link.audit._may_send == client.rate.may_replay


async def test_a_link_that_dies_under_an_image_is_noticed_without_a_frame_under_way(tiny, monkeypatch):
    monkeypatch.setattr(liveness, "HUNG_SECONDS", 0.5)
    written, write = [], Wire.write

    async def held_up(self, request):
        if request.audit:
            written.append(request)
            await asyncio.Event().wait()
        await write(self, request)

    async def script(talk):
        async for frame_id in talk.frames():
            talk.answer(frame_id, audit=[frame_id] if frame_id == 0 else [])
            talk.deaf = True

    monkeypatch.setattr(Wire, "write", held_up)
    async with scripted(script) as server, AsyncClient(tiny, server.address, audit=FAST) as client:
        await client.infer(smooth(1)[0])
        await until(lambda: written, "the image is being written")
        result = await asyncio.wait_for(client.infer(smooth(1)[0]), 30)
        assert (result.error, client.counters.hangs, len(server.streams)) == (None, 1, 2)


async def test_bytes_bound_what_is_held_as_well():
    counters = LinkCounters()
    frames = AuditFrames(AuditConsent(max_bytes=2 * 192 + 1), CONTEXT, counters, lambda: None)
    for frame_id, image in enumerate(smooth(4)):
        frames.remember(frame_id, 5, image)
    frames.ask([0, 1])
    assert counters.audit_missed == 2
    await frames.close()


async def test_the_source_is_not_the_callers_memory(tiny):
    frame = smooth(1)[0]
    encoded = HeadSession(tiny).encode(frame, 1, keep_source=True)
    frame[:] = 255
    np.testing.assert_array_equal(encoded.source, smooth(1)[0])


async def test_the_border_that_the_contract_cuts_off_goes_along(tmp_path):
    """Else whoever reads the image by the same contract would cut it off twice."""
    made = bundles.make()
    contract = msgspec.structs.replace(made.manifest.input, fit="center-crop", crop=0.8)
    made = bundles.Made(msgspec.structs.replace(made.manifest, input=contract), made.contents)
    session = HeadSession(bundles.open_made(made.write(tmp_path / "cropped.ncb")))
    frame = bundles.random_frames(1, size=(40, 48))[0]
    encoded = session.encode(frame, 1, keep_source=True)
    assert encoded.source.shape == (10, 10, 3)
    np.testing.assert_array_equal(session.encode(encoded.source, 1).symbols, encoded.symbols)


@pytest.mark.parametrize(
    "wrong",
    [
        {"codec": "png"}, {"quality": 0}, {"quality": 101}, {"frames_per_second": 0.0}, {"max_frames": 0},
        {"frames_per_second": math.inf}, {"max_bytes": 0},
    ],
)  # fmt: skip
def test_consent_that_cannot_be(wrong):
    with pytest.raises(ConfigError, match="audit"):
        AuditConsent(**wrong)
