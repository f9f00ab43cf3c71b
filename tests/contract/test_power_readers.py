"""What every power reader must do: recorded boards, meters, and this machine's own sensor where it has one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from support.boards import GOLDEN, record_orin, replay

from narrowcast.devices.machine import Folder, Machine
from narrowcast.devices.power import PowerReader, open_power, open_reader
from narrowcast.devices.power.meters import open_meter
from narrowcast.devices.probe import probe
from narrowcast.devices.targets import load_target

METER = "support.meters:Constant:4200"


@pytest.fixture(params=[*GOLDEN, "a folder", "a plugin", "this machine"])
def board(request, tmp_path) -> tuple[Machine, PowerReader]:
    """A machine, and its power reader."""
    if request.param in GOLDEN:
        machine = replay(request.param)
        source = open_power(load_target(GOLDEN[request.param].target), machine, meter=GOLDEN[request.param].meter)
        found = source.reader if source else None
    elif request.param == "a folder":
        machine = Folder(record_orin(tmp_path))
        found = open_reader(load_target("jetson-orin-nano"), machine)
    elif request.param == "a plugin":
        machine = Folder(Path("/"))
        found = open_meter(METER, machine).reader
    else:
        machine = Folder(Path("/"))
        target = probe().target
        found = open_reader(load_target(target)) if target else None
        if found is None:
            pytest.skip(f"this machine ({target}) has no power sensor that narrowcast reads")
    assert found is not None
    return machine, found


def test_it_has_a_name_and_rails(board):
    _, reader = board
    assert reader.name
    assert reader.rails
    assert len(set(reader.rails)) == len(reader.rails)
    assert not set(reader.rails) & reader.missing.keys()


def test_readings_are_of_its_rails_and_of_now(board):
    machine, reader = board
    before = machine.now_ns()
    reading = reader.read()
    assert before <= reading.monotonic_ns <= machine.now_ns()
    assert {*reading.milliwatts, *reading.joules} == set(reader.rails)
    assert not reading.milliwatts.keys() & reading.joules.keys()
    assert all(math.isfinite(value) for value in [*reading.milliwatts.values(), *reading.joules.values()])


def test_power_is_plausible_for_a_board(board):
    """A board takes more than nothing and less than a kettle; a wrong unit would be off by a thousand."""
    machine, reader = board
    first = reader.read()
    machine.sleep(0.5)
    last = reader.read()
    seconds = (last.monotonic_ns - first.monotonic_ns) / 1e9
    counted = sum(last.joules.values()) - sum(first.joules.values())
    assert 100 < sum(last.milliwatts.values()) + 1000 * counted / seconds < 500_000


def test_time_goes_on_and_counters_never_go_back(board):
    machine, reader = board
    last = reader.read()
    for _ in range(30):
        if not isinstance(machine, Folder):
            machine.sleep(0.3)
        reading = reader.read()
        assert reading.monotonic_ns >= last.monotonic_ns
        assert all(reading.joules[rail] >= last.joules[rail] for rail in reading.joules)
        last = reading
