"""A device whose link is down answers by itself, and goes back to the server when there is one."""

from __future__ import annotations

import asyncio
import json
import signal

import numpy as np
import pytest
from support import bundles
from support.command import narrowcast
from support.server import ServerProcess, serving
from support.waiting import until

from narrowcast.cli import main
from narrowcast.head.client import AsyncClient, Client
from narrowcast.head.errors import PeerUnreachableError, RefusedError
from narrowcast.head.session import HeadSession
from narrowcast.transport.errors import ConfigError, MissingPartError

NOWHERE = "127.0.0.1:9"  # discard: nobody listens
FRAMES = bundles.random_frames(12)


@pytest.fixture
def session(tmp_path):
    """The tiny head, with a local exit."""
    return HeadSession(bundles.open_made(bundles.with_exit(bundles.make()).write(tmp_path / "tiny.ncb"), "device"))


def check(result, frame, level: int = 1) -> None:
    """The answer is right for whoever gave it."""
    assert result.error is None
    adds = bundles.EXIT_ADDS if result.source == "exit" else 0
    assert np.allclose(result.outputs["output"], bundles.expected_output(frame, level) + adds, atol=1e-3)


@pytest.mark.parametrize("level", [0, 1])
def test_the_session_answers_by_itself(session, level):
    symbols = session.symbols(FRAMES[0], level)
    outputs = session.answer(symbols, level)
    assert np.allclose(outputs["output"], bundles.expected_output(FRAMES[0], level) + bundles.EXIT_ADDS, atol=1e-3)
    assert outputs["output"].shape == (3,)


def test_a_bundle_without_one(tiny):
    session = HeadSession(tiny)
    assert not session.has_exit
    with pytest.raises(MissingPartError, match=r"has no local exit: compile with \[exit\].*whole = true"):
        session.answer(session.symbols(FRAMES[0], 0), 0)
    with pytest.raises(MissingPartError, match="no local exit"):
        Client(session, NOWHERE, local_exit=True)


def test_without_a_server_the_exit_answers_in_order(session):
    with Client(session, NOWHERE, exit_after_seconds=0.05, give_up_seconds=0.1, level=0) as client:
        results = list(client.stream(FRAMES))
    assert [result.frame_id for result in results] == list(range(len(FRAMES)))
    for result, frame in zip(results, FRAMES, strict=True):
        assert result.source == "exit"
        assert result.packet_bytes == 0
        assert list(result.times.stages()) == ["resize", "head", "encode", "exit"]
        check(result, frame, level=0)


def test_with_a_server_the_server_answers(session, tiny_folder):
    with serving(tiny_folder, tiny_folder / "test.pub") as server:
        with Client(session, server.address, exit_after_seconds=60) as client:
            for result, frame in zip(client.stream(FRAMES), FRAMES, strict=True):
                assert result.source == "server"
                check(result, frame)


def test_it_goes_back_to_the_server(session, tiny_folder):
    trust = tiny_folder / "test.pub"
    with serving(tiny_folder, trust) as first:
        client = Client(session, first.address, exit_after_seconds=0.5)
        with client:
            until(lambda: client.infer(FRAMES[0]).source == "server", "the server answers")
            first.kill()
            until(lambda: client.infer(FRAMES[1]).source == "exit", "the exit answers")
            check(client.infer(FRAMES[2]), FRAMES[2])
            second = ServerProcess(tiny_folder, trust, listen=str(first.address))
            try:
                until(lambda: client.infer(FRAMES[3]).source == "server", "the new server answers", 30)
                for result, frame in zip(client.stream(FRAMES), FRAMES, strict=True):
                    check(result, frame)
            finally:
                second.end()


def test_a_server_that_stands_still(session, tiny_folder):
    """Keepalive takes seconds to see it; no frame waits that long, nor does the window run full."""
    with serving(tiny_folder, tiny_folder / "test.pub") as server:
        with Client(session, server.address, exit_after_seconds=0.2, window=2) as client:
            until(lambda: client.infer(FRAMES[0]).source == "server", "the server answers")
            server.kill(signal.SIGSTOP)
            results = list(client.stream(FRAMES[:6]))
            assert {result.source for result in results} == {"exit"}
            server.kill(signal.SIGCONT)
            until(lambda: client.infer(FRAMES[1]).source == "server", "the server answers again", 30)


async def test_no_more_frames_are_under_way_than_the_window(session):
    async with AsyncClient(session, NOWHERE, exit_after_seconds=0.1, window=3) as client:
        running = set()
        most = 0
        for frame in FRAMES:
            task = await client.submit(frame)
            running.add(task)
            task.add_done_callback(running.discard)
            most = max(most, len(running))
        assert most <= 4  # a task that is done may still be in the set
        await asyncio.gather(*running)


def test_it_answers_for_the_first_tail_alone(tmp_path):
    made = bundles.with_second_tail(bundles.with_exit(bundles.make()))
    session = HeadSession(bundles.open_made(made.write(tmp_path / "two.ncb"), "device"))
    with Client(session, NOWHERE, exit_after_seconds=0.05) as client:
        assert client.infer(FRAMES[0]).outputs.keys() == {"output"}
    with Client(session, NOWHERE, tails=["second"], give_up_seconds=0.2) as client:
        with pytest.raises(PeerUnreachableError):
            client.infer(FRAMES[0])
    with pytest.raises(ConfigError, match="answers as the tail 'main' does"):
        Client(session, NOWHERE, tails=["second"], local_exit=True)


def test_it_can_be_turned_off(session):
    with Client(session, NOWHERE, local_exit=False, give_up_seconds=0.2) as client:
        with pytest.raises(PeerUnreachableError):
            client.infer(FRAMES[0])


def test_a_server_that_refuses_is_an_error_all_the_same(session, tmp_path):
    """The exit is for want of a link; a server that does not know the model is for somebody to look at."""
    (tmp_path / "models").mkdir()
    bundles.make(name="other").write(tmp_path / "models" / "other.ncb")
    bundles.trusted_key().write(tmp_path / "test.pub")
    with serving(tmp_path / "models", tmp_path / "test.pub") as server, Client(session, server.address) as client:
        with pytest.raises(RefusedError):
            client.infer(FRAMES[0])


def test_a_server_that_refuses_while_the_exit_answers_is_noticed(session, tiny_folder, tmp_path):
    (tmp_path / "models").mkdir()
    bundles.make(name="other").write(tmp_path / "models" / "other.ncb")
    trust = tiny_folder / "test.pub"
    with serving(tiny_folder, trust) as first, Client(session, first.address, exit_after_seconds=0.3) as client:
        first.kill()
        until(lambda: client.infer(FRAMES[0]).source == "exit", "the exit answers")
        with serving(tmp_path / "models", trust, listen=str(first.address)), pytest.raises(RefusedError):
            until(lambda: client.infer(FRAMES[0]).source == "server", "the new server refuses", 30)


def test_masks_that_cannot_be(session, photo_folder, tmp_path, capsys):
    bundles.trusted_key().write(tmp_path / "test.pub")
    command = [
        "stream",
        str(session.bundle.path),
        str(photo_folder),
        "--to",
        NOWHERE,
        "--trust",
        str(tmp_path / "test.pub"),
    ]
    for folder, message in (
        (tmp_path / "masks", "tiny gives no map of classes"),
        (photo_folder, "is where the images are"),
    ):
        assert main([*command, "--masks", str(folder)]) == 2
        assert message in capsys.readouterr().err


def test_the_command_line_says_who_answered(session, photo_folder, tmp_path):
    bundles.trusted_key().write(tmp_path / "test.pub")
    picture = next(photo_folder.rglob("*.png"))
    words = [
        "stream", session.bundle.path, picture, "--to", NOWHERE, "--trust", tmp_path / "test.pub", "--exit-after", "0.1",
        "--give-up", "0.2",
    ]  # fmt: skip
    alone = narrowcast(*words)
    assert alone.returncode == 0, alone.stderr
    line = json.loads(alone.stdout)
    assert (line["from"], line["packet_bytes"], line["error"]) == ("exit", 0, None)
    assert "1 of 1 frames answered by the local exit" in alone.stderr
    assert narrowcast(*words, "--no-exit").returncode == 4
