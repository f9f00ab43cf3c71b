"""Frames of different sizes in one stream and one batch, through a real server."""

from __future__ import annotations

import numpy as np
import pytest
from support import bundles
from support.server import serving

from narrowcast.head.client import Client
from narrowcast.head.session import HeadSession
from narrowcast.tail.answering import answer_batch
from narrowcast.tail.frame import Frame
from narrowcast.tail.store import load_model
from narrowcast.transport.packet import CodecId, Packet

SIZES = [(8, 8), (16, 24), (4, 20), (13, 7), (8, 8), (5, 24)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for a server, with a bundle for images of up to 16 x 24."""
    made = tmp_path_factory.mktemp("free")
    bundles.make_free().write(made / "free.ncb")
    bundles.trusted_key().write(made / "test.pub")
    return made


@pytest.fixture
def bundle(folder):
    return bundles.open_made(folder / "free.ncb")


def frames() -> list[np.ndarray]:
    return [bundles.random_frames(1, seed=k, size=size)[0] for k, size in enumerate(SIZES)]


def test_a_stream_of_several_sizes(folder, bundle):
    with serving(folder, folder / "test.pub") as server, Client(bundle, server.address) as client:
        results = list(client.stream([*frames(), *frames()]))
    assert [result.error for result in results] == [None] * 12
    for frame, result in zip(frames(), results, strict=False):
        prepared = bundle.manifest.input.prepare(frame)
        assert result.placement == prepared.placement
        symbols = (prepared.image // 16).transpose(2, 0, 1)
        assert np.array_equal(result.outputs["floats"], symbols)
        np.testing.assert_allclose(result.outputs["output"], bundles.expected_output(prepared.image, 1), rtol=1e-5)


def test_a_batch_of_several_sizes_and_lies(bundle):
    model, session = load_model(bundle), HeadSession(bundle)
    encoded = [session.encode(frame, 1) for frame in frames()]
    payloads = [one.payload for one in encoded]
    lies = [b"\x09\x01" + payloads[0][2:], b"\x04\x06" + payloads[0][2:], b"", b"\x02"]
    batch = [
        Frame(Packet(CodecId.RANS, 1, number, 0, payload, bytes(16), bytes(16)))
        for number, payload in enumerate([*payloads[:3], *lies, *payloads[3:]])
    ]
    responses = [response.result for response in answer_batch(model, batch)]
    assert [result.frame_id for result in responses] == list(range(10))
    assert [bool(result.code) for result in responses] == [False] * 3 + [True] * 4 + [False] * 3
    assert "announces symbols of 36 x 4" in responses[3].message
    for one, result in zip(encoded, [*responses[:3], *responses[7:]], strict=True):
        assert list(result.outputs[1].shape) == list(one.symbols.shape)
        assert result.times.batch == 10
