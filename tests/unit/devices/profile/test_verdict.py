"""The model of latency, break-even uplinks, and what is said of them."""

from __future__ import annotations

import msgspec
import pytest
from support.runs import make_way

from narrowcast.devices.profile.connections import on_the_link
from narrowcast.devices.profile.figures import Agreement, Bytes, Energy, Estimate, LatencyModel
from narrowcast.devices.profile.model import LinkFigures, break_even, figures_of, fit, uplink_kbit
from narrowcast.devices.profile.schema import Link, LinkSettings
from narrowcast.devices.profile.settings import ProfileSettings
from narrowcast.devices.profile.statistics import MIN_BLOCKS
from narrowcast.devices.profile.verdict import verdict

REAL = Link(name="real", kind="real", address="here:1", round_trip_ms=1.0)


def emulated(name, mbit, delay_ms=0.0, how="packets"):
    settings = LinkSettings(
        preset=name,
        up_kbit=1000 * mbit,
        down_kbit=1000 * mbit,
        delay_ms=delay_ms,
        jitter_ms=0.0,
        loss_percent=0.0,
        how=how,
    )
    return Link(name=name, kind="emulated", address="here:2", settings=settings)


LINKS = [REAL, emulated("thin", 0.5, 20.0), emulated("thick", 50.0, 5.0)]
FIGURES = figures_of(LINKS)


def takes(fixed_ms, up, down, link):
    rates = ((up, link.up_kbit), (down, link.down_kbit))
    sending = (8 * on_the_link(size, headers=link.headers) / rate for size, rate in rates if rate)
    return fixed_ms + link.round_trip_ms + sum(sending)


def sent(name, fixed_ms, up, down=100.0, off=0.0, **fields):
    """A way over all links, which takes what the model says, and ``off`` more."""
    kind, _, number = name.partition("-")
    fields |= {"level": int(number)} if kind == "split" else {"codec": kind, "quality": int(number)}
    ways = []
    for link in LINKS:
        way = make_way(
            f"{name}@{link.name}", takes(fixed_ms, up, down, FIGURES[link.name]) + off, up, link=link.name, **fields
        )
        ways.append(
            msgspec.structs.replace(way, bytes=Bytes(packet_up=up, packet_down=down, socket_up=up, socket_down=down))
        )
    return [msgspec.structs.replace(way, model=fit(way, ways, FIGURES)) for way in ways]


def test_the_model_is_found_again():
    for way in sent("split-0", 12.0, 2000.0, kind="split"):
        assert way.model.fixed_ms == pytest.approx(12.0)
        assert way.model.up_bytes == 2000 + 2 * 52
        assert way.model.fitted_on == ["real", "thick", "thin"]
        assert all(abs(error) < 1e-9 for error in way.model.errors_ms.values())


def test_links_are_seen_as_they_were_set_and_measured():
    assert FIGURES["real"] == LinkFigures(1.0, None, None)
    assert FIGURES["thin"] == LinkFigures(41.0, 500.0, 500.0)
    assert not figures_of([emulated("relayed", 1.0, how="relay")])["relayed"].headers
    assert figures_of([Link(name="real", kind="real", address="")]) == {}
    assert (on_the_link(1448), on_the_link(1449), on_the_link(10, headers=False)) == (1500, 1553, 10)


def test_an_uplinks_rate_shows_in_what_bytes_take():
    points = [(200.0, 10.0 + 200 * 8 / 1000), (2000.0, 10.0 + 2000 * 8 / 1000), (9000.0, 10.0 + 9000 * 8 / 1000)]
    assert uplink_kbit(points) == pytest.approx(1000.0)
    assert uplink_kbit(points[:2]) is None
    assert uplink_kbit([(200.0, 5.0), (2000.0, 1.0), (9000.0, 3.0)]) is None  # noise
    assert uplink_kbit([(200.0, 1.0), (210.0, 2.0), (220.0, 3.0)]) is None  # too alike


def test_break_even_of_split_and_local_lies_where_the_model_says_and_measurements_hold_it():
    local, splits = make_way("local", 40.0, link=None, kind="local"), sent("split-0", 5.0, 5000.0, kind="split")
    found = break_even(splits[0], local, [local, *splits], FIGURES, 1.0)
    bits = 8 * (on_the_link(5000) + on_the_link(100))
    assert (found.outcome, found.uplink_mbit) == ("above", pytest.approx(bits / (40 - 6) / 1000))
    assert (found.measured_low_mbit, found.measured_high_mbit) == (0.5, 50.0)
    assert "the split at level 0 is faster than the whole network on the board above 1.26 Mbit/s" in found.text
    assert "measured to lie between 0.5 and 50 Mbit/s" in found.text


def test_a_far_link_says_nothing_of_rates():
    """Over 20 ms more the split is slower than local for its round trip alone; with that taken off it is faster."""
    local, splits = make_way("local", 40.0, link=None, kind="local"), sent("split-0", 24.0, 500.0, kind="split")
    found = break_even(splits[0], local, [local, *splits], FIGURES, 1.0)
    assert splits[1].median_ms.value > 40
    assert (found.outcome, found.measured_low_mbit, found.measured_high_mbit) == ("above", None, 0.5)
    assert "measured on one side, at 0.5 Mbit/s" in found.text


def test_break_even_of_split_and_image():
    splits, images = sent("split-0", 20.0, 500.0, kind="split"), sent("jpeg-75", 8.0, 20_000.0, kind="image")
    found = break_even(splits[0], images[0], [*splits, *images], FIGURES, 1.0)
    assert found.outcome == "below"
    assert found.uplink_mbit == pytest.approx(8 * (on_the_link(20_000) - on_the_link(500)) / 12 / 1000)
    assert (found.measured_low_mbit, found.measured_high_mbit) == (0.5, 50.0)
    assert break_even(images[0], splits[0], [*splits, *images], FIGURES, 1.0).outcome == "above"


def test_always_and_never():
    local = make_way("local", 40.0, link=None, kind="local")
    slow, splits = sent("jpeg-75", 60.0, 9000.0, kind="image"), sent("split-0", 50.0, 300.0, kind="split")
    assert break_even(splits[0], local, [local, *splits], FIGURES, 1.0).outcome == "never"
    found = break_even(splits[0], slow[0], [*slow, *splits], FIGURES, 1.0)
    assert (found.outcome, found.uplink_mbit) == ("always", None)
    assert (
        found.text
        == "the split at level 0 is faster than JPEG of quality 75 at any uplink (model, a round trip of 1 ms)"
    )
    nothing = msgspec.structs.replace(splits[0], model=LatencyModel(why_not="not fitted"))
    assert break_even(nothing, local, [], FIGURES, 1.0).outcome == "unknown"


def test_what_was_measured_otherwise_is_said():
    local, splits = make_way("local", 40.0, link=None, kind="local"), sent("split-0", 5.0, 5000.0, kind="split")
    splits[2] = msgspec.structs.replace(splits[2], median_ms=Estimate(value=90.0, low=85.0, high=95.0))
    found = break_even(splits[0], local, [local, *splits], FIGURES, 1.0)
    assert found.contradicted_by == ["thick"]
    assert "measured otherwise on thick" in found.text


def test_where_splitting_does_not_pay_that_comes_first():
    local = make_way("local", 100.0, link=None, kind="local")
    splits = sent("split-0", 20.0, 5000.0, kind="split")  # thin: 144 ms
    found = verdict([local, *splits], LINKS, FIGURES)
    assert found.pays is True
    assert found.text[0] == (
        "Splitting does not pay over the thin link: the split at level 0 takes 147 ms with 5 kB a frame; the whole network "
        "on the board, the fastest other way, 100 ms. The split's answers agree with the whole network's in 90.0 % of the "
        "frames."
    )
    assert found.text[1].startswith("Splitting pays over the real link")
    assert any(line == "Energy was not measured: no power sensor." for line in found.text)
    best = {(one.goal, one.link): one for one in found.best}
    assert (best["latency", "real"].way, best["latency", "real"].clear) == ("split-0@real", True)
    assert best["latency", "thin"].way == "local"
    assert best["bytes", "real"].way == "split-0@real"
    assert best["energy", "real"].why_not == "no power sensor"


def test_a_way_that_answered_nothing_sends_the_fewest_bytes_but_is_not_the_best():
    splits = sent("split-0", 20.0, 5000.0, kind="split")
    lost = [
        msgspec.structs.replace(way, bytes=Bytes(packet_up=None, packet_down=None, socket_up=37.0, socket_down=0.0))
        for way in sent("jpeg-60", 30.0, 9000.0, kind="image")
    ]
    assert {one.way for one in verdict([*splits, *lost], LINKS, FIGURES).best if one.goal == "bytes"} == {
        f"split-0@{link.name}" for link in LINKS
    }
    assert fit(lost[0], lost, FIGURES).why_not


def test_the_best_image_is_compared_that_answers_as_well():
    local = make_way("local", 100.0, link=None, kind="local")
    splits = sent("split-0", 20.0, 500.0, kind="split")
    good, small = sent("jpeg-90", 10.0, 9000.0, kind="image"), sent("jpeg-10", 10.0, 900.0, kind="image")
    poor = [msgspec.structs.replace(way, agreement=Agreement(metric="top-1", share=0.4, frames=9)) for way in small]
    found = verdict([local, *splits, *good, *poor], LINKS, FIGURES)
    assert {(one.way, one.against) for one in found.break_evens} == {
        ("split-0", "local"), ("split-0", "jpeg-90"), ("jpeg-90", "local")
    }  # fmt: skip
    assert next(one for one in found.best if one.goal == "accuracy").way == "split-0@real"  # as good, with fewer bytes


def test_a_split_that_saves_energy_pays_though_it_is_slower():
    def joules(value):
        return Energy(gross_joules_per_frame=Estimate(value=value, low=0.95 * value, high=1.05 * value))

    local = msgspec.structs.replace(make_way("local", 5.0, link=None, kind="local"), energy=joules(2.0))
    splits = [msgspec.structs.replace(way, energy=joules(0.5)) for way in sent("split-0", 20.0, 500.0, kind="split")]
    found = verdict([local, *splits], LINKS, FIGURES)
    assert found.pays is True
    start = "Splitting pays over the real link in energy, of which a split takes the least, though not in time: "
    assert found.text[0].startswith(start)


def test_overlapping_intervals_leave_it_open():
    def wide(way):
        return msgspec.structs.replace(way, median_ms=Estimate(value=20.0, low=15.0, high=30.0))

    local = make_way("local", 21.0, link=None, kind="local")
    splits = [wide(way) if way.link == "real" else way for way in sent("split-0", 5.0, 500.0, kind="split")]
    found = verdict([local, *splits], LINKS, FIGURES)
    assert found.pays is None
    told = [text for text in found.text if " pay" in text]
    assert told[0].startswith("Splitting does not pay over the thin link")
    assert told[1].startswith(
        "Whether splitting pays over the real link cannot be told, since 95 % intervals overlap: "
    )
    assert told[2].startswith("Splitting pays over the thick link")


def test_without_intervals_nobody_can_tell():
    """A run of three rounds: half a per cent between two figures says nothing, and neither does half of the time."""
    why = "no interval: it wants 6 blocks, and there are 3"

    def bare(way):
        return msgspec.structs.replace(way, median_ms=Estimate(value=way.median_ms.value), why_no_median=why)

    local = make_way("local", 100.0, link=None, kind="local")
    splits = sent("split-0", 20.0, 500.0, kind="split")
    for ways in ([bare(local), *splits], [local, *map(bare, splits)]):
        found = verdict(ways, LINKS, FIGURES)
        assert found.pays is None
        assert "has no 95 % interval (it wants 6 blocks, and there are 3): the split at level 0 takes" in found.text[0]
        assert not any(text.startswith("Splitting ") for text in found.text)


@pytest.mark.parametrize(("hz", "rounds"), [(None, 12), (10.0, 12), (3.0, 9), (1.0, 6), (0.2, 6)])
def test_a_slow_sensor_leaves_turns_enough_for_intervals(hz, rounds):
    timing = ProfileSettings().timing(hz)
    assert timing.rounds == rounds >= MIN_BLOCKS
    assert ProfileSettings(rounds=2).timing(hz).rounds == 2
    assert timing.lead_s == max(0.5, 2 / (hz or 4))


def test_of_splits_that_are_as_fast_the_truest_is_spoken_of():
    def agreeing(ways, share):
        return [
            msgspec.structs.replace(way, agreement=Agreement(metric="top-1", share=share, frames=100)) for way in ways
        ]

    local = make_way("local", 100.0, link=None, kind="local")
    poor = agreeing(sent("split-0", 20.0, 60.0, kind="split"), 0.1)
    good = agreeing(sent("split-1", 20.2, 90.0, kind="split"), 0.9)
    slow = agreeing(sent("split-2", 40.0, 90.0, kind="split"), 1.0)
    found = verdict([local, *poor, *good, *slow], LINKS, FIGURES)
    assert found.text[0].startswith("Splitting pays over the real link: the split at level 1 takes 21.2 ms")
    best = {(one.goal, one.link): one for one in found.best}
    assert (best["accuracy", "real"].way, best["accuracy", "real"].clear) == ("split-2@real", True)


def test_a_link_that_is_not_as_fast_both_ways_is_seen_as_it_is():
    """Answers of 4 kB take 66 ms of a downlink of 500 kbit/s, and 3 ms of one of 10 Mbit/s."""
    settings = LinkSettings(
        preset="uneven", up_kbit=500.0, down_kbit=10_000.0, delay_ms=0.0, jitter_ms=0.0, loss_percent=0.0, how="packets"
    )
    links = [REAL, Link(name="uneven", kind="emulated", address="here:2", settings=settings)]
    figures = figures_of(links)
    ways = [
        msgspec.structs.replace(
            make_way(f"split-0@{link.name}", takes(10.0, 500.0, 4000.0, figures[link.name]), 500.0, link=link.name,
                     kind="split", level=0),
            bytes=Bytes(packet_up=500.0, packet_down=4000.0, socket_up=500.0, socket_down=4000.0),
        )
        for link in links
    ]  # fmt: skip
    ways = [msgspec.structs.replace(way, model=fit(way, ways, figures)) for way in ways]
    local = make_way("local", 50.0, link=None, kind="local")
    found = break_even(ways[0], local, [local, *ways], figures, 1.0)
    assert ways[1].median_ms.value < 30
    assert found.outcome == "above"
    assert found.uplink_mbit == pytest.approx(8 * (on_the_link(500) + on_the_link(4000)) / 39 / 1000)
    assert found.contradicted_by == []  # with a downlink of 500 kbit/s the model would have said 86 ms


def test_nothing_to_compare():
    found = verdict([make_way("local", 5.0, link=None, kind="local")], [], {})
    assert found.pays is None
    assert found.text[0].startswith("Whether splitting pays cannot be told")
    assert verdict([], [], {}).best[0].why_not == "no way has a median"
