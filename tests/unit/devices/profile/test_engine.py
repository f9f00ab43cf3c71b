"""Who runs when: turns, leads, windows, breaking off; by a clock that goes on only with the work."""

from __future__ import annotations

import numpy as np
import pytest
from support.profiling import FRAMES, FakeClock, FakeRunner

from narrowcast.devices.errors import ProfileError
from narrowcast.devices.profile.engine import Engine, ReplayClock, Timing
from narrowcast.devices.profile.frames import FrameSet
from narrowcast.devices.profile.observer import Silent
from narrowcast.head.errors import PeerUnreachableError

TIMING = Timing(loaded_s=6.0, windowed_s=1.0, rounds=6, lead_s=0.1, idle_s=2.0, warm_up_s=1.0, settle_s=0.5, seed=3)


class Watcher(Silent):
    def __init__(self):
        self.blocks, self.frames, self.phases = [], 0, []

    def block_started(self, way, mode, done, total):
        self.blocks.append((way, mode))

    def frame_done(self, way, latency_ms, failed):
        self.frames += 1

    def phase(self, name, seconds):
        self.phases.append(name)


def engine(timing=TIMING, **ms):
    clock, watcher = FakeClock(5_000_000_000), Watcher()
    runners = [FakeRunner(way, clock, m, link="real" if way.startswith("s") else None) for way, m in ms.items()]
    return Engine(runners, FRAMES, timing, clock, watcher), runners, watcher


def ten(number):
    return 10.0


def test_every_way_gets_its_time_in_turns_of_its_own():
    run, _runners, watcher = engine(local=ten, split=lambda number: 25.0)
    measured = run.run()
    assert measured.complete
    for way, ms in (("local", 10), ("split", 25)):
        counted = measured.counted(way, "single")
        assert len(counted) == 6
        assert sum(turn.span.seconds for turn in counted) == pytest.approx(6.0, abs=6 * ms / 1000)
        assert all(turn.answered == pytest.approx(1000 / ms, abs=1) for turn in counted)
        assert measured.tallies[way].frames == sum(turn.answered for turn in counted)
    assert {block.way for block in measured.blocks if block.mode == "windowed"} == {"split"}
    assert watcher.phases == ["idle-before", "warm-up", "loaded", "idle-after"]
    assert watcher.frames == sum(block.frames for block in measured.blocks)


def test_blocks_lie_one_behind_the_other_and_begin_with_frames_that_do_not_count():
    run, _, _ = engine(local=ten, split=ten)
    measured = run.run()
    ends = [0, *(block.end_ns for block in measured.blocks)]
    for block, before in zip(measured.blocks, ends, strict=False):
        assert before <= block.lead_ns < block.start_ns < block.end_ns
        assert block.start_ns - block.lead_ns == pytest.approx(0.1e9, abs=0.011e9)
    spans = measured.spans
    assert list(spans) == ["idle-before", "warm-up", "loaded", "idle-after"]
    assert spans["idle-before"].seconds == spans["idle-after"].seconds == 2.0
    assert spans["loaded"].start_ns - measured.start_ns <= measured.blocks[0].lead_ns
    assert spans["idle-after"].start_ns - spans["loaded"].end_ns == 500_000_000


def test_each_round_has_an_order_of_its_own_and_a_seed_repeats_it():
    ways = dict.fromkeys(("a", "b", "c", "d", "e"), ten)
    first, second = (engine(**ways)[0] for _ in range(2))
    orders = [[runner.info.id for runner, _, _ in one.turns()] for one in (first, second)]
    assert orders[0] == orders[1]
    rounds = [tuple(orders[0][k : k + 5]) for k in range(0, 30, 5)]
    assert all(sorted(one) == sorted(ways) for one in rounds)
    assert len(set(rounds)) > 3
    other = engine(timing=Timing(loaded_s=6.0, windowed_s=0, rounds=6, seed=4), **ways)[0]
    assert [runner.info.id for runner, _, _ in other.turns()] != orders[0]


def test_drift_hits_all_alike():
    """A board that gets slower all the time: two ways that take the same are found to take the same."""
    clock = FakeClock()

    def slower(number):
        return 10.0 * (1 + clock.ns / 60e9)

    runners = [FakeRunner(way, clock, slower) for way in ("a", "b")]
    timing = Timing(loaded_s=12.0, windowed_s=0.0, rounds=12, lead_s=0.05, idle_s=0.0, warm_up_s=0.0, settle_s=0.0)
    measured = Engine(runners, FRAMES, timing, clock, Silent()).run()
    means = [measured.tallies[way].latency.mean() for way in ("a", "b")]
    assert measured.tallies["a"].latency.max() > 1.3 * measured.tallies["a"].latency.min()
    assert means[0] == pytest.approx(means[1], rel=0.03)


def test_all_ways_run_the_same_frames_in_the_same_order():
    run, _, _ = engine(local=ten, split=ten)
    measured = run.run()
    assert measured.tallies["local"].answers.keys() == measured.tallies["split"].answers.keys() == {0, 1, 2}


def test_frames_that_do_not_count_take_no_turn_of_those_that_do():
    """As many leads and frames in flight as there may be: the counted ones are the first, the second, ... all the same."""
    clock, frames = FakeClock(), FrameSet("nowhere", images=[np.zeros((2, 2, 3), np.uint8)] * 1000)
    ways = [FakeRunner("local", clock, ten), FakeRunner("split", clock, lambda number: 70.0, link="real")]
    tallies = Engine(ways, frames, TIMING, clock, Silent()).run().tallies
    for way in ("local", "split"):
        assert list(tallies[way].answers) == list(range(tallies[way].frames)), way


def test_failed_frames_count_as_such_and_nowhere_else():
    run, runners, _ = engine(split=ten)
    runners[0].fails = {200, 250}
    measured = run.run()
    tally = measured.tallies["split"]
    assert tally.failed == {"DEADLINE_EXCEEDED": 2}
    assert len(tally.latency) == tally.frames - 2
    assert sum(block.failed for block in measured.blocks) == 2
    turns = measured.counted("split", "single")
    assert (sum(turn.answered for turn in turns), sum(turn.failed for turn in turns)) == (len(tally.latency), 2)


def test_bytes_on_the_socket_are_those_of_counted_frames():
    run, _, _ = engine(split=ten)
    tally = run.run().tallies["split"]
    assert tally.socket_up / tally.socket_frames == 150
    assert tally.socket_down / tally.socket_frames == 50


def test_a_way_that_takes_for_ever_does_not_hold_up_the_others():
    run, _runners, _ = engine(local=ten, split=lambda number: 9_000.0)
    measured = run.run()
    assert measured.complete
    assert measured.tallies["split"].frames < 6
    assert "its frames take so long that only" in measured.warnings["split"][0]
    assert len(measured.counted("local", "single")) == 6


@pytest.mark.parametrize(
    ("error", "why"), [(KeyboardInterrupt(), "interrupted"), (PeerUnreachableError("it is gone"), "it is gone")]
)
def test_what_there_was_is_kept_where_a_run_breaks_off(error, why):
    run, runners, _ = engine(local=ten, split=ten)
    runners[1].raises = {300: error}
    measured = run.run()
    assert (measured.complete, measured.why_incomplete, measured.error) == (False, why, error)
    assert measured.tallies["split"].frames == sum(
        b.frames for b in measured.blocks if b.way == "split" and b.mode == "single"
    )
    assert 0 < measured.tallies["split"].frames < 300
    assert "idle-after" not in measured.spans


def test_other_errors_are_raised():
    run, runners, _ = engine(local=ten)
    runners[0].raises = {300: RuntimeError("a fault")}
    with pytest.raises(RuntimeError, match="a fault"):
        run.run()


def test_nothing_to_run():
    with pytest.raises(ProfileError, match="no way is left to run"):
        Engine([], FRAMES, TIMING, FakeClock(), Silent())


@pytest.mark.parametrize("wrong", [{"loaded_s": 0.0}, {"rounds": 0}, {"idle_s": -1.0}])
def test_times_that_cannot_be(wrong):
    with pytest.raises(ValueError, match="loaded_s is more than 0|not negative"):
        Timing(**wrong)


def test_a_replayed_boards_time_goes_on_by_itself_and_waiting_costs_none_of_ours():
    clock = ReplayClock(7_000_000_000)
    clock.sleep(3600.0)
    assert 3_607_000_000_000 <= clock.now_ns() < 3_617_000_000_000
