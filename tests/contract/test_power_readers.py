"""What every power reader must do: the replayed boards here, and this machine's own sensor where it has one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support.boards import record_orin

from narrowcast.devices.power import PowerReader, open_reader
from narrowcast.devices.probe import probe
from narrowcast.devices.targets import load_target

RECORDED = {"jetson-orin-nano": record_orin}


@pytest.fixture(params=[*RECORDED, "this machine"])
def reader(request, tmp_path) -> PowerReader:
    if request.param in RECORDED:
        found = open_reader(load_target(request.param), RECORDED[request.param](tmp_path))
    else:
        target = probe().target
        found = open_reader(load_target(target), Path("/")) if target else None
        if found is None:
            pytest.skip(f"this machine ({target}) has no power sensor that narrowcast reads")
    assert found is not None
    return found


def test_it_has_a_name_and_rails(reader):
    assert reader.name
    assert reader.rails
    assert len(set(reader.rails)) == len(reader.rails)


def test_readings_are_of_its_rails_and_of_now(reader):
    before = time.monotonic_ns()
    reading = reader.read()
    assert before <= reading.monotonic_ns <= time.monotonic_ns()
    assert set(reading.milliwatts) == set(reader.rails)


def test_power_is_plausible_for_a_board(reader):
    """A board takes more than nothing and less than a kettle; a wrong unit would be off by a thousand."""
    assert 100 < sum(reader.read().milliwatts.values()) < 500_000


def test_time_goes_on(reader):
    first, second = reader.read(), reader.read()
    assert second.monotonic_ns >= first.monotonic_ns
