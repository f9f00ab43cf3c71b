"""When a server counts as hung."""

from __future__ import annotations

import pytest

from narrowcast.head import liveness
from narrowcast.head.liveness import Moved, Pace, Silence


def paced(seconds: float, frame_bytes: int, times: int = 50) -> Pace:
    pace = Pace()
    for _ in range(times):
        pace.answered(seconds, frame_bytes)
    return pace


@pytest.mark.parametrize("seconds", [0.001, 0.1, 0.8])  # 100 kB at 1 Mbit/s take 0.8 s
def test_on_links_of_1_mbit_a_server_is_found_in_under_5_seconds(seconds):
    assert paced(seconds, 100_000).bound_seconds(100_000) + 2 * liveness.TICK_SECONDS < 5


def test_on_thin_links_frames_have_the_time_that_they_take():
    thin = paced(6.25, 100_000)  # 128 kbit/s
    assert thin.bound_seconds(100_000) > 1.5 * 6.25
    assert thin.bound_seconds(200_000) > 3 * 6.25
    assert thin.bound_seconds(1_000) == thin.bound_seconds(100_000)


def test_before_anything_is_measured_a_thin_link_is_assumed():
    assert Pace().bound_seconds(300) == liveness.HUNG_SECONDS
    assert Pace().bound_seconds(100_000) == pytest.approx(9.375)
    assert Pace().bound_seconds(100_000, patience=2) == pytest.approx(18.75)


def test_unsteady_links_have_more_time_than_steady_ones():
    unsteady = Pace()
    for k in range(50):
        unsteady.answered(3.0 if k % 2 else 1.0, 1000)
    assert unsteady.expected_seconds(1000) > 1.5 * paced(2.0, 1000).expected_seconds(1000)


def test_what_is_promised_covers_what_is_on_its_way():
    assert Pace().promise_seconds(300) == liveness.PROMISE_SECONDS
    assert Pace().promise_seconds(100_000) == pytest.approx(9.375)
    assert liveness.PROMISE_SECONDS > liveness.HUNG_SECONDS


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    now = [1000.0]
    monkeypatch.setattr(liveness.time, "monotonic", lambda: now[0])
    return now


def ticks(silence: Silence, clock: list[float], moved: list[Moved | None]) -> float:
    for one in moved:
        clock[0] += liveness.TICK_SECONDS
        silence.tick(one)
    return silence.seconds / liveness.TICK_SECONDS


def test_silence_grows_until_it_is_broken(clock):
    silence = Silence()
    assert ticks(silence, clock, [None] * 4) == pytest.approx(4)
    silence.broken()
    assert ticks(silence, clock, [None]) == pytest.approx(1)


def test_time_in_which_this_process_stood_still_does_not_count(clock):
    silence = Silence()
    clock[0] += 3600
    silence.tick(None)
    assert silence.seconds == 2 * liveness.TICK_SECONDS


def test_bytes_that_arrive_or_are_taken_break_it(clock):
    silence = Silence()
    still = Moved(5000, 100)
    assert ticks(silence, clock, [still] * 3) == pytest.approx(3)
    assert ticks(silence, clock, [Moved(5000, 101)]) == 0
    assert ticks(silence, clock, [Moved(5600, 101)]) == pytest.approx(1)
    assert ticks(silence, clock, [Moved(6200, 101)]) == 0  # 1200 since the last sign


def test_a_question_that_only_a_kernel_takes_does_not(clock):
    silence = Silence()
    questions = [Moved(5000 + 60 * k, 100) for k in range(12)]
    assert ticks(silence, clock, questions) == pytest.approx(12)


def test_an_image_ahead_of_a_frame_is_allowed_for_and_then_measured():
    pace = Pace()
    pace.answered(0.05, 500)
    usual = pace.bound_seconds(500)
    assert usual == liveness.HUNG_SECONDS
    assumed = pace.bound_seconds(500, ahead_bytes=100_000)
    assert assumed > liveness.MARGIN * 100_000 / liveness.ASSUMED_BYTES_PER_SECOND
    for _ in range(20):
        pace.carried(0.2, 100_500)  # 4 Mbit/s
    assert pace.bound_seconds(500, ahead_bytes=100_000) == liveness.HUNG_SECONDS
    for _ in range(20):
        pace.carried(12.5, 100_500)  # 64 kbit/s
    assert pace.bound_seconds(500, ahead_bytes=100_000) > assumed
    assert pace.bound_seconds(500) == usual
