"""Rate control's parts, without a link."""

from __future__ import annotations

import errno
import json
import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowcast.head.rate import budget, control
from narrowcast.head.rate.budget import Budget, DailyCap, parse_cap, parse_rate
from narrowcast.head.rate.control import RateControl
from narrowcast.head.rate.controller import PROBE_SECONDS, RateController
from narrowcast.head.rate.estimate import LinkEstimate
from narrowcast.head.rate.options import Option, envelope, price_at
from narrowcast.head.session import Encoded
from narrowcast.head.socket_bytes import SocketBytes
from narrowcast.head.timing import FrameTimes
from narrowcast.transport.contract import InputContract
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.packet import STREAM_HEADER_BYTES, CodecId

OPTIONS = [Option(0, 0.6, 700.0), Option(1, 0.75, 1300.0), Option(2, 0.85, 2300.0), Option(3, 0.87, 3500.0)]
DAY = 86_400.0


class Link:
    """A link of one rate and delay, with a queue: drives a controller with its own clock."""

    def __init__(self, controller: RateController, rate: float, delay: float = 0.05, fps: float = 10.0) -> None:
        self.controller, self.rate, self.delay, self.fps = controller, rate, delay, fps
        self.now, self.free_at, self.frame = 0.0, 0.0, 0
        self.answers: list[tuple[float, int]] = []
        self.levels: list[int | None] = []
        self.delays: list[float] = []
        self.spend: float | None = None

    def run(self, frames: int) -> list[int | None]:
        for _ in range(frames):
            while self.answers and self.answers[0][0] <= self.now:
                at, number = self.answers.pop(0)
                self.controller.answered(number, at, 0.0)
            decision = self.controller.decide(self.now, spend_per_second=self.spend)
            self.levels.append(decision.level)
            if decision.level is not None:
                size = round(OPTIONS[decision.level].size)
                self.controller.sent(self.frame, size, self.now)
                self.free_at = max(self.free_at, self.now) + size / self.rate
                self.answers.append((self.free_at + self.delay, self.frame))
                self.delays.append(self.free_at + self.delay - self.now)
            self.frame += 1
            self.now += 1 / self.fps
        return self.levels[-frames:]


def test_the_estimate_finds_rate_and_delay():
    estimate, random = LinkEstimate(), np.random.default_rng(0)
    free_at = 0.0
    for number in range(80):
        now, size = number / 10, int(random.integers(500, 3500))
        free_at = max(now, free_at) + size / 30_000
        estimate.answered(now, free_at + 0.04 + 0.02, size, 0.02)
    assert estimate.bytes_per_second == pytest.approx(30_000, rel=0.1)
    assert estimate.base_seconds == pytest.approx(0.04, abs=0.01)
    assert estimate.server_seconds == pytest.approx(0.02)
    assert estimate.forecast(3000).seconds == pytest.approx(0.16, abs=0.02)
    assert estimate.pace_deviation < 0.3


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100), st.integers(1, 10**7), st.floats(0, 10)), max_size=30))
@settings(max_examples=40, deadline=None)
def test_no_answer_breaks_the_estimate(answers):
    """Whatever a server makes of times, what is known of the link stays a number."""
    estimate, controller = LinkEstimate(), RateController(OPTIONS, 0.3)
    now = 0.0
    for number, (wait, took, size, server) in enumerate(answers):
        now += wait
        estimate.answered(now, now + took, size, server)
        controller.decide(now)
        controller.sent(number, size, now)
        controller.answered(number, now + took, server)
        for known in (estimate, controller.estimate):
            forecast = known.forecast(1000, 0.1)
            assert math.isfinite(forecast.seconds)
            assert forecast.deviation >= 0
            assert 0 < known.pace < math.inf
            assert known.base_seconds >= 0


def test_the_envelope_leaves_out_what_is_never_worth_its_bytes():
    options = [Option(0, 0.6, 700.0), Option(1, 0.61, 1300.0), Option(2, 0.85, 2300.0), Option(3, 0.8, 3500.0)]
    segments = envelope(options)
    assert [segment.size for segment in segments] == [700.0, 2300.0]
    assert segments[0].price == pytest.approx(0.6 / 700)
    assert segments[1].price == pytest.approx(0.25 / 1600)
    assert price_at(segments, 100) == segments[0].price
    assert price_at(segments, 1000) == segments[1].price
    assert price_at(segments, 2300) == 0.0
    assert envelope(options, nothing=0.9) == []  # nothing is as good as the local exit


@pytest.mark.parametrize(
    ("rate", "levels"), [(100_000, {3}), (26_000, {2, 1, 3}), (15_000, {1, 2, 0}), (8_000, {0, 1})]
)
def test_levels_suit_a_constant_link(rate, levels):
    link = Link(RateController(OPTIONS, 0.3), rate)
    link.run(30)
    later = link.run(300)
    assert set(later) <= levels
    assert max(link.delays[30:]) < 0.3
    mean = np.mean([OPTIONS[level].size for level in later])
    assert mean * 10 < rate * 1.02


def test_a_step_down_and_up():
    link = Link(RateController(OPTIONS, 0.3), 60_000)
    assert set(link.run(60)[30:]) == {3}
    link.rate = 9_000
    assert set(link.run(60)[30:]) <= {0, 1}
    link.rate = 60_000
    assert set(link.run(60)[30:]) == {3}


def test_a_dead_link_is_probed_now_and_then():
    controller = RateController(OPTIONS, 0.3)
    link = Link(controller, 60_000)
    link.run(30)
    link.rate = 100.0  # a frame takes 7 s and more
    levels = link.run(400)
    sent = [level for level in levels if level is not None]
    assert len(sent) <= 3 + 40 / PROBE_SECONDS
    assert levels.count(None) > 300
    link.rate, link.free_at = 60_000, link.now
    link.answers.clear()
    for frame in list(controller._flights):
        controller.lost(frame)
    assert set(link.run(100)[60:]) == {3}


def test_without_a_deadline_nothing_is_late():
    link = Link(RateController(OPTIONS, None), 2_000)
    assert None not in link.run(100)


def test_a_budget_is_a_price():
    controller = RateController(OPTIONS, 0.3)
    link = Link(controller, 1e6)
    link.run(30)
    assert set(link.run(20)) == {3}
    link.spend = 7_100.0
    assert set(link.run(20)) == {0}


class Clock:
    """Stands in for the module ``time``."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


def budgeted(monkeypatch, kbit: float, frames: int = 1200, fps: float = 10.0) -> tuple[RateControl, list[int | None]]:
    """Levels of frames on a fast link, with a budget; packets are as large as the figures say."""
    clock, besides = Clock(), 120
    monkeypatch.setattr(control, "time", clock)
    figures = [{"level": one.level, "agreement": one.accuracy, "mean_packet_bytes": one.size} for one in OPTIONS]
    manifest = SimpleNamespace(figures={"levels": figures}, name="m", input=SimpleNamespace(free=None))
    made = {one.level: bytes(int(one.size) - STREAM_HEADER_BYTES) for one in OPTIONS}
    encoded = Encoded(b"", 0, InputContract(size=(8, 8)).placement(8, 8), FrameTimes(), None, CodecId.RANS)
    spent, levels = 0, []
    rate = RateControl(
        manifest, automatic=True, deadline_ms=300, budget=kbit * 125, on_socket=lambda: SocketBytes(spent, 0)
    )
    rate.count()
    for number in range(frames):
        found = rate.encode(
            np.zeros((8, 8, 3), np.uint8), None, 3, clock.now, 300,
            encode=lambda _, level: encoded._replace(payload=made[level], level=level),
            drop=lambda _, reason: encoded._replace(dropped=reason),
        )  # fmt: skip
        levels.append(None if found.dropped else found.level)
        if not found.dropped:
            size = STREAM_HEADER_BYTES + len(found.payload)
            rate.queued(number, size)
            rate.sent(number, size)
            spent += size + besides
        clock.now += 0.055
        rate.answered(number, 0.0)
        clock.now += 1 / fps - 0.055
    rate.close()
    assert spent <= kbit * 125 * (frames / fps + 2) * 1.01
    return rate, levels


@pytest.mark.parametrize("kbit", [68, 80, 100, 120, 140, 160, 180, 200, 220, 240, 260, 280, 300])
def test_levels_go_down_before_a_budget_drops_frames(monkeypatch, kbit):
    rate, levels = budgeted(monkeypatch, kbit)
    assert rate.dropped["budget"] <= 0.01 * len(levels)
    right = sum(OPTIONS[level].accuracy for level in levels if level is not None) / len(levels)
    each = kbit * 125 / 10 - 120  # bytes a frame
    assert right >= max(one.accuracy * min(1.0, each / one.size) for one in OPTIONS) - 0.003
    points = [(0.0, 0.0), *((one.size, one.accuracy) for one in OPTIONS)]
    assert right == pytest.approx(np.interp(each, *zip(*points, strict=True)), abs=0.008), "the mixture of levels"


def test_frames_that_a_budget_drops_are_frames(monkeypatch):
    """The camera is not slower for them, or each of the others would seem to have more of the budget."""
    rate, levels = budgeted(monkeypatch, 40)
    assert set(levels[100:]) == {0, None}
    assert rate._controller._interval == pytest.approx(0.1, rel=0.01)


def test_this_cameras_packets_count():
    """Packets of twice the size that the figures tell of."""
    controller = RateController(OPTIONS, 0.3)
    for _ in range(50):
        controller.encoded(0, 1400)
    assert controller.size_of(OPTIONS[0]) == pytest.approx(1400, rel=0.02)


def test_budgets_fill_evenly():
    budget = Budget(1000, now=0.0)
    assert budget.left(0.0) == 2000
    budget.spend(2500)
    assert budget.left(0.0) == -500
    assert budget.left(1.0) == 500
    assert budget.left(0.5) == 500  # a clock that goes back
    assert budget.left(100.0) == 2000
    budget.spend(1500)
    assert budget.fill(100.0) == 0.25
    budget.spend(1500)
    assert budget.fill(100.0) == 0.0


class Clocks:
    """A wall clock that may jump, and one that runs."""

    def __init__(self) -> None:
        self.wall, self.running = 1_800_000_000.0, 5.0

    def cap(self, most: int, file) -> DailyCap:
        return DailyCap(most, file, wall=lambda: self.wall, running=lambda: self.running)

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.running += seconds


def test_a_cap_outlives_restarts_and_midnight_renews_it(tmp_path):
    clocks, file = Clocks(), tmp_path / "state" / "used.json"
    cap = clocks.cap(1_000_000, file)
    cap.spend(600_000)
    assert cap.left() == 400_000
    del cap
    again = clocks.cap(1_000_000, file)
    assert 400_000 - 10_000 <= again.left() <= 400_000  # a portion may be lost with the process, never gained
    other = clocks.cap(1_000_000, file)  # another process on the same file
    other.spend(300_000)
    again.spend(150_000)
    assert again.left() <= 0
    clocks.pass_by(DAY)
    assert again.left() == 1_000_000
    again.spend(10)
    assert json.loads(file.read_bytes())["taken_bytes"] == 10_000


def test_a_cap_and_clocks_that_jump(tmp_path):
    clocks = Clocks()
    cap = clocks.cap(1000, tmp_path / "used.json")
    cap.spend(1000)
    clocks.wall -= 40 * DAY  # a board without a battery boots in the past
    assert cap.left() <= 0
    assert clocks.cap(1000, tmp_path / "used.json").left() <= 0
    clocks.wall += 45 * DAY  # and is told the time
    assert cap.left() == 1000
    cap.spend(1000)
    clocks.wall += 10 * DAY  # jumping on and on gives no more than a day's bytes an hour
    assert cap.left() <= 0
    clocks.running += 3601
    assert cap.left() == 1000
    cap.spend(1000)
    clocks.wall -= 30 * DAY  # the file's day is in the future now: after 24 h of running it is over
    clocks.running += 0.9 * DAY
    assert cap.left() <= 0
    clocks.running += 0.2 * DAY
    assert cap.left() == 1000
    clocks.wall = 1e30  # no calendar has that
    assert cap.left() <= 1000


def test_a_damaged_file_spends_nothing(tmp_path):
    file = tmp_path / "used.json"
    file.write_bytes(b"{half")
    clocks = Clocks()
    cap = clocks.cap(1000, file)
    assert cap.left() <= 0
    clocks.pass_by(DAY)
    assert cap.left() == 1000


def test_a_full_disk_spends_nothing_until_there_is_room(tmp_path, monkeypatch, caplog):
    clocks, file = Clocks(), tmp_path / "used.json"
    cap = clocks.cap(1000, file)
    cap.spend(100)
    replacing = budget.replacing

    def full(path, **how):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(budget, "replacing", full)
    cap.spend(5)  # is sent already
    assert cap.left() < 0
    again = clocks.cap(1000, file)  # a restart, while the disk is full
    assert again.left() <= 0
    assert caplog.text.count("nothing more is sent") == 2
    monkeypatch.setattr(budget, "replacing", replacing)
    assert cap.left() < 0  # it is not tried all the time
    clocks.running += 2
    assert cap.left() == again.left() + 5 == 895
    assert json.loads(file.read_bytes())["taken_bytes"] == 110
    monkeypatch.setattr(budget, "replacing", full)
    clocks.pass_by(DAY)
    assert cap.left() == 5  # what was taken before
    monkeypatch.setattr(budget, "replacing", replacing)
    clocks.running += 2
    assert cap.left() == 1000


def test_a_disk_that_turns_read_only_is_counted_in_memory(tmp_path, monkeypatch, caplog):
    clocks, file = Clocks(), tmp_path / "used.json"
    cap = clocks.cap(1000, file)
    cap.spend(100)
    replacing = budget.replacing

    def read_only(path, **how):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(budget, "replacing", read_only)
    for spent in range(1, 11):
        cap.spend(50)
        clocks.pass_by(2)
        assert cap.left() == 900 - 50 * spent
    assert caplog.text.count("cannot be kept") == 1, "said once"
    with pytest.raises(ConfigError, match="cannot keep what is used"):
        clocks.cap(1000, file)
    cap.spend(500)
    assert cap.left() == -100
    clocks.pass_by(DAY)
    assert cap.left() == 1000, "a new day begins without the disk, too"
    cap.spend(333)
    monkeypatch.setattr(budget, "replacing", replacing)
    clocks.pass_by(2)
    assert cap.left() == 667
    assert json.loads(file.read_bytes())["taken_bytes"] == 340
    assert clocks.cap(1000, file).left() == 660
    cap.spend(100)
    assert cap.left() == 567


def test_whoever_sends_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    cap = DailyCap(1_000_000, tmp_path / "used.json")
    rate = RateControl(None, automatic=False, data_cap=cap)
    replacing, threads, holding, let_go = budget.replacing, set(), threading.Event(), threading.Event()

    def held(path, **how):
        threads.add(threading.get_ident())
        holding.set()
        assert let_go.wait(30)
        return replacing(path, **how)

    with monkeypatch.context() as patch:
        patch.setattr(budget, "replacing", held)
        rate.sent(0, 20_000)
        assert holding.wait(30), "it is written, elsewhere"
        for frame_id in (1, 2):
            rate.queued(frame_id, 20_000)
            rate.sent(frame_id, 20_000)
            rate.answered(frame_id, 0.0)
        rate.count()
        assert threading.get_ident() not in threads
        let_go.set()
        rate.close()
    assert cap.left() <= 1_000_000 - 60_000
    assert json.loads((tmp_path / "used.json").read_bytes())["taken_bytes"] >= 60_000


def test_the_link_does_not_wait_for_what_becomes_of_a_frame_that_is_too_large():
    """The local exit's answer takes a run of the head."""
    rate = RateControl(None, automatic=False, max_packet_bytes=100)
    encoded = Encoded(bytes(200), 1, InputContract(size=(8, 8)).placement(8, 8), FrameTimes(), None, CodecId.RANS)
    frame, told = np.zeros((8, 8, 3), np.uint8), []

    def drop(_, reason):
        link = threading.Thread(target=rate.sent, args=(0, 50), daemon=True)
        link.start()
        link.join(30)
        told.append((reason, link.is_alive()))
        return encoded._replace(payload=b"", dropped=reason)

    def encode(_, level=0):
        return encoded._replace(level=level)

    assert rate.encode(frame, None, 1, 0.0, None, encode=encode, drop=drop).dropped == "too-large"
    assert rate.encode_image(frame, encode=encode, drop=drop).dropped == "too-large"
    assert told == [("too-large", False)] * 2
    assert rate.dropped == {"too-large": 2}
    rate.close()


def test_another_cap_for_what_is_used(tmp_path):
    cap = Clocks().cap(1000, tmp_path / "used.json")
    cap.spend(600)
    cap.change(2000)
    assert cap.left() == 1400
    cap.change(500)
    assert cap.left() == -100


def test_a_cap_that_cannot_be_kept(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot keep what is used"):
        DailyCap(1000, tmp_path / "file" / "used.json")


@pytest.mark.parametrize(("text", "rate"), [("200kbit", 25_000), ("1.5Mbit", 187_500), ("800bit/s", 100)])
def test_rates(text, rate):
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["200", "0kbit", "kbit", "1e3kbit", "-2kbit", "200kB"])
def test_no_rates(text):
    with pytest.raises(ConfigError, match="bits a second"):
        parse_rate(text)


@pytest.mark.parametrize(("text", "count"), [("1GB/day", 10**9), ("300 MB/day", 3 * 10**8), ("5b/day", 5)])
def test_caps(text, count):
    assert parse_cap(text) == count


@pytest.mark.parametrize("text", ["1GB", "GB/day", "0MB/day", "1GB/week"])
def test_no_caps(text):
    with pytest.raises(ConfigError, match="bytes a day"):
        parse_cap(text)
