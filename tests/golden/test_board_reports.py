"""Recorded boards through the profiler and the report, with known answers: the profiler's own engine and evaluation, by a
clock that goes on only when a frame is done or somebody waits."""

from __future__ import annotations

import re

import msgspec
import pytest
from support.boards import GOLDEN, Golden, replay
from support.runs import make_run

from narrowcast.devices.conditions import ConditionReader
from narrowcast.devices.power import open_power
from narrowcast.devices.power.sampler import SamplerInfo
from narrowcast.devices.power.trace import Trace
from narrowcast.devices.probe import probe
from narrowcast.devices.profile.connections import Connection
from narrowcast.devices.profile.engine import Engine, Timing
from narrowcast.devices.profile.frames import FrameSet
from narrowcast.devices.profile.observer import Silent
from narrowcast.devices.profile.record import Sampled, Subject, run_record
from narrowcast.devices.profile.runners import BoardRunner, Sample, WayInfo
from narrowcast.devices.profile.schema import Run, read_run, write_run
from narrowcast.devices.report.compare import compare
from narrowcast.devices.report.data import data
from narrowcast.devices.report.entries import read_entries
from narrowcast.devices.report.page import page
from narrowcast.devices.targets import load_target
from narrowcast.text import human_joules
from narrowcast.transport.selfcheck import reference_frames

# The recordings are idle for 2 s, loaded for 6, idle for 2. A frame of 100 ms leads each of 8 turns, and 6 of each count.
FRAME_S = 0.1
TIMING = Timing(loaded_s=4.8, windowed_s=0.0, rounds=8, lead_s=0.0, idle_s=1.8, warm_up_s=0.4, settle_s=0.3)


class Clock:
    """The recording's time."""

    def __init__(self) -> None:
        self.ns = 0

    def now_ns(self) -> int:
        return self.ns

    def sleep(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)


class Works(BoardRunner):
    """A frame takes what it takes, by that clock."""

    def __init__(self, clock: Clock, frame_s: float) -> None:
        self.info = WayInfo("local", "local", "the whole network on the board", precision="fp32", backend="scripted")
        self._clock, self._frame_s = clock, frame_s

    def run(self, image) -> Sample:
        self._clock.sleep(self._frame_s)
        milliseconds = 1000 * self._frame_s
        return Sample(
            milliseconds, {"resize": 0.1 * milliseconds, "whole": 0.8 * milliseconds}, {"output": image[0, 0]}
        )


def sampled(golden: Golden, name: str) -> Sampled:
    """Every frame of the recording, as the sampler would read it, and the board's state once a second."""
    machine = replay(name)
    source = open_power(load_target(golden.target), machine, meter=golden.meter)
    reader = source.reader
    conditions, trace = ConditionReader(machine), Trace()
    for number, _ in enumerate(machine.frames()):
        trace.readings.append(reader.read())
        if number % 10 == 0:
            trace.conditions.append((trace.readings[-1].monotonic_ns, conditions.read()))
    info = SamplerInfo(
        reader.name, reader.rails, reader.missing, source.total, source.why_no_total, source.scope, 10.0, source.stall_s
    )
    return Sampled(info, trace, None)


def profiled(name: str, bundle, frame_s: float = FRAME_S, timing: Timing = TIMING) -> Run:
    golden, clock = GOLDEN[name], Clock()
    frames = FrameSet("drawn frames", images=list(reference_frames((8, 8), 4)))
    measured = Engine([Works(clock, frame_s)], frames, timing, clock, Silent()).run()
    assert measured.complete
    board = probe(replay(name), meter=golden.meter)
    plan = msgspec.structs.replace(make_run().plan, rounds=timing.rounds)
    subject = Subject(bundle, board, make_run().server, plan, ["narrowcast", "profile"], "test", [])
    links: list[Connection] = []
    return run_record(subject, measured, links, {}, sampled(golden, name), 0.0)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_recorded_boards_joules_reach_the_report(name, tiny, tmp_path):
    golden = GOLDEN[name]
    run = profiled(name, tiny)
    write_run(run, tmp_path / f"{name}.json")
    assert read_run(tmp_path / f"{name}.json") == run
    (way,) = run.ways
    assert (way.frames, way.latency.p50_ms, way.energy.samples) == (48, pytest.approx(100.0), pytest.approx(52, abs=8))
    gross, net = golden.loaded_mw / 1000 * FRAME_S, (golden.loaded_mw - golden.idle_mw) / 1000 * FRAME_S
    energy = way.energy
    assert energy.gross_joules_per_frame.value == pytest.approx(gross, rel=1e-4)
    assert energy.net_joules_per_frame.value == pytest.approx(net, rel=1e-4)
    assert energy.gross_joules_per_frame.low == pytest.approx(gross, rel=1e-4)
    assert energy.gross_joules_per_frame.high == pytest.approx(gross, rel=1e-4)
    assert energy.net_joules_per_frame.low is None  # 1.8 s of idling are too short to know its spread
    entries = read_entries([tmp_path / f"{name}.json"])
    told = data(entries)["runs"][0]
    assert told["board"]["target"] == golden.target
    figures = told["ways"][0]["figures"]
    assert figures["gross_joules_per_frame"]["value"] == pytest.approx(gross, rel=1e-4)
    check_page(page(entries), run, golden, gross, net)


def check_page(html: str, run: Run, golden: Golden, gross: float, net: float) -> None:
    """What an engineer looks for is on it, in words."""
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))
    assert run.power.total
    assert set(run.power.total) <= set(golden.rails)
    for expected in (
        human_joules(gross), human_joules(net), run.power.scope, ", ".join(run.power.total), golden.reader,
        run.board.model or f"{run.board.cpus} x", load_target(golden.target).title, f"{golden.loaded_mw / 1000:.3g} W",
    ):  # fmt: skip
        assert expected.replace("'", "&#x27;").replace(">", "&gt;") in text, expected
    assert "Energy was not measurable" not in text
    assert "only; 30 s or more are trustworthy" in text
    assert html.count('<svg class="wide"') >= 4


def test_the_boards_state_reaches_the_report(tiny, tmp_path):
    write_run(profiled("rpi5", tiny), tmp_path / "rpi5.json")
    html = page(read_entries([tmp_path / "rpi5.json"]))
    for expected in ("cpu-thermal", "cpu-0 2400 MHz", "under-voltage, throttled", "ondemand"):
        assert expected in html


def test_too_few_samples_reach_the_report_as_no_figure_and_the_reason(tiny, tmp_path):
    short = msgspec.structs.replace(TIMING, loaded_s=1.6)
    run = profiled("jetson-orin-nano", tiny, timing=short)
    assert run.ways[0].energy.gross_joules_per_frame is None
    write_run(run, tmp_path / "short.json")
    html = page(read_entries([tmp_path / "short.json"]))
    assert "Energy was not measurable here" in html
    assert "30 are wanted: measure for longer" in html


def test_a_slower_board_is_a_regression(tiny, tmp_path):
    for name, frame_s in (("good", 0.1), ("slow", 0.12)):
        timing = msgspec.structs.replace(TIMING, loaded_s=4.0)
        write_run(profiled("rpi4", tiny, frame_s, timing), tmp_path / f"{name}.json")
    good, slow = read_entries([tmp_path / "good.json", tmp_path / "slow.json"])
    assert {one.quantity.key for one in compare(good, slow).regressions} == {
        "latency_p50_ms",
        "gross_joules_per_frame",
    }  # fmt: skip
    assert compare(slow, good).regressions == []
