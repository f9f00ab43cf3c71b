"""Bundles are exchanged while real clients stream to a real server."""

from __future__ import annotations

import json
import os
import re
import threading

import numpy as np
import pytest
from support import bundles
from support.server import serving
from support.waiting import until

from narrowcast.cli import main
from narrowcast.head.client import Client
from narrowcast.head.session import HeadSession
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.tail_pb2_grpc import TailServiceStub

RELOADS = 50


def publish(folder, release: int, file: str = "tiny.ncb") -> None:
    bundles.make("tiny", release).write(folder / f"{file}.partial")
    (folder / f"{file}.partial").rename(folder / file)


def releases(address) -> list[int]:
    import grpc

    with grpc.insecure_channel(str(address)) as channel:
        return [model.release for model in TailServiceStub(channel).ListModels(pb.ListModelsRequest()).models]


class Load:
    """Clients that stream until they are told to end, and check every answer."""

    def __init__(self, bundle, address, clients: int) -> None:
        self.answered = [0] * clients
        self.failures: list[BaseException] = []
        self.streams_opened = 0
        self._bundle, self._address = bundle, address
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._one, args=(k,)) for k in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(60)

    def _one(self, number: int) -> None:
        frames = bundles.random_frames(50, seed=number)
        expected = [bundles.expected_output(frame, 1) for frame in frames]

        def endless():
            while not self._end.is_set():
                yield from frames

        try:
            with Client(HeadSession(self._bundle), self._address, window=2) as client:
                for result in client.stream(endless()):
                    assert result.error is None
                    assert result.frame_id == self.answered[number]
                    wanted = expected[self.answered[number] % len(frames)]
                    assert np.allclose(result.outputs["output"], wanted, atol=1e-4)
                    self.answered[number] += 1
                self.streams_opened += client.counters.streams_opened
        except BaseException as error:
            self.failures.append(error)


def test_fifty_reloads_under_load_lose_no_frame_and_break_no_stream(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a test's bundles need not outlive a crash
    folder = tmp_path / "models"
    folder.mkdir()
    publish(folder, 1)
    bundle = bundles.open_made(folder / "tiny.ncb")
    with serving(folder, tiny_folder / "test.pub", "--threads", "1") as server:
        with Load(bundle, server.address, clients=2) as load:
            until(lambda: all(load.answered), "frames flow")
            for release in range(2, RELOADS + 2):
                publish(folder, release)
                until(lambda wanted=release: releases(server.address) == [wanted], f"release {release} is served")
            reached = list(load.answered)
            until(lambda: all(now > then for now, then in zip(load.answered, reached, strict=True)), "they still flow")
        assert load.failures == []
        assert load.streams_opened == 2  # nobody had to connect again
        code, errors = server.end()
    assert code == 0
    assert len(re.findall(r"model_serving .* replaces=\d+", errors)) == RELOADS
    assert "ERROR" not in errors
    assert "Traceback" not in errors


def test_a_model_is_published_shown_refused_and_taken_away(tiny_folder, tmp_path, capsys):
    folder = tmp_path / "models"
    folder.mkdir()
    bundles.with_whole(bundles.make("seen", 4)).write(folder / "seen.ncb")
    with serving(folder, tiny_folder / "test.pub", "--threads", "1", "--rescan", "0") as server:
        assert server.started["models"] == {"seen": 4}

        def shown() -> dict:
            assert main(["models", "--at", str(server.address), "--json"]) == 0
            return {model["name"]: model for model in json.loads(capsys.readouterr().out)["models"]}

        assert shown() == {
            "seen": {
                "name": "seen", "release": 4, "codec": bundles.make().manifest.fingerprint, "symbols": [3, 8, 8],
                "levels": 2, "tails": ["main"], "images": True,
            }
        }  # fmt: skip
        publish(folder, 1)
        until(lambda: shown().keys() == {"seen", "tiny"}, "published")
        assert main(["models", "--at", str(server.address)]) == 0
        table = capsys.readouterr().out
        assert "tiny" in table
        assert "release" in table
        (folder / "broken.ncb").write_bytes(b"broken")
        (folder / "seen.ncb").unlink()
        until(lambda: shown().keys() == {"tiny"}, "taken away")
        code, errors = server.end()
    assert code == 0
    assert "model_refused file=broken.ncb" in errors
    assert "model_unloaded model=seen release=4" in errors
    assert "broken.ncb is no bundle" in errors


def test_models_of_nobody(capsys):
    assert main(["models", "--at", "127.0.0.1:1"]) == 4
    assert "127.0.0.1:1" in capsys.readouterr().err


def test_a_sighup_looks_at_once(tiny_folder, tmp_path):
    import signal

    folder = tmp_path / "models"
    folder.mkdir()
    publish(folder, 1)
    with serving(folder, tiny_folder / "test.pub", "--threads", "1", "--rescan", "0") as server:
        server.process.send_signal(signal.SIGHUP)
        publish(folder, 2)
        until(lambda: releases(server.address) == [2], "release 2")
        assert server.end()[0] == 0


def test_the_torch_backend_serves_the_same(tiny_folder):
    pytest.importorskip("torch", reason="torch is not installed (pip install 'narrowcast[tail-torch]')")
    session = HeadSession(bundles.open_made(tiny_folder / "tiny.ncb"))
    frames = bundles.random_frames(20)
    with serving(tiny_folder, tiny_folder / "test.pub", "--backend", "torch", "--threads", "1") as server:
        with Client(session, server.address) as client:
            for frame, result in zip(frames, client.stream(frames), strict=True):
                assert np.allclose(result.outputs["output"], bundles.expected_output(frame, 1), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--providers", "cuda,cpu"], 1, "no provider 'cuda' here; it has"),
        (["--providers", "cpu,cpu"], 2, "each once"),
        (["--torch-compile"], 2, "--torch-compile needs --backend torch"),
        (["--backend", "torch", "--providers", "cuda"], 2, "--providers are ONNX Runtime's"),
        (["--backend", "torch", "--device", "99"], 1, "GPU 99"),
        (["--device", "1"], 2, "--providers has none"),
        (["--engine-cache", "engines"], 2, "it needs --providers tensorrt"),
        (["--keep", "0"], 2, "less than 1"),
    ],
)
def test_options_that_cannot_be(tiny_folder, capsys, options, code, message):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers() and "cuda,cpu" in options:
        pytest.skip("this onnxruntime has the CUDA provider")
    command = [
        "serve",
        "--bundles",
        str(tiny_folder),
        "--trust",
        str(tiny_folder / "test.pub"),
        "--listen",
        "127.0.0.1:0",
    ]
    try:
        found = main([*command, *options])
    except SystemExit as end:
        found = end.code
    assert found == code
    assert message in capsys.readouterr().err
