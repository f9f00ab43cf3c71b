"""The sampler's process: what it costs, when it ends, and that nothing makes it wait or grow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from support.boards import record_orin
from support.waiting import until

from narrowcast.devices.errors import SensorError
from narrowcast.devices.machine import Folder
from narrowcast.devices.power import open_power
from narrowcast.devices.power.sampler import NICE, Sampler, SamplerInfo, _Lines, _Loop
from narrowcast.devices.targets import load_target


def gone(pid: int) -> bool:
    """Whether a process has ended (or waits to be reaped)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_it_samples_at_low_priority_by_the_same_clock_and_says_what_it_costs(tmp_path):
    root = record_orin(tmp_path)
    before = time.monotonic_ns()
    with Sampler("jetson-orin-nano", root, hz=50, max_samples=40) as sampler:
        here = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, sampler.pid) == min(19, here + NICE)
        until(lambda: sampler.trace().cost.samples >= 45, "45 samples")
        (root / "sys/class/hwmon/hwmon3/curr1_input").write_text("torn")
        until(lambda: bool(sampler.trace().troubles), "a failed sample")
        (root / "sys/class/hwmon/hwmon3/curr1_input").write_text("1312")
    trace = sampler.stop()
    assert len(trace.readings) == 40  # the newest: memory is bounded
    assert trace.cost.samples > 40
    times = [reading.monotonic_ns for reading in trace.readings]
    assert before < times[0] < times[-1] < time.monotonic_ns()
    assert times == sorted(times)
    assert 0 < trace.cost.cpu_percent < 100
    assert "no number" in trace.troubles[0].message
    assert not trace.troubles[0].reset
    assert trace.conditions
    assert gone(sampler.pid)


def test_it_ends_when_its_parent_is_killed(tmp_path):
    root = record_orin(tmp_path)
    parent = (
        "import sys, time; from narrowcast.devices.power.sampler import Sampler; "
        f"s = Sampler('jetson-orin-nano', {str(root)!r}); s.start(); print(s.pid, flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    try:
        child = int(process.stdout.readline())
        assert not gone(child)
    finally:
        process.kill()
        process.wait()
    until(lambda: gone(child), "the sampler's end")


def test_a_sensor_that_is_not_there_is_told_at_the_start(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SensorError, match="jetson-orin-nano has no power sensor here"):
        Sampler("jetson-orin-nano", tmp_path / "empty").start()


def test_what_a_meter_prints_does_not_come_between_the_samples(capfd, monkeypatch):
    folders = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]  # `support` is in the first
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, folders)))
    with Sampler("x86-64", meter="support.meters:Talkative:1500", hz=100) as sampler:
        until(lambda: len(sampler.trace().readings) >= 20, "20 samples")
    assert {reading.milliwatts["wall"] for reading in sampler.stop().readings} == {1500.0}
    assert "reading ...." in capfd.readouterr().err


def test_the_end_of_a_sampler_that_fails_is_in_its_trace():
    sampler = Sampler("x86-64")
    hello = SamplerInfo("wall", ["wall"], {}, ["wall"], None, "", 5.0, 1.0)
    sampler._take({"hello": asdict(hello)})
    sampler._take({"error": "out of memory"})
    assert [trouble.message for trouble in sampler.trace().troubles] == ["sampling ended: out of memory"]


def test_lines_that_nobody_takes_are_dropped_and_counted_and_nothing_waits():
    reading, writing = os.pipe()
    lines = _Lines(writing)
    for k in range(10_000):
        lines.send({"s": [k, {"VDD_IN": 1.0}, {}], "pad": "x" * 100})
    assert lines.dropped > 1000
    assert len(lines._pending) <= 256 << 10
    os.set_blocking(reading, False)
    first = os.read(reading, 1 << 20).split(b"\n")[0]
    assert json.loads(first)["s"][0] == 0  # what is kept is whole, from the beginning
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        lines.send({})
    os.close(writing)


def test_moments_that_passed_are_counted_and_not_made_up_for(tmp_path):
    """A fake clock that loses half a second in one reading: four moments of 10 Hz pass, and the grid stays."""

    class SlowOnce(Folder):
        ns = 0
        running = True

        def now_ns(self) -> int:
            return self.ns

        def read(self, key: str) -> str:
            if key.endswith("curr1_input") and self.ns == 300_000_000:
                self.ns += 550_000_000
            return super().read(key)

    machine = SlowOnce(record_orin(tmp_path))
    source = open_power(load_target("jetson-orin-nano"), machine)
    sent: list[dict] = []

    class Kept:
        dropped = 0

        def send(self, data: dict) -> None:
            sent.append(data)

    class Loop(_Loop):
        def _wait(self, due_ns: int) -> bool:
            machine.ns = max(machine.ns, due_ns)
            return machine.ns >= 1_500_000_000

    Loop(machine, source, 10.0, Kept()).run()
    usage = [line["u"] for line in sent if "u" in line][-1]
    assert usage["late"] == 4  # 0.4 to 0.7 s; the sample for 0.8 s comes at 0.85 s
    assert usage["samples"] == sum("s" in line for line in sent) == 11
