"""The profiler on a real server, with the real client and ONNX Runtime: short windows, real answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib import resources

import msgspec
import numpy as np
import pytest
from PIL import Image as Pillow
from support import bundles
from support.boards import RECORDED, record_orin
from support.server import serving
from support.waiting import until

import narrowcast as nc
from narrowcast.cli import main
from narrowcast.devices.errors import ProfileError
from narrowcast.devices.profile import entry
from narrowcast.devices.profile.observer import Silent
from narrowcast.devices.profile.schema import read_run
from narrowcast.head.errors import PeerUnreachableError

SHORT = [
    "--loaded-s",
    "0.3",
    "--rounds",
    "6",
    "--lead-s",
    "0.01",
    "--warm-up-s",
    "0.1",
    "--windowed-s",
    "0.2",
    "--quiet",
]
NOWHERE = "127.0.0.1:9"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A server's folder: one bundle with the uncut network, one without; and photographs."""
    folder = tmp_path_factory.mktemp("models")
    bundles.with_whole(bundles.with_exit(bundles.make())).write(folder / "tiny.ncb")
    bundles.make("bare").write(folder / "bare.ncb")
    bundles.trusted_key().write(folder / "test.pub")
    (folder / "photos").mkdir()
    for k, frame in enumerate(bundles.random_frames(5, size=(20, 24))):
        Pillow.fromarray(frame).save(folder / "photos" / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder, folder / "test.pub") as running:
        yield running


def command(folder, *words, bundle="tiny"):
    return ["profile", str(folder / f"{bundle}.ncb"), "--trust", str(folder / "test.pub"), *words]


@pytest.fixture(scope="module")
def run(server, folder, tmp_path_factory):
    """One run over the real link and a relay, all ways."""
    file = tmp_path_factory.mktemp("run") / "RUN.json"
    words = ["--to", str(server.address), "--data", str(folder / "photos"), "--link", "20mbit,2ms"]
    assert main(command(folder, *words, "--qualities", "75", "--codecs", "jpeg", *SHORT, "-o", str(file))) == 0
    return read_run(file)


def test_every_way_really_ran_over_every_link(run):
    remote = ["jpeg-75", "split-0", "split-1"]
    emulated = run.links[1].name
    assert [way.id for way in run.ways] == [
        *("local", "exit"), *(f"{way}@real" for way in remote), *(f"{way}@{emulated}" for way in remote)
    ]  # fmt: skip
    assert run.complete
    for way in run.ways:
        assert way.failed == {}
        assert way.frames == sum(b.frames for b in run.blocks if b.way == way.id and b.mode == "single")
        assert way.frames >= 6
        assert way.median_ms.low <= way.median_ms.value <= way.median_ms.high
        assert way.loaded_s >= 0.3
        assert way.energy.gross_joules_per_frame is None or run.power.sensor
    assert sum(run.way("split-1@real").latency.histogram.counts) == run.way("split-1@real").frames
    slow, quick = run.way(f"split-1@{emulated}").median_ms.value, run.way("split-1@real").median_ms.value
    assert slow > 4.0  # 2 ms each way, whatever else
    assert run.links[1].round_trip_ms > 4.0 > 0 < quick


def test_ways_take_turns(run):
    order = [block.way for block in run.blocks if block.mode == "single"]
    rounds = [order[k : k + len(run.ways)] for k in range(0, len(order), len(run.ways))]
    assert all(sorted(one) == sorted(way.id for way in run.ways) for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1
    ends = [block.end_ns for block in run.blocks]
    assert all(end <= block.lead_ns for end, block in zip(ends, run.blocks[1:], strict=False))


def test_the_stages_means_add_up_to_the_mean_latency(run):
    for way in run.ways:
        parts = [stage for stage in way.stages if stage.within is None]
        assert sum(stage.times.mean_ms for stage in parts) == pytest.approx(way.latency.mean_ms, rel=1e-6)
        assert all(stage.times.frames == way.frames for stage in parts)
    names = [stage.name for stage in run.way("split-1@real").stages]
    assert names == [
        "resize",
        "head",
        "encode",
        "send",
        "wire",
        "network",
        "return",
        "queue",
        "decode",
        "tail",
        "other",
    ]
    assert [stage.name for stage in run.way("local").stages] == ["resize", "whole", "other"]


def test_the_wire_is_divided_by_the_clocks_offset_within_its_error(run):
    """Both programs run on this machine: the true offset is that of the two processes' zeros, the same on every link."""
    real, emulated = run.links
    assert abs(real.clock_offset_ms - emulated.clock_offset_ms) <= real.clock_error_ms + emulated.clock_error_ms
    assert real.clock_error_ms < 5
    wire, there, back = (
        next(stage for stage in run.way(f"split-1@{emulated.name}").stages if stage.name == name)
        for name in ("wire", "network", "return")
    )
    assert there.within == back.within == "wire"
    if there.times.mean_ms is not None and back.times.mean_ms is not None:
        assert there.times.mean_ms + back.times.mean_ms == pytest.approx(wire.times.mean_ms, rel=0.05)
        assert there.times.p50_ms > 2 - there.error_ms  # 2 ms of delay each way


def test_bytes_and_answers(run):
    for way in run.ways:
        if way.link is None:
            assert way.bytes is None
            continue
        assert 24 < way.bytes.packet_up < way.bytes.socket_up
        assert 0 < way.bytes.packet_down < way.bytes.socket_down
        sizes = [size for size in way.bytes.packet_up_by_frame if size is not None]
        assert 1 <= len(sizes) <= 5
        assert min(sizes) <= way.bytes.packet_up <= max(sizes)
        assert way.model.fitted_on == sorted(link.name for link in run.links)
    assert run.way("local").agreement.share == 1.0
    assert run.way("split-1@real").agreement.share == 1.0  # what the uncut network gives, by how the bundle was made
    assert run.way("split-1@real").agreement.frames == 5
    assert run.verdict.pays is False  # such a small network is quicker on the board
    assert run.verdict.text[0].startswith("Splitting does not pay over the")
    assert {one.goal for one in run.verdict.best} == {"latency", "energy", "bytes", "accuracy"}


def test_who_and_what_is_in_the_record(run, server, folder):
    assert (run.model.name, run.model.release, run.server.release, run.server.images) == ("tiny", 1, 1, True)
    assert run.board.cpus >= 1
    assert run.plan.frames == 5
    assert run.command[:3] == ["narrowcast", "profile", str(folder / "tiny.ncb")]
    assert run.command[run.command.index("--trust") + 1] == str(folder / "test.pub")
    assert [window.kind for window in run.windows] == ["idle-before", "warm-up", "loaded", "idle-after"]


def test_the_command_in_the_record_gives_such_a_record_again(run, tmp_path, capsys):
    words = [*run.command[1:], "--ways", "local", "--json", "--quiet", "-o", str(tmp_path / "again.json")]
    assert main(words) == 0
    again = json.loads(capsys.readouterr().out)["plan"]
    first = msgspec.to_builtins(run.plan)
    for key in ("loaded_s", "windowed_s", "warm_up_s", "rounds", "lead_s", "seed", "frames", "frames_from"):
        assert again[key] == first[key]


class Watcher(Silent):
    """Counts, and stops the run."""

    def __init__(self, stop_at=None):
        self.events, self.frames, self.stop_at = [], 0, stop_at

    def phase(self, name, seconds):
        self.events.append(name)

    def frame_done(self, way, latency_ms, failed):
        self.frames += 1
        if self.frames == self.stop_at:
            raise KeyboardInterrupt


def test_from_python_with_a_watcher_and_interrupted(server, folder, tmp_path):
    bundle = bundles.open_made(folder / "tiny.ncb", "device")
    settings = nc.ProfileSettings(
        ways=["local", "split"], levels=[1], loaded_s=0.2, rounds=2, lead_s=0.0, warm_up_s=0.0
    )
    watcher = Watcher(stop_at=50)
    with pytest.raises(KeyboardInterrupt):
        nc.profile(bundle, str(server.address), settings, output=tmp_path / "RUN.json", observer=watcher)
    run = nc.read_run(tmp_path / "RUN.json")
    assert (run.complete, run.why_incomplete) == (False, "interrupted")
    assert "the run broke off (interrupted)" in run.warnings[0]
    assert sum(way.frames for way in run.ways) <= 50
    assert watcher.events[:3] == ["preparing", "idle-before", "warm-up"]


def test_a_targets_backends_are_the_ones_that_are_tried(folder, tmp_path, monkeypatch):
    """Those of the file that was named, not those of the machine that runs this."""
    text = resources.files("narrowcast.devices.targets").joinpath("jetson-orin-nano.toml").read_text()
    (tmp_path / "mine.toml").write_text(text.replace('name = "jetson-orin-nano"', 'name = "mine"'))
    tried: list[str] = []

    def make(bundle, kinds, links, settings, backends, note):
        tried.extend(backends)
        raise ProfileError("that is enough")

    monkeypatch.setattr(entry, "make_runners", make)
    settings = nc.ProfileSettings(ways=["local"], target=str(tmp_path / "mine.toml"))
    with pytest.raises(ProfileError, match="that is enough"):
        nc.profile(bundles.open_made(folder / "tiny.ncb", "device"), None, settings)
    assert tried == ["tensorrt", "onnxruntime"]


def test_ctrl_c_leaves_a_record_and_ends_with_130(server, folder, tmp_path):
    file = tmp_path / "RUN.json"
    words = command(folder, "--to", str(server.address), "--ways", "split", "--levels", "0", "-o", str(file))
    process = subprocess.Popen(
        [sys.executable, "-m", "narrowcast", *words, "--warm-up-s", "0", "--lead-s", "0", "--rounds", "300"],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "ways in" in line or "turns" in line:
            break
    started = time.monotonic()
    until(lambda: time.monotonic() - started > 1.5, "some turns")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) == 130
    assert "Traceback" not in process.stderr.read()
    assert not read_run(file).complete


def test_a_recorded_boards_power_goes_with_the_work(server, folder, tmp_path):
    """A recorded folder stands still: its power is the same all the time, which is known."""
    root = record_orin(tmp_path / "orin")
    file = tmp_path / "RUN.json"
    words = ["--to", str(server.address), "--ways", "local,split", "--levels", "1", "--root", str(root), "--hz", "50"]
    words += ["--loaded-s", "1", "--rounds", "8", "--idle-s", "0.5", "--settle-s", "0", "--warm-up-s", "0", "--quiet"]
    words += ["--architecture", "aarch64", "--lead-s", "0.02", "--windowed-s", "0", "-o", str(file)]
    assert main(command(folder, *words)) == 0
    run = read_run(file)
    assert (run.board.target, run.board.recorded, run.power.sensor) == ("jetson-orin-nano", True, "ina3221")
    watts = 5072 * 1312 / 1e6
    for way in run.ways:
        assert way.energy.mean_watts == pytest.approx(watts, rel=1e-3)
        gross = way.energy.gross_joules_per_frame
        if not any("left out" in warning for warning in way.energy.warnings):  # as where the machine stood still
            assert gross.value == pytest.approx(watts * way.loaded_s / way.frames, rel=1e-3)
        assert way.energy.net_joules_per_frame.value == pytest.approx(0.0, abs=0.01 * gross.value)
    assert "a recorded board's" in " ".join(run.warnings)
    assert run.power.watts.values["total"][0] == pytest.approx(watts, rel=1e-3)


def test_a_recording_replays_in_its_own_time(folder, tmp_path):
    """2 s idle, 6 s loaded, idle from then on; waiting costs none of our time, work what it takes.

    Idle is measured until 1.2 s and from 8.05 s, work from 2.15 to 6.15 s: there is room for a machine that is slow.
    """
    file, recording = tmp_path / "RUN.json", tmp_path / "recording.jsonl"
    still = "".join(f'{{"ns": {10**8 * tenth}, "set": {{}}}}\n' for tenth in range(101, 160))
    recording.write_text((RECORDED / "jetson-orin-nano.jsonl").read_text() + still)
    words = ["--ways", "local", "--root", str(recording), "--idle-s", "1.2", "--warm-up-s", "0.85", "--loaded-s", "4"]
    words += ["--rounds", "1", "--settle-s", "1.9", "--lead-s", "0.1", "-o", str(file), "--quiet"]
    started = time.monotonic()
    assert main(command(folder, *words)) == 0
    assert time.monotonic() - started < 60
    run = read_run(file)
    idle, loaded = 5072 * 640 / 1e6, 5072 * 1312 / 1e6
    assert run.windows[0].mean_watts == pytest.approx(idle, rel=1e-3)
    assert run.windows[-1].mean_watts == pytest.approx(idle, rel=1e-3)
    assert run.way("local").energy.mean_watts == pytest.approx(loaded, rel=1e-3)
    assert run.way("local").energy.net_joules_per_frame.value == pytest.approx(
        (loaded - idle) * run.way("local").loaded_s / run.way("local").frames, rel=1e-2
    )


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--to", NOWHERE], 4, "no answer from a tail server at 127.0.0.1:9"),
        (["--to", "SERVER", "--ways", "loco"], 2, "did you mean 'local'"),
        (["--to", "SERVER", "--levels", "7"], 1, "level 7; tiny has levels 0..1"),
        (["--to", "SERVER", "--qualities", "700"], 1, "quality 700"),
        (["--to", "SERVER", "--data", "/nowhere"], 1, "no such file or folder"),
        (["--to", "SERVER", "--link", "carrier-pigeon"], 1, "carrier-pigeon"),
        (["--to", "SERVER", "--loaded-s", "0"], 2, "--loaded-s is more than 0"),
        (["--to", "SERVER", "--no-real"], 1, "there is no link to run over"),
        (["--ways", "split"], 1, "there is no server to send to: --to HOST:PORT"),
        (["--link", "lte"], 2, "--to HOST:PORT says where it is"),
        (["--to", "SERVER", "--meter", "no-such-meter"], 1, "no-such-meter"),
        (["--to", "SERVER", "--target", "toaster"], 1, "toaster"),
        (["--to", "SERVER", "-o", "/"], 2, "-o / is a folder"),
    ],
)
def test_what_cannot_be_run_says_so_at_once(server, folder, capsys, words, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [str(server.address) if word == "SERVER" else word for word in words]
    try:
        found = main(command(folder, *words, "--quiet"))
    except SystemExit as error:  # of argparse
        found = error.code
    errors = capsys.readouterr().err
    assert message in errors
    assert found == code
    assert list(tmp_path.iterdir()) == []


def test_ways_that_bundle_or_server_lack(server, folder, tmp_path, capsys):
    words = ["--to", str(server.address), "-o", str(tmp_path / "RUN.json"), *SHORT[:-1]]
    assert main(command(folder, *words, bundle="bare")) == 0
    assert {way.kind for way in read_run(tmp_path / "RUN.json").ways} == {"split"}
    notes = capsys.readouterr().err
    assert "without the way 'local': bare.ncb has no uncut network" in notes
    assert "without the way 'image': the server's bundle of bare has no uncut network" in notes
    for way, why in (("image", "the server's bundle of bare"), ("exit", "bare.ncb has no local exit")):
        assert main(command(folder, *words, "--ways", way, bundle="bare")) == 1
        assert why in capsys.readouterr().err


def test_a_server_that_goes_leaves_a_record_and_exit_code_4(folder, tmp_path):
    bundle = bundles.open_made(folder / "tiny.ncb", "device")
    settings = nc.ProfileSettings(
        ways=["split"], levels=[1], loaded_s=60.0, rounds=1, lead_s=0.0, warm_up_s=0.0, deadline_ms=500.0
    )

    with serving(folder, folder / "test.pub") as doomed:

        class Killer(Watcher):
            def frame_done(self, way, latency_ms, failed):
                self.frames += not failed
                if self.frames == 20:
                    doomed.kill()

        with pytest.raises(PeerUnreachableError) as error:
            nc.profile(bundle, str(doomed.address), settings, output=tmp_path / "RUN.json", observer=Killer())
    assert error.value.exit_code == 4
    run = read_run(tmp_path / "RUN.json")
    assert not run.complete
    assert run.ways[0].frames >= 20
    assert np.isfinite(run.ways[0].latency.mean_ms)
