"""Frames answered by the uncut network here, by symbols, or as images: real servers, real networks."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from support import bundles
from support.server import serving
from support.waiting import until

from narrowcast.cli import main
from narrowcast.head.client import Client
from narrowcast.head.session import HeadSession
from narrowcast.transport.errors import ConfigError, FrameError, MissingPartError

FRAMES = bundles.random_frames(12)
FIGURES = {
    "levels": [
        {"level": 0, "agreement": 0.6, "mean_packet_bytes": 150.0},
        {"level": 1, "agreement": 0.8, "mean_packet_bytes": 200.0},
    ],
    "sent_images": [{"codec": "jpeg", "quality": 75, "agreement": 0.95, "mean_packet_bytes": 700.0}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A server's folder with all parts, and another one without the uncut network."""
    folder = tmp_path_factory.mktemp("offload")
    made = bundles.with_whole(bundles.make(figures=FIGURES))
    made.write(folder / "tiny.ncb")
    bare = folder / "bare"
    bare.mkdir()
    parts = [part for part in made.manifest.parts if part.kind != "whole"]
    manifest = msgspec.structs.replace(made.manifest, parts=parts)
    contents = {name: data for name, data in made.contents.items() if not name.startswith("whole")}
    bundles.Made(manifest, contents).write(bare / "tiny.ncb")
    bundles.trusted_key().write(folder / "test.pub")
    return folder


@pytest.fixture(scope="module")
def session(folder) -> HeadSession:
    return HeadSession(bundles.open_made(folder / "tiny.ncb", "device"))


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder, folder / "test.pub") as running:
        yield running


def right(result, number: int) -> bool:
    return np.allclose(result.outputs["output"], bundles.expected_output(FRAMES[number], 1), atol=1e-3)


def test_here_alone(session):
    """Nothing is sent; nobody listens there."""
    with Client(session, "127.0.0.1:9", offload="local") as client:
        results = list(client.stream(FRAMES))
        assert {(result.source, result.fate, result.packet_bytes) for result in results} == {("whole", "local", 0)}
        assert all(right(result, result.frame_id) for result in results)
        account = client.ledger.account
        assert (account.captured, account.local) == (12, 12)
        assert client.counters.packets_sent == 0
        assert client.offload.chooser.chosen == {"local": 12}
        assert "12 local (only 12)" in client.offload.summary()
        with pytest.raises(FrameError):
            client.infer(FRAMES[0][:, :, :2])
        account = client.ledger.account
        assert (account.captured, account.dropped, account.adds_up) == (13, {"not encoded": 1}, True)


def test_the_uncut_network_here_where_it_is_in_time(server, session):
    """One frame is sent all the same, to see how the link is."""
    with Client(session, server.address, offload="auto", deadline_ms=30_000) as client:
        results = [client.infer(frame) for frame in FRAMES]
        assert [result.source for result in results] == ["server"] + ["whole"] * 11
        assert all(result.error is None for result in results)
        assert client.offload.ways == ["split", "image", "local"]
        assert client.offload.chooser.reasons == {"better": 11, "probe": 1}


def test_images_where_the_board_is_too_slow_and_symbols_where_the_server_knows_none(server, folder, session):
    with Client(session, server.address, offload="auto", deadline_ms=30_000) as client:
        client.offload.times.took("local", 1e6)  # a board that would take days
        results = [client.infer(frame) for frame in FRAMES]
        assert {result.error for result in results} == {None}
        assert client.offload.chooser.chosen == {"image": 12}
    with serving(folder / "bare", folder / "test.pub") as bare:
        with Client(session, bare.address, offload="auto", deadline_ms=30_000) as client:
            client.offload.times.took("local", 1e6)
            results = [client.infer(frame) for frame in FRAMES]
            assert results[0].error is not None
            assert {result.error for result in results[1:]} == {None}
            assert client.offload.chooser.chosen == {"image": 1, "split": 11}
            assert "the server answers images with" in client.offload.left_out["image"]
            account = client.ledger.account
            assert account.adds_up
            assert account.answered == 11


def test_energy_decides_between_ways_that_are_as_good(server, folder, tmp_path):
    figures = {**FIGURES, "sent_images": [{**FIGURES["sent_images"][0], "agreement": 1.0}]}
    made = bundles.with_whole(bundles.make(figures=figures)).write(tmp_path / "even.ncb")
    session = HeadSession(bundles.open_made(made, "device"))
    for joules, way in (({"local": 2.0, "image": 1.0}, "image"), ({"local": 1.0, "image": 2.0}, "local")):
        with Client(session, server.address, offload="auto", deadline_ms=30_000, way_joules=joules) as client:
            for frame in FRAMES:
                assert client.infer(frame).error is None
            assert client.offload.chooser.chosen.most_common(1)[0][0] == way
            assert client.offload.chooser.reasons["less energy"] >= 1


def test_a_lost_link_leaves_the_board_to_itself_and_is_taken_up_again(folder, session):
    with serving(folder, folder / "test.pub") as first:
        with Client(session, first.address, offload="auto", deadline_ms=30_000, window=1) as client:
            client.offload.times.took("local", 1e6)
            assert client.infer(FRAMES[0]).source == "server"
            first.kill()
            first.process.wait()
            until(lambda: not client._client._link.connected, "it is noticed")
            assert client.infer(FRAMES[1]).source == "whole"
            assert client.ledger.account.adds_up


def test_what_cannot_be(session, tiny_folder):
    plain = HeadSession(bundles.open_made(tiny_folder / "tiny.ncb"))
    with pytest.raises(MissingPartError, match="no uncut network"):
        Client(plain, "127.0.0.1:9", offload="local")
    with pytest.raises(ConfigError, match="joules a frame by way"):
        Client(session, "127.0.0.1:9", offload="auto", way_joules={"local": -1.0})
    with pytest.raises(ConfigError, match="does not say what its levels are worth"):
        Client(plain, "127.0.0.1:9", offload="auto")


def test_who_asks_for_other_tails_alone_is_not_answered_by_the_uncut_network(tmp_path):
    made = bundles.with_second_tail(bundles.with_whole(bundles.make(figures=FIGURES)))
    session = HeadSession(bundles.open_made(made.write(tmp_path / "two.ncb"), "device"))
    with pytest.raises(ConfigError, match="answers as the tail 'main' does, which is not asked for"):
        Client(session, "127.0.0.1:9", offload="local", tails=["second"])
    with Client(session, "127.0.0.1:9", offload="auto", tails=["second"], on_outage="drop") as client:
        assert "local" not in client.offload.ways
        assert "not asked for" in client.offload.left_out["local"]
    with Client(session, "127.0.0.1:9", offload="auto", tails=["main", "second"], on_outage="drop") as client:
        assert "local" in client.offload.ways


def test_the_command_line(folder, server, tmp_path, capsys):
    from PIL import Image

    for number, frame in enumerate(FRAMES[:4]):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    command = ["stream", str(folder / "tiny.ncb"), str(tmp_path), "--to", str(server.address)]
    command += ["--trust", str(folder / "test.pub")]
    assert main([*command, "--offload", "local"]) == 0
    captured = capsys.readouterr()
    assert {json.loads(line)["from"] for line in captured.out.splitlines()} == {"whole"}
    assert "offload: 4 local" in captured.err
    assert "4 of 4 frames answered by the uncut network here" in captured.err
    assert "local exit" not in captured.err
    assert main([*command, "--offload", "auto", "--way-joules", "local=1,split=2"]) == 0
    assert "offload: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--offload", "auto", "--way-joules", "local"])
    assert "such as local=1.9" in capsys.readouterr().err
