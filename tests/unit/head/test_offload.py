"""The offload decision, in a simulation: no clock, no network."""

from __future__ import annotations

import time

import pytest
from support import bundles

from narrowcast.head.offload import OffloadControl, check_offload
from narrowcast.head.rate.control import RateControl
from narrowcast.head.rate.controller import RateController
from narrowcast.head.rate.offload import IN_A_ROW, PROBE_SECONDS, BoardTimes, Chooser, Prospect, best_of
from narrowcast.head.rate.options import Option
from narrowcast.head.session import HeadSession
from narrowcast.transport.errors import ConfigError

LOCAL = Prospect("local", 1.0, 0.2)
SPLIT = Prospect("split", 0.9, 0.1)
IMAGE = Prospect("image", 0.995, 0.15)


@pytest.mark.parametrize(
    ("prospects", "way", "why"),
    [
        ([LOCAL], "local", "only"),
        ([LOCAL, SPLIT], "local", "better"),
        ([LOCAL, SPLIT, IMAGE], "image", "sooner"),  # as good as local
        ([LOCAL._replace(joules=1.0), IMAGE._replace(joules=2.0), SPLIT], "local", "less energy"),
        ([LOCAL._replace(joules=1.0), IMAGE, SPLIT], "image", "sooner"),  # energy is not known of both
        ([LOCAL._replace(value=0.3), SPLIT], "split", "better"),
    ],
)
def test_the_best(prospects, way, why):
    best, reason = best_of(prospects)
    assert (best.way, reason) == (way, why)


def test_it_changes_over_when_another_way_is_better_several_times_in_a_row():
    chooser = Chooser()
    better = SPLIT._replace(value=0.95)
    worse = LOCAL._replace(value=0.9)
    ways = [chooser.choose([LOCAL, SPLIT], 0.0, may_probe=False).way]
    for k in range(21):  # now one, now the other: it stays
        prospects = [worse, better] if k % 2 else [LOCAL, SPLIT]
        ways.append(chooser.choose(prospects, k, may_probe=False).way)
    assert set(ways) == {"local"}
    assert chooser.switches == 0
    ways = [chooser.choose([worse, better], 20 + k, may_probe=False).way for k in range(IN_A_ROW)]
    assert ways == ["local"] * (IN_A_ROW - 1) + ["split"]
    assert (
        chooser.choose([LOCAL._replace(value=0.91), better._replace(value=0.895)], 40, may_probe=False).why == "stays"
    )
    assert chooser.switches == 1
    assert chooser.chosen.total() == chooser.reasons.total() == 23 + IN_A_ROW


def test_a_way_that_has_failed_is_left_at_once():
    chooser = Chooser()
    assert chooser.choose([SPLIT, LOCAL._replace(value=0.0)], 0.0).way == "split"
    assert chooser.choose([SPLIT._replace(value=0.1), LOCAL._replace(value=0.9)], 0.1).way == "local"
    assert chooser.choose([LOCAL], 0.2).way == "local"
    assert Chooser().choose([LOCAL, SPLIT], 0.0, may_probe=False).way == "local"


def test_while_frames_stay_here_the_link_is_looked_at():
    chooser = Chooser()
    ways = [chooser.choose([LOCAL, SPLIT], k / 10).way for k in range(200)]
    assert [k for k, way in enumerate(ways) if way == "split"] == [k * round(PROBE_SECONDS * 10) for k in range(4)]
    assert chooser.reasons["probe"] == 4
    assert chooser.switches == 0
    down = Chooser()
    assert {down.choose([LOCAL, SPLIT], k / 10, may_probe=False).way for k in range(200)} == {"local"}


def test_what_the_board_takes():
    times = BoardTimes()
    assert times.chance("local", 0.1) == 1.0  # to be tried
    assert times.chance("local", -0.1) == 0.0
    for _ in range(50):
        times.took("local", 0.2)
    assert times.seconds("local") == pytest.approx(0.2)
    assert times.chance("local", 0.1) < 0.01
    assert times.chance("local", 0.2) == pytest.approx(0.5)
    assert times.chance("local", 0.3) > 0.99


def test_the_outlook_follows_the_link():
    """After answers over a link of 10 kB/s, 40 ms each way: a packet's chance and time are what the link does."""
    control = RateController([Option(0, 0.6, 500), Option(1, 0.9, 3000)], 1.0)
    now = 0.0
    for k in range(60):
        size = 500 if k % 2 else 3000
        control.decide(now, 0.0)
        control.sent(k, size, now)
        control.answered(k, now + 0.08 + size / 10_000, 0.0)
        now += 1.0
    outlook = control.outlook(3000, 1.0, now)
    assert outlook.seconds == pytest.approx(0.38, rel=0.1)
    assert outlook.chance > 0.95
    assert control.outlook(3000, 0.2, now).chance < 0.05
    assert control.likely(1.0, now).level == 1
    assert control.likely(0.2, now).level == 0


def test_settings_that_do_not_go_together():
    assert check_offload(None, "image", None) == "image"
    assert check_offload("image", "symbols", None) == "image"
    assert check_offload("auto", "symbols", {"local": 1.0}) == "symbols"
    for arguments, said in (
        (("nowhere", "symbols", None), "one of auto"),
        (("local", "image", None), "different things"),
        (("split", "symbols", {"local": 1.0}), "joules by way"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_offload(*arguments)


@pytest.mark.parametrize("reason", ["budget", "data-cap", "too-large"])
def test_what_a_limit_keeps_back_is_answered_here_where_that_is_in_time(tmp_path, reason):
    levels = [{"level": level, "agreement": 0.6 + 0.2 * level, "mean_packet_bytes": 150.0} for level in range(2)]
    made = bundles.with_whole(bundles.make(figures={"levels": levels}))
    session = HeadSession(bundles.open_made(made.write(tmp_path / "m.ncb"), "device"))
    rate = RateControl(session.bundle.manifest, automatic=True)
    control = OffloadControl(session, "auto", rate)
    control.times.took("local", 1e6)  # so that frames are to be sent
    frame = bundles.random_frames(1)[0]

    def refused(_):
        return session.encode(frame, 1)._replace(payload=b"", dropped=reason)

    def prepared(limit_ms):
        return control.prepare(frame, time.perf_counter(), limit_ms, split=refused, image=refused)

    late = prepared(300)
    assert (late.outputs, late.dropped) == (None, reason)
    here = prepared(None)
    assert (list(here.outputs), here.dropped, here.payload) == (["output"], None, b"")
    assert (control.chooser.chosen, control.chooser.reasons["limits"]) == ({"split": 1, "local": 1}, 1)
    rate.close()
