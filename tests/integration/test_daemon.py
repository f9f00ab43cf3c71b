"""The edge client as a service: real processes, a real server, a socket that plays systemd, a real mosquitto."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image
from support import bundles
from support.daemon import RAW, DaemonProcess, daemon, lines
from support.receivers import brokering, free_port, receiving, subscribed
from support.server import serving
from support.waiting import until

FRAMES = bundles.random_frames(8)


@pytest.fixture(scope="module")
def server(tiny_folder):
    with serving(tiny_folder, tiny_folder / "test.pub") as running:
        yield running


@pytest.fixture
def settings(tmp_path, tiny_folder, server):
    """A function that gives a file's text: tables, to come after the daemon's own keys."""
    bundles.make().write(tmp_path / "tiny.ncb")

    def make(tables: str, to: str | None = None, **keys) -> str:
        own = {
            "bundle": str(tmp_path / "tiny.ncb"),
            "to": to or str(server.address),
            "trust": [str(tiny_folder / "test.pub")],
            "check_bundle_seconds": 0.1,
            **keys,
        }
        return "\n".join([*(f"{key} = {json.dumps(value)}" for key, value in own.items()), tables])

    return make


def photos(folder, *numbers: int) -> None:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        Image.fromarray(FRAMES[number]).save(folder / f".{number}.png")
        (folder / f".{number}.png").rename(folder / f"{number}.png")


def top(record: dict) -> int:
    return record["answers"]["main"]["classes"][0]["class"]


def expected_top(number: int, level: int = 1) -> int:
    return int(np.argmax(bundles.expected_output(FRAMES[number], level)))


def test_its_life(settings, tmp_path, server):
    """Started, watched, rotated, told other settings, refused twice over, and ended; every frame told to everybody."""
    out, inbox, port = tmp_path / "out.jsonl", tmp_path / "inbox", free_port()
    photos(inbox, 0, 1)
    with brokering(tmp_path) as broker, subscribed(broker.port, "site/#") as published, receiving() as hook:
        tables = f"""
[[sources]]
name = "inbox"
uri = "{inbox}"
watch = true
[[outputs]]
kind = "lines"
path = "{out}"
[[outputs]]
kind = "socket"
path = "{tmp_path}/results.sock"
[[outputs]]
kind = "mqtt"
broker = "127.0.0.1:{broker.port}/site/cam"
durable = true
[[outputs]]
kind = "webhook"
url = "http://127.0.0.1:{hook.port}/"
[metrics]
listen = "127.0.0.1:{port}"
textfile = "{tmp_path}/narrowcast.prom"
"""
        with daemon(tmp_path / "edge", settings(tables), watchdog=10) as edge:
            until(lambda: len(lines(out)) == 2, "both photographs are answered")
            assert [top(line) for line in lines(out)] == [expected_top(0), expected_top(1)]
            assert lines(out)[0]["frame"] == str(inbox / "0.png")

            reader = socket.socket(socket.AF_UNIX)
            reader.connect(str(tmp_path / "results.sock"))
            until(lambda: edge.count("WATCHDOG=1") >= 2, "an idle source feeds the watchdog")

            out.rename(tmp_path / "out.jsonl.1")  # logrotate
            edge.reload()
            photos(inbox, 2)
            until(lambda: len(lines(out)) == 1, "the file was opened anew")
            assert len(lines(tmp_path / "out.jsonl.1")) == 2
            reader.settimeout(20)
            assert json.loads(reader.makefile("rb").readline()) == lines(out)[0]
            assert lines(out)[0]["id"] == f"{lines(out)[0]['stream_id']}-2", (
                "nothing was changed: the same stream goes on"
            )

            until(lambda: len(published) == len(hook.records) == 3, "all three by MQTT and webhook")
            assert [record for _, record in published] == hook.records
            assert published[0][0] == "site/cam/tiny/result"
            assert len({record["id"] for record in hook.records}) == 3

            text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
            assert 'narrowcast_edge_frames_total{fate="answered",reason="",source="inbox"} 3.0' in text
            assert 'narrowcast_edge_latency_seconds_count{source="inbox"} 3.0' in text
            assert "narrowcast_edge_link_up" in (tmp_path / "narrowcast.prom").read_text()
            until(lambda: edge.status()["ledger"]["answered"] == 3, "status.json")
            status = edge.status()
            assert status["model"] == {
                "name": "tiny", "release": 1, "fingerprint": bundles.make().manifest.fingerprint,
            }  # fmt: skip
            assert (status["pid"], status["server"], status["ready"]) == (edge.process.pid, str(server.address), True)
            assert 10e6 < status["rss_bytes"] < 1e9
            assert json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/status"))["pid"] == edge.process.pid

            other = f'state = "{edge.folder}/state"\n' + edge.config.read_text()
            second = DaemonProcess(tmp_path / "second", other, "--quiet")
            assert second.wait() == 1
            assert f"is in use by process {edge.process.pid}" in second.log.read_text()
            second.close()

            edge.config.write_text(edge.config.read_text().replace("watch =", "wtach ="))
            edge.reload()
            until(
                lambda: "did you mean 'watch'?" in (edge.status()["refused"] or ""), "the refusal stands in status.json"
            )
            photos(inbox, 3)
            until(lambda: len(lines(out)) == 2, "the settings before go on")
            assert edge.end() == 0
            assert edge.count("STOPPING=1") == 1
            assert not (tmp_path / "edge" / "run" / "status.json").exists()
            assert "4 frames, 4 answered, 0 dropped" in edge.log.read_text()


def write(file, made) -> None:
    """A new file in the place of the old one, by rename, as flash does."""
    made.write(file.with_suffix(".new"))
    file.with_suffix(".new").rename(file)


def test_models_are_exchanged_while_frames_flow_and_none_is_lost(settings, tmp_path):
    out, bundle = tmp_path / "out.jsonl", tmp_path / "tiny.ncb"
    tables = f'[[sources]]\nname = "pipe"\nuri = "-"\nraw = "{RAW}"\nexit_after_seconds = 60\n'
    tables += f'[[outputs]]\nkind = "lines"\npath = "{out}"\n'
    with daemon(tmp_path / "edge", settings(tables)) as edge:
        sent = 0

        def send(count: int) -> None:
            nonlocal sent
            for _ in range(count):
                edge.process.stdin.write(FRAMES[sent % 8].tobytes())
                sent += 1
            edge.process.stdin.flush()

        def send_until(condition, what: str) -> None:
            def more() -> bool:
                send(5)
                return condition()

            until(more, what)

        send(20)
        until(lambda: edge.status()["ledger"]["answered"] == 20, "the first model has answered")
        held = {what: edge.held(what) for what in ("fd", "task")}
        for release in (2, 3, 5):
            write(bundle, bundles.make(release=release))
            send_until(lambda release=release: edge.status()["model"]["release"] == release, f"release {release} runs")
        for made, key, why in (
            (bundles.make(release=4), bundles.KEY, "release 4 of tiny, and release 5 runs"),
            (bundles.make(release=6), None, "is not signed"),
        ):
            made.write(bundle.with_suffix(".new"), key)
            bundle.with_suffix(".new").rename(bundle)
            send_until(lambda why=why: why in (edge.status()["refused"] or ""), why)
        bundle.with_suffix(".new").write_bytes(bundle.read_bytes()[:1000])
        bundle.with_suffix(".new").rename(bundle)
        send_until(lambda: "truncated" in (edge.status()["refused"] or ""), "half a bundle is refused")
        assert edge.status()["model"]["release"] == 5
        write(bundle, bundles.make(release=7))
        edge.reload()
        send_until(lambda: edge.status()["model"]["release"] == 7, "release 7 runs")
        assert edge.status()["refused"] is None
        send(20)
        until(lambda: edge.held("fd") <= held["fd"], "models and links that have gone hold no file")
        # Pools of threads grow by one or two on a busy machine; four models and their links would leave more.
        until(lambda: edge.held("task") <= held["task"] + 2, "nor a thread")
        edge.process.stdin.close()
        edge.process.stdin = None
        assert edge.wait() == 0
        found = lines(out)
        assert len(found) == sent
        assert {line["release"] for line in found} == {1, 2, 3, 5, 7}
        assert [line["release"] for line in found] == sorted(line["release"] for line in found), "in order"
        assert [line["frame"] for line in found] == [f"stdin#{number}" for number in range(sent)]
        assert [top(line) for line in found] == [expected_top(number % 8) for number in range(sent)]
        assert len({line["id"] for line in found}) == sent
        assert f"{sent} frames, {sent} answered, 0 dropped" in edge.log.read_text()


def test_ended_without_a_server_it_spools_and_the_next_one_sends(settings, tmp_path, server):
    out, inbox = tmp_path / "out.jsonl", tmp_path / "inbox"
    photos(inbox, 0, 1, 2)
    tables = f"""
[[sources]]
name = "inbox"
uri = "{inbox}"
watch = true
on_outage = "spool"
exit_after_seconds = 30
[[outputs]]
kind = "lines"
path = "{out}"
"""
    with daemon(tmp_path / "edge", settings(tables, to="127.0.0.1:9", drain_seconds=0.2)) as edge:
        until(lambda: edge.status()["ledger"]["under_way"] == 3, "three frames wait for a server")
        assert edge.end() == 0
    assert [line["type"] for line in lines(out)] == ["spooled"] * 3
    assert "3 frames, 0 answered, 3 spooled, 0 dropped" in edge.log.read_text()
    spooled = [line["id"].removeprefix("spooled-") for line in lines(out)]
    out.unlink()
    for photo in inbox.iterdir():
        photo.unlink()
    with daemon(tmp_path / "edge", settings(tables)) as edge:
        until(lambda: len(lines(out)) == 3, "what was spooled is answered")
        assert [line["id"] for line in lines(out)] == spooled
        assert [top(line) for line in lines(out)] == [expected_top(number) for number in range(3)]
        assert {line["from"] for line in lines(out)} == {"spool"}
        until(lambda: edge.status()["sources"]["inbox"]["spool_waiting"] == 0, "the spool is empty")
        assert edge.end() == 0


def test_other_settings_while_it_runs(settings, tmp_path, server):
    """Sources come and go, another one gets another level and another server; what a source does not change goes on."""
    out, one, two = tmp_path / "out.jsonl", tmp_path / "one", tmp_path / "two"
    photos(one, 0)
    photos(two, 1)
    table = '[[sources]]\nname = "{0}"\nuri = "' + str(tmp_path) + '/{0}"\nwatch = true\nlevel = {1}\n'
    output = f'[[outputs]]\nkind = "lines"\npath = "{out}"\n'
    with daemon(tmp_path / "edge", settings(table.format("one", 1) + output, to="127.0.0.1:9")) as edge:
        until(lambda: [line["code"] for line in lines(out)] == [14], "no server: dropped")
        edge.config.write_text(settings(table.format("one", 0) + table.format("two", 1) + output))
        edge.reload()
        photos(one, 2)
        until(lambda: len(lines(out)) == 3, "both sources answer")
        found = {line["frame"]: line for line in lines(out) if line["code"] == 0}
        assert {path.rpartition("/")[2]: line["level"] for path, line in found.items()} == {"2.png": 0, "1.png": 1}
        edge.config.write_text(settings(table.format("two", 1) + output))
        edge.reload()
        until(lambda: edge.status()["sources"]["one"]["running"] is False, "it has gone")
        assert edge.status()["ledger"]["captured"] == 3, "its frames still count"
        photos(two, 3)
        until(lambda: len(lines(out)) == 4, "the other one goes on")
        assert edge.end() == 0


STUCK = """
import sys, threading, time
from narrowcast.head.session import HeadSession
encode, count = HeadSession.encode, iter(range(99))
def hang(*args, **options):
    if next(count) == 2:
        threading.Event().wait()
    return encode(*args, **options)
HeadSession.encode = hang
from narrowcast.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_time_to_end_in_is_that_of_the_settings_as_they_are(settings, tmp_path):
    tables = f'[[sources]]\nname = "in"\nuri = "unix:{tmp_path}/in.sock"\nraw = "{RAW}"\n'
    with daemon(tmp_path / "edge", settings(tables, drain_seconds=1)) as edge:
        edge.config.write_text(settings(tables, drain_seconds=77))
        edge.reload()
        assert edge.end() == 0
        assert "SIGTERM: what is under way is finished, within 77 s" in edge.log.read_text()


def test_a_stuck_pipeline_stops_feeding_the_watchdog(settings, tmp_path):
    (tmp_path / "stuck.py").write_text(STUCK)
    inbox = tmp_path / "inbox"
    photos(inbox, 0, 1, 2)
    tables = f'[[sources]]\nname = "inbox"\nuri = "{inbox}"\nwatch = true\nexit_after_seconds = 0.01\n'
    with daemon(tmp_path / "edge", settings(tables), program=[str(tmp_path / "stuck.py")], watchdog=2) as edge:
        until(lambda: "s in inbox" in edge.log.read_text(), "it notices")
        fed = edge.count("WATCHDOG=1")
        assert fed
        until(lambda: not edge.status()["ready"], "status.json says so")
        until(lambda: sum("STATUS=" in one for one in edge.told[-2:]) == 2, "it still lives")
        assert edge.count("WATCHDOG=1") == fed
        edge.signal(signal.SIGKILL)  # as systemd does


def check(path, *options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "narrowcast", "stream", "--config", str(path), "--check", *options]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(find_spec("av") is None, reason="PyAV is not installed (narrowcast[video])")
def test_check_says_all_that_is_wrong_and_changes_nothing(settings, tmp_path):
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    table = f'[[sources]]\nname = "cam"\nuri = "unix:{tmp_path}/in.sock"\nraw = "{RAW}"\n'
    table += '[[sources]]\nname = "far"\nuri = "rtsp://me:secret@camera/1"\n'
    good.write_text(settings(table, state=str(tmp_path / "state")))
    found = check(good, "--threads", "1")
    assert found.returncode == 0, found.stderr
    assert "model: tiny release 1, signed by" in found.stdout
    assert "source 'cam': unix:" in found.stdout
    assert "source 'far': rtsp://camera/1; while no server answers: drop" in found.stdout
    assert not (tmp_path / "in.sock").exists()
    assert not (tmp_path / "state").exists()
    bad.write_text(
        settings(
            '[[sources]]\nname = "cam"\nuri = "nowhere/"\non_outage = "local"\n[[outputs]]\nkind = "webhook"\n'
            'url = "http://far.example/"\n[[outputs]]\nkind = "lines"\npath = "nowhere/results"\n'
            '[[outputs]]\nkind = "socket"\npath = "good.toml/out.sock"\n'
            '[metrics]\nlisten = "0.0.0.0:9"\n[tls]\ndir = "none"\n[runtime]\ncpus = "4000"\n',
            state=f"{tmp_path}/good.toml/state",
        )
    )
    found = check(bad)
    assert found.returncode == 2
    for words in (
        "processor 4000 is not here", "no image or folder", "would not be encrypted", "can be reached from other machines",
        "/none", "good.toml/state cannot be written", "/nowhere/results cannot be written", "good.toml cannot be written",
    ):  # fmt: skip
        assert words in found.stderr
