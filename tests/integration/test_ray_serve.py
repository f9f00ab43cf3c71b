"""Ray Serve with HAProxy in front: replicas come with the frames, streams move, and the bytes are the same."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from support import bundles
from support.server import serving

import narrowcast
from narrowcast.head.session import HeadSession
from narrowcast.transport.packet import VERSION, CodecId, Packet, StreamContext
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.channels import CLIENT_OPTIONS
from narrowcast.transport.rpc.tail_pb2_grpc import TailServiceStub

APP = Path(__file__).resolve().parents[1] / "support" / "ray_app.py"
FRAMES = 24

pytestmark = pytest.mark.alone


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class RayServe:
    """The application in a process of its own, with a cluster of its own."""

    def __init__(self, folder, work, **args):
        self.folder = tempfile.mkdtemp(prefix="nc-")  # sockets have short names
        config = Path(work) / "ray.json"
        ports = {"http": free_port(), "grpc": free_port()}
        args = {"bundles": str(folder), "trust": [str(folder / "test.pub")], "insecure": True, "threads": 1, **args}
        config.write_text(json.dumps({**ports, "temp": self.folder, "args": args}))
        self.address = f"127.0.0.1:{ports['grpc']}"
        self.socket = Path(self.folder, "admin.sock")
        environment = {
            **os.environ,
            "RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_enable_worker_prestart": "0",
            # A machine with two busy cores takes longer than Ray expects.
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120",
            "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{self.folder}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(self.socket),
        }  # fmt: skip
        self.errors = Path(work, "ray.err")
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, APP, config], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env=environment, start_new_session=True,
            )  # fmt: skip
        assert self.ask(None).get("event") == "listening", self.errors.read_text()

    def ask(self, word):
        """One line to the process, one back."""
        if word:
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()  # ends with the process, which ends itself when it hangs
        return json.loads(line) if line else {}

    def sessions(self):
        """How many calls HAProxy has given to each replica."""
        (path,) = Path(self.folder).rglob("admin.sock")
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(str(path))
            one.sendall(b"show stat\n")
            text = b"".join(iter(lambda: one.recv(65536), b"")).decode()
        header, *rows = [line.lstrip("# ").split(",") for line in text.splitlines() if line]
        rows = [dict(zip(header, row, strict=False)) for row in rows]
        return {
            row["svname"]: int(row["stot"]) for row in rows
            if row["pxname"] == "grpc-tail" and row["svname"].startswith("SERVE_REPLICA")
        }  # fmt: skip

    def end(self):
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def ray_serve(tiny_folder, tmp_path):
    """One replica, a second one from ten frames a second on; streams move every few seconds."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed (pip install 'narrowcast[ray]')")
    server = RayServe(
        tiny_folder, tmp_path, min_replicas=1, max_replicas=2, frames_per_second=10.0, upscale_delay_s=0.0,
        look_back_s=11.0, stream_age_s=2.0, grace_s=5.0,
    )  # fmt: skip
    try:
        yield server
    finally:
        server.end()


async def answers_of(address, packets, tiny):
    """What a server sends back for packets on one stream and connection of its own: outputs, byte for byte."""
    fingerprint = bytes.fromhex(tiny.manifest.fingerprint)
    async with grpc.aio.insecure_channel(address, options=CLIENT_OPTIONS) as channel:
        call = TailServiceStub(channel).Stream()
        opening = pb.Open(
            model="tiny",
            codec_fingerprint=fingerprint,
            packet_version=VERSION,
            stream_id=bytes(16),
            window=len(packets),
        )
        await call.write(pb.StreamRequest(open=opening))
        for packet in packets:
            await call.write(pb.StreamRequest(packet=packet))
        await call.done_writing()
        responses = [response async for response in call]
    results = [response.result for response in responses if response.HasField("result")]
    assert [(result.frame_id, result.code) for result in results] == [(k, 0) for k in range(len(packets))]
    return [[output.SerializeToString(deterministic=True) for output in result.outputs] for result in results]


def packets_of(tiny):
    fingerprint, session = bytes.fromhex(tiny.manifest.fingerprint), HeadSession(tiny)
    agreed = StreamContext(bytes(16), fingerprint, 0)
    return [
        Packet(CodecId.RANS, k % 2, k, 0, session.encode(frame, k % 2).payload, bytes(16), fingerprint).to_stream_bytes(
            agreed
        )
        for k, frame in enumerate(bundles.random_frames(FRAMES, seed=5))
    ]


def test_two_replicas_answer_with_the_bytes_of_a_server_that_stands_alone(tiny_folder, tiny, ray_serve):
    packets = packets_of(tiny)
    with serving(tiny_folder, tiny_folder / "test.pub") as alone:
        wanted = asyncio.run(answers_of(str(alone.address), packets, tiny))
    frames = bundles.random_frames(16)
    deadline = time.monotonic() + 400
    with narrowcast.Client(tiny, ray_serve.address, window=4) as client:
        # More frames than one replica is to answer, until there is another; streams are asked to move meanwhile.
        count = 0
        while ray_serve.ask("status")["replicas"].get("RUNNING", 0) < 2 or count < 64:
            assert time.monotonic() < deadline, ray_serve.ask("status")
            for frame in frames:
                level = count % 2
                assert np.allclose(
                    client.infer(frame, level=level).outputs["output"], bundles.expected_output(frame, level), atol=1e-4
                )
                count += 1
    while len([count for count in ray_serve.sessions().values() if count > 1]) < 2:
        assert time.monotonic() < deadline, ray_serve.sessions()
        assert asyncio.run(answers_of(ray_serve.address, packets, tiny)) == wanted
