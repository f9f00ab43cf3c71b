"""Client and server, two processes, a real socket."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
from support import bundles
from support.server import ServerProcess, serving
from support.waiting import until

from narrowcast.head.client import AsyncClient, Client
from narrowcast.head.errors import LinkClosedError, PeerUnreachableError, RefusedError
from narrowcast.head.session import HeadSession


def check(results, frames, level: int) -> None:
    """Every frame was answered once, in order, rightly."""
    assert [result.frame_id for result in results] == list(
        range(results[0].frame_id, results[0].frame_id + len(frames))
    )
    for result, frame in zip(results, frames, strict=True):
        assert result.error is None
        assert np.allclose(result.outputs["output"], bundles.expected_output(frame, level), atol=1e-4)


@pytest.mark.parametrize("level", [0, 1])
def test_frames_are_answered_in_order(server, session, level):
    frames = bundles.random_frames(60)
    with Client(session, server.address, level=level) as client:
        results = list(client.stream(frames))
        check(results, frames, level)
        assert client.counters.packets_sent == client.counters.results == 60
        on_socket = client.socket_bytes()
    if on_socket is not None:  # where the system counts
        assert on_socket.sent > client.counters.packet_bytes_sent
    stages = results[-1].times.stages()
    assert list(stages) == ["resize", "head", "encode", "wire", "queue", "decode", "tail"]
    assert all(value >= 0 for value in stages.values())


def test_levels_may_change_from_frame_to_frame(server, session):
    frames = bundles.random_frames(6)
    with Client(session, server.address) as client:
        for k, frame in enumerate(frames):
            assert np.allclose(
                client.infer(frame, k % 2).outputs["output"], bundles.expected_output(frame, k % 2), atol=1e-4
            )


def test_a_board_with_the_bundle_from_before_a_tail_was_added(session, tiny_folder, tmp_path):
    """Its server has more tails by now: it gets what its own bundle says, and boards with the new bundle get all."""
    bundles.make().write(tmp_path / "old.ncb")
    new = bundles.with_second_tail(bundles.make(release=2)).write(tmp_path / "new.ncb")
    frames = bundles.random_frames(3)
    with serving(tmp_path, tiny_folder / "test.pub") as server:
        with Client(session, server.address) as client:
            check(list(client.stream(frames)), frames, 1)
        with Client(HeadSession(bundles.open_made(new)), server.address) as client:
            assert client.infer(frames[0]).outputs.keys() == {"output", "second/output"}


async def test_asyncio_clients_overlap(server, session):
    frames = bundles.random_frames(20)
    async with AsyncClient(session, server.address, window=3) as client:
        results = await asyncio.gather(*(client.infer(frame) for frame in frames))
    for result, frame in zip(results, frames, strict=True):
        assert np.allclose(result.outputs["output"], bundles.expected_output(frame, 1), atol=1e-4)
    assert sorted(result.frame_id for result in results) == list(range(20))


def test_many_clients_at_once_get_their_own_answers(server, session):
    frames = bundles.random_frames(240).reshape(8, 30, 8, 8, 3)
    failures = []

    def one(mine: np.ndarray) -> None:
        try:
            with Client(session, server.address) as client:
                check(list(client.stream(mine)), mine, 1)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(mine,)) for mine in frames]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def test_a_killed_server_costs_no_frame_and_doubles_none(tiny_folder, session):
    frames = bundles.random_frames(400)
    first = ServerProcess(tiny_folder, tiny_folder / "test.pub")
    troubles: list[str] = []
    results = []
    second = None
    try:
        with Client(session, first.address, window=16, on_trouble=troubles.append) as client:
            for result in client.stream(frames):
                results.append(result)
                if len(results) == 100:
                    first.kill()
                    first.process.communicate()
                    second = ServerProcess(tiny_folder, tiny_folder / "test.pub", listen=str(first.address))
        check(results, frames, 1)
        assert client.counters.streams_opened >= 2
        assert client.counters.packets_resent >= 1
        assert troubles
    finally:
        for server in (first, second):
            if server is not None and server.process.poll() is None:
                server.process.kill()
                server.process.communicate()


def test_a_server_that_shuts_down_answers_what_it_took_in_and_exits_0(tiny_folder, session):
    frames = bundles.random_frames(300)
    with serving(tiny_folder, tiny_folder / "test.pub") as first:
        results = []
        with Client(session, first.address, window=8) as client:
            stream = client.stream(frames)
            results += [next(stream) for _ in range(50)]
            first.process.send_signal(signal.SIGTERM)
            code = first.process.wait(30)
            with serving(tiny_folder, tiny_folder / "test.pub", listen=str(first.address)):
                results += list(stream)
        assert code == 0
        check(results, frames, 1)


def test_a_stopped_server_is_noticed(tiny_folder, session):
    """SIGSTOP: the socket stays open and nothing answers. Keepalive's pings must end the stream."""
    frames = bundles.random_frames(4)
    troubles: list[str] = []
    with serving(tiny_folder, tiny_folder / "test.pub") as server:
        with Client(session, server.address, on_trouble=troubles.append) as client:
            client.infer(frames[0])
            server.kill(signal.SIGSTOP)
            waiting = threading.Thread(target=lambda: client.infer(frames[1]))
            waiting.start()
            until(lambda: bool(troubles), "the client noticed", seconds=30)
            server.kill(signal.SIGCONT)
            waiting.join(30)
            assert not waiting.is_alive()
            check([client.infer(frames[2])], frames[2:3], 1)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_no_server_is_an_error_after_the_time_to_give_up(session):
    with Client(session, f"127.0.0.1:{free_port()}", give_up_seconds=0.5) as client:
        with pytest.raises(PeerUnreachableError, match="no answer from a tail server"):
            client.infer(bundles.random_frames(1)[0])
        with pytest.raises(PeerUnreachableError):  # and stays one
            client.infer(bundles.random_frames(1)[0])


def test_something_that_is_no_tail_server_is_an_error(session):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()

        def chatter() -> None:
            listener.settimeout(0.1)
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.close()

        thread = threading.Thread(target=chatter)
        thread.start()
        try:
            with Client(session, f"127.0.0.1:{listener.getsockname()[1]}", give_up_seconds=1.0) as client:
                with pytest.raises(PeerUnreachableError):
                    client.infer(bundles.random_frames(1)[0])
        finally:
            stop.set()
            thread.join()


def test_closing_a_client_fails_what_is_under_way(session):
    client = Client(session, f"127.0.0.1:{free_port()}", give_up_seconds=None)
    errors = []

    def infer() -> None:
        try:
            client.infer(bundles.random_frames(1)[0])
        except LinkClosedError as error:
            errors.append(error)

    thread = threading.Thread(target=infer)
    thread.start()
    until(lambda: bool(len(client._client._link._frames)), "the frame is under way")
    client.close()
    thread.join(10)
    assert len(errors) == 1


def test_another_model_or_codec_is_refused_with_what_there_is(server, tmp_path):
    other = bundles.open_made(bundles.make("other").write(tmp_path / "other.ncb"))
    with (
        Client(other, server.address) as client,
        pytest.raises(RefusedError, match="no model 'other' here; there is tiny"),
    ):
        client.infer(bundles.random_frames(1)[0])
    import msgspec

    made = bundles.make()
    codec = msgspec.structs.replace(made.manifest.codec, quantizer="f" * 64)
    fingerprint = codec.fingerprint(bundles.tables()).hex()
    made.manifest = msgspec.structs.replace(made.manifest, codec=codec, fingerprint=fingerprint)
    bent = bundles.open_made(made.write(tmp_path / "bent.ncb"))
    with Client(bent, server.address) as client, pytest.raises(RefusedError, match="must come from one compilation"):
        client.infer(bundles.random_frames(1)[0])


def test_a_client_killed_mid_stream_leaves_the_server_whole(server, tiny_folder, session, tmp_path):
    script = tmp_path / "client.py"
    script.write_text(
        "import sys, itertools\n"
        "from pathlib import Path\n"
        "from narrowcast.head.client import Client\n"
        "from narrowcast.transport.bundle import Bundle, PublicKey\n"
        "import numpy as np\n"
        f"key = PublicKey.read(Path({str(tiny_folder / 'test.pub')!r}))\n"
        f"bundle = Bundle.open({str(tiny_folder / 'tiny.ncb')!r}, trusted=[key])\n"
        f"with Client(bundle, {str(server.address)!r}) as client:\n"
        "    for result in client.stream(itertools.repeat(np.zeros((8, 8, 3), np.uint8))):\n"
        "        print(result.frame_id, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    for _ in range(20):
        process.stdout.readline()
    process.kill()
    process.communicate()
    frames = bundles.random_frames(10)
    with Client(session, server.address) as client:
        check(list(client.stream(frames)), frames, 1)


def test_a_taken_port_is_one_line(server, tiny_folder):
    command = [sys.executable, "-m", "narrowcast", "serve", "--bundles", str(tiny_folder), "--listen", str(server.address),
               "--trust", str(tiny_folder / "test.pub")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"cannot listen on {server.address}: is the port taken?" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_serve_tells_where_it_listens(server):
    assert server.started == {"event": "listening", "address": str(server.address), "models": {"tiny": 1}}
