"""Drift, samples and results elsewhere, from the command line: client, server, webhook, broker, four real programs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from support import bundles
from support.receivers import brokering, receiving, subscribed
from support.server import serving
from support.waiting import until

from narrowcast.cli import main
from narrowcast.head.client import Client
from narrowcast.head.session import HeadSession
from narrowcast.transport.packet import Packet
from narrowcast.transport.pki.tokens import add_token
from narrowcast.transport.sinks.webhook import SIGNATURE, verify


@pytest.fixture
def options(tmp_path) -> list[str]:
    """For a server that watches everything; the secrets are in ``tmp_path``."""
    assert main(["audit", "key", str(tmp_path / "a.key")]) == 0
    (tmp_path / "secret").write_text("shared\n")
    return [
        "--drift-learn", "200", "--drift-state", str(tmp_path / "drift.bin"), "--audit", str(tmp_path / "samples"),
        "--audit-key", str(tmp_path / "a.key.pub"), "--audit-every", "50", "--webhook-secret", str(tmp_path / "secret"),
    ]  # fmt: skip


def test_a_camera_goes_dark(tiny, tiny_folder, tmp_path, options):
    token = add_token(tmp_path / "operators", "alice")
    bright = bundles.random_frames(260)
    dark = bundles.random_frames(60, seed=1) // 16
    with (
        brokering(tmp_path) as broker,
        subscribed(broker.port, "site/#") as published,
        receiving(503) as receiver,
        serving(
            tiny_folder, tiny_folder / "test.pub", *options,
            "--webhook", f"http://127.0.0.1:{receiver.port}/in", "--mqtt", f"127.0.0.1:{broker.port}/site",
            "--http", "127.0.0.1:0", "--http-tokens", str(tmp_path / "operators"),
        ) as server,
    ):  # fmt: skip
        with Client(HeadSession(tiny), server.address, level=1) as client:
            answers = list(client.stream([*bright, *dark]))
        assert all(answer.error is None for answer in answers)
        until(lambda: len({one["id"] for one in receiver.records}) == len(answers) + 1, "all are posted")
        until(lambda: len(published) >= len(answers) + 1, "all are published")
        http = f"http://{server.started['http']}"
        wanted, metrics = f'narrowcast_sink_sent_total{{sink="webhook"}} {len(answers) + 1}.0', ""

        def counted() -> bool:  # the receiver knows of the last one before the server does
            nonlocal metrics
            with urllib.request.urlopen(f"{http}/metrics") as page:
                metrics = page.read().decode()
            return wanted in metrics

        until(counted, "all are counted")
        watched = accept(http, token)
        code, log = server.end()
    assert code == 0
    assert "drift: 127.0.0.1/" in log
    assert 'narrowcast_rate_drift{model="tiny"} 1.0' in metrics
    assert 'narrowcast_rate_drift_alarms_total{model="tiny"} 1.0' in metrics
    assert (watched["watched"], watched["in_alarm"], watched["alarms"]) == (1, 1, 1)
    assert f"drift_accepted client=127.0.0.1 stream={watched['cameras_in_alarm'][0]['stream_id']} by=alice" in log
    assert (
        float(re.search(r'narrowcast_sink_retried_total{sink="webhook"} (\S+)', metrics)[1]) >= 1
    )  # it said 503 first
    assert 'narrowcast_sink_dropped_total{sink="mqtt"} 0.0' in metrics
    drifts = [one for one in receiver.records if one["type"] == "drift"]
    assert [one["event"] for one in drifts] == ["drift"]
    assert drifts[0]["frame_id"] >= len(bright)
    assert drifts[0]["stream_id"] in {one["stream_id"] for one in receiver.records if one["type"] == "result"}
    results = {one["frame_id"]: one for one in receiver.records if one["type"] == "result"}
    best = int(np.argmax(answers[7].outputs["output"]))
    assert results[7]["answers"]["main"]["classes"][0]["class"] == best
    headers, body = receiver.requests[-1]
    at = float(headers[SIGNATURE].split(",")[0].removeprefix("t="))
    assert verify(b"shared", body, headers[SIGNATURE], at)
    assert {topic for topic, _ in published} == {"site/tiny/result", "site/tiny/drift"}
    assert sorted(told["id"] for _, told in published) == sorted({one["id"] for one in receiver.records})
    check_samples(tiny, tmp_path, dark, drifts[0]["frame_id"], len(bright))
    with serving(tiny_folder, tiny_folder / "test.pub", *options[:4]) as again:
        assert "baselines of 1 cameras" in again.end()[1]


def accept(http: str, token: str) -> dict:
    """Accepts the one camera that is in alarm; what the status said of it before."""

    def drift() -> dict:
        with urllib.request.urlopen(f"{http}/api/status") as answer:
            return json.load(answer)["drift"]

    watched = drift()
    (camera,) = watched["cameras_in_alarm"]
    url = f"{http}/api/drift/accept?client={camera['client']}&stream_id={camera['stream_id']}"
    request = urllib.request.Request(url, method="POST", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200
    assert drift()["cameras_in_alarm"] == []
    return watched


def check_samples(tiny, tmp_path, dark, alarm: int, first_dark: int) -> None:
    """Around the alarm, as sent: the symbols of the frames that the camera saw."""
    out = tmp_path / "out"
    assert main(["audit", "export", str(tmp_path / "samples"), "--key", str(tmp_path / "a.key"), "-o", str(out)]) == 0
    index = {one["frame_id"]: one for one in map(json.loads, (out / "index.jsonl").read_text().splitlines())}
    around = {number for number, one in index.items() if one["reason"] == "alarm"}
    assert {alarm, alarm + 1} <= around
    assert len([one for one in index.values() if one["reason"] == "every"]) >= 1
    packet = Packet.from_bytes((out / index[alarm]["file"]).read_bytes())
    symbols, errors = tiny.codec().decode_batch([packet.payload], [packet.level])
    assert errors == [None]
    assert np.array_equal(symbols[0], HeadSession(tiny).symbols(dark[alarm - first_dark], 1))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--webhook", "http://example.org/"], "would not be encrypted"),
        (["--webhook-secret", "x"], "goes with --webhook"),
        (["--webhook", "https://example.org", "--webhook-secret", "no/such"], "cannot be read"),
        (["--mqtt", "broker"], "no MQTT target"),
        (["--mqtt-user", "me"], "goes with --mqtt"),
        (["--mqtt", "b:1/x", "--mqtt-password", "x"], "goes with --mqtt-user"),
        (["--sink-raw"], "goes with --webhook or --mqtt"),
        (["--drift-learn", "210"], "a multiple of 50"),
        (["--no-drift", "--drift-state", "x"], "without --no-drift"),
        (["--audit", "x"], "needs --audit-key"),
        (["--audit-every", "3"], "go with --audit DIR"),
        (["--audit", "x", "--audit-key", "no/such.pub"], "no key file"),
        (["--audit", "x", "--audit-key", "k", "--no-drift"], "keeps nothing"),
    ],
)
def test_options_that_do_not_go_together(tiny_folder, tmp_path, monkeypatch, capsys, options, told):
    monkeypatch.chdir(tmp_path)
    trust = ["--trust", str(tiny_folder / "test.pub"), "--listen", "127.0.0.1:0"]
    assert main(["serve", "--bundles", str(tiny_folder), *trust, *options]) != 0
    assert told in capsys.readouterr().err


def test_sinks_need_no_torch_and_no_server():
    """A board has them too."""
    code = (
        "import sys, narrowcast.transport.sinks, narrowcast.transport.sinks.webhook, narrowcast.transport.sinks.mqtt\n"
        "assert not {'torch', 'grpc', 'onnxruntime', 'paho', 'narrowcast.tail'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
