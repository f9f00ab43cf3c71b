"""Frames that are sent as image files, which the server's uncut network answers."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image as Pillow
from support import bundles
from support.server import serving

from narrowcast.cli import main
from narrowcast.head.client import Client
from narrowcast.head.session import HeadSession
from narrowcast.transport.contract import InputContract
from narrowcast.transport.errors import ConfigError, FrameError
from narrowcast.transport.images import decode_image
from narrowcast.transport.packet import CodecId, Kind

FLAT = np.full((40, 36, 3), (40, 90, 200), np.uint8)
NOWHERE = "127.0.0.1:9"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A server's folder: one bundle with the uncut network, one without."""
    folder = tmp_path_factory.mktemp("models")
    bundles.with_whole(bundles.with_exit(bundles.make())).write(folder / "tiny.ncb")
    bundles.make("bare").write(folder / "bare.ncb")
    bundles.trusted_key().write(folder / "test.pub")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder, folder / "test.pub") as running:
        yield running


@pytest.fixture
def session(folder):
    return HeadSession(bundles.open_made(folder / "tiny.ncb", "device"))


@pytest.mark.parametrize("codec", ["jpeg", "webp"])
def test_the_uncut_network_answers(server, session, codec):
    options = {"way": "image", "image_codec": codec, "image_quality": 95, "exit_after_seconds": 60}
    with Client(session, server.address, **options) as client:
        results = list(client.stream([FLAT] * 5))
    for k, result in enumerate(results):
        assert (result.frame_id, result.error, result.source, result.level) == (k, None, "server", 0)
        assert result.packet_bytes > 24
        assert list(result.times.stages()) == ["resize", "encode", "wire", "queue", "decode", "tail"]
        # One step of a colour may tip the floor of its sixteenth.
        assert np.abs(result.outputs["output"] - (FLAT[0, 0] // 16 + 100)).max() <= 1


def test_the_exit_answers_without_a_server(session):
    with Client(session, NOWHERE, way="image", exit_after_seconds=0.05) as client:
        result = client.infer(FLAT)
    assert (result.source, result.level, result.packet_bytes) == ("exit", 1, 0)
    assert np.allclose(result.outputs["output"], FLAT[0, 0] // 16 + 100.0 + bundles.EXIT_ADDS, atol=1e-3)


def test_a_server_without_the_uncut_network_says_so(server, folder):
    bundle = bundles.open_made(folder / "bare.ncb", "device")
    with Client(bundle, server.address, way="image") as client:
        result = client.infer(FLAT)
    assert result.status == "INVALID_ARGUMENT"
    assert "'bare' cannot answer an image" in result.error


@pytest.mark.parametrize(
    "options", [{"way": "film"}, {"image_codec": "gif"}, {"image_quality": 0}, {"image_quality": 101}]
)
def test_options_that_cannot_be(session, options):
    with pytest.raises(ConfigError, match="one of symbols, image; one of jpeg, webp; 1..100"):
        Client(session, NOWHERE, **options)


def test_what_is_sent_is_the_networks_input(session):
    encoded = session.encode_image(FLAT, CodecId.WEBP, 90)
    assert (encoded.kind, encoded.codec, encoded.symbols) == (Kind.IMAGE, CodecId.WEBP, None)
    with Pillow.open(io.BytesIO(encoded.payload)) as picture:
        assert (picture.format, picture.size) == ("WEBP", (8, 8))
    with pytest.raises(FrameError, match="not as RANS"):
        session.encode_image(FLAT, CodecId.RANS)


@pytest.mark.parametrize(
    "contract",
    [
        InputContract(size=(64, 64), crop=0.875),
        InputContract(size=(64, 48)),
        InputContract(size=(64, 48), fit="letterbox"),
        InputContract(size=(48, 64), fit="stretch"),
    ],
)
def test_the_server_sees_what_the_head_would(session, contract):
    """Cutting off the border, or fitting into bars, must not happen twice."""
    down, across = np.linspace(0, 255, 150)[:, None], np.linspace(0, 255, 200)[None, :]
    frame = np.stack(np.broadcast_arrays(down, across, (down + across) / 2), -1).astype(np.uint8)
    session.contract = contract
    encoded = session.encode_image(frame, CodecId.JPEG, 100)
    seen = contract.prepare(decode_image(encoded.payload, CodecId.JPEG)).image.astype(int)
    wanted = contract.prepare(frame).image.astype(int)
    assert np.abs(seen - wanted).mean() < 2.5  # a border that is cut off twice: 5.5
    assert encoded.placement == contract.placement(150, 200)


def test_the_command_line(server, folder, tmp_path, capsys):
    Pillow.fromarray(FLAT).save(tmp_path / "frame.png")
    command = ["stream", str(folder / "tiny.ncb"), str(tmp_path / "frame.png"), "--to", str(server.address)]
    assert main([*command, "--trust", str(folder / "test.pub"), "--way", "image", "--exit-after", "60"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["from"], line["status"], line["level"]) == ("server", "OK", 0)
    assert main([*command, "--trust", str(folder / "test.pub"), "--way", "image", "--image-quality", "300"]) == 2
