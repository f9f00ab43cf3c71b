"""Links as data, and the shaper in a simulation: exact times, no clock."""

from __future__ import annotations

import random

import pytest

from narrowcast.devices.errors import LinkSettingsError
from narrowcast.devices.links.link import Direction, link_names, load_link, parse_link, parse_loss
from narrowcast.devices.links.shaper import Way
from narrowcast.transport.errors import ConfigError

NAMES = ["3g", "ethernet", "lora", "lte", "lte-m", "lte-poor", "nb-iot", "satellite", "wifi", "wifi-poor"]
SLOW = Direction(8000.0, 100.0, 0.0, 0.0, 5000)  # a byte a millisecond


def test_the_presets_are_these():
    assert link_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_says_where_it_is_from(name):
    link = parse_link(f" {name} ")
    assert link.name == name
    assert link.title
    assert link.sources
    assert str(link).startswith(f"{name}: ")
    for way in link.directions():
        assert way.bits_per_second > 0
        assert way.queue_bytes >= 4500


def test_a_link_of_ones_own():
    link = parse_link("2mbit/512kbit, 40ms, 5ms, 1%, 1s")
    assert (link.up_bits_per_second, link.down_bits_per_second, link.rtt_ms) == (2e6, 512e3, 80.0)
    up, down = link.directions()
    assert (up.delay_ms, up.jitter_ms, up.loss, up.queue_bytes) == (40.0, 5.0, 0.01, 250_000)
    assert down.queue_bytes == 64_000
    assert str(link) == "a link of its own: 2 Mbit/s up, 512 kbit/s down, 40 ms one way ± 5, 1 % of packets lost"
    assert parse_link("1mbit,5ms").directions()[1] == Direction(1e6, 5.0, 0.0, 0.0, 31_250)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ltd", "did you mean 'lte'?"),
        ("2mbit", "a link of your own is UP"),
        ("2mbit,40", "'40' has no unit"),
        ("2mbit,,5ms", "a link is a preset"),
        ("2mbit,1ms,1ms,1%,1s,1", "a link is a preset"),
        ("2mb,40ms", "can be read as bits or as bytes"),
        ("2mbit/0bit,40ms", "is no rate"),
        ("2mbit,4ms,5ms", "a jitter of 5ms around a delay of 4ms"),
        ("2mbit,4ms,0ms,100%", "a loss of '100%'"),
        ("2mbit,4ms,0ms,nan", "a loss of 'nan'"),
        ("2mbit,4ms,0ms,few", "a loss of 'few'"),
    ],
)
def test_what_is_no_link_says_why(text, said):
    with pytest.raises(LinkSettingsError, match="link") as caught:
        parse_link(text)
    assert said in str(caught.value)


def test_losses():
    assert [parse_loss(text) for text in ("1%", "0.5 %", "0.25", "0")] == [0.01, 0.005, 0.25, 0.0]
    with pytest.raises(ConfigError):
        parse_loss("-1%")
    with pytest.raises(LinkSettingsError):
        load_link("..")


def test_each_waits_its_turn_and_takes_its_time():
    way = Way(SLOW, can_lose=True)
    for k in range(3):
        assert way.offer(10.0, k, 500)
    assert way.waiting_bytes == 1500
    assert way.next_at() == 10.5
    assert way.take(10.59) == []
    assert way.take(10.6) == [0]
    assert way.next_at() == 11.0
    assert way.take(12.0) == [1, 2]  # at 11.1 and 11.6
    assert way.counts.late_ms == pytest.approx(900.0)
    assert way.next_at() is None
    assert way.offer(20.0, 3, 100)  # an idle link begins at once
    assert way.take(20.25) == [3]
    assert (way.counts.delivered, way.counts.delivered_bytes, way.counts.first_s, way.counts.last_s) == (
        4,
        1600,
        10.0,
        20.25,
    )


@pytest.mark.parametrize("jitter", [0.0, 80.0])
def test_what_passes_is_the_rate_whoever_looks_when(jitter):
    """Driven at odd moments, with items of all sizes, a busy link passes its rate and never more, in order."""
    way = Way(Direction(1e6, 100.0, jitter, 0.0, 10**6), can_lose=True, seed=1)
    source, now, sent, got = random.Random(2), 0.0, 0, []
    while now < 60.0:
        while way.room_bytes > 10_000:
            assert way.offer(now, sent, source.randrange(40, 1500))
            sent += 1
        now += source.uniform(0.0005, 0.05)
        got += way.take(now)
        assert way.counts.delivered_bytes <= max(0.0, 125_000 * (now - 0.1 + jitter / 1000))
    assert got == list(range(len(got)))
    assert way.counts.delivered_bytes == pytest.approx(125_000 * (now - 0.1), rel=0.005)


def test_jitter_spreads_evenly_around_the_delay():
    way, arrived, now = Way(Direction(1e9, 50.0, 20.0, 0.0, 10**6), can_lose=True, seed=3), [], 0.0
    for _ in range(2000):
        way.offer(now, None, 100)
        way.take(now + 0.001)
        arrived.append((way.next_at() - now) * 1000)
        now += 1.0
        way.take(now)
    assert 29.9 < min(arrived) < 31
    assert 69 < max(arrived) < 70.1
    assert sum(arrived) / len(arrived) == pytest.approx(50, abs=0.8)


def test_a_part_of_the_packets_is_lost_and_takes_its_time_all_the_same():
    way = Way(Direction(8e6, 10.0, 0.0, 0.1, 10**7), can_lose=True, seed=4)
    for k in range(5000):
        way.offer(0.0, k, 1000)
    arrived = way.take(6.0)
    assert way.counts.lost + len(arrived) == 5000
    assert 420 < way.counts.lost < 580
    assert arrived[-1] > 4900
    assert way.take(5.0) == []
    late = Way(Direction(8e6, 10.0, 0.0, 0.5, 10**7), can_lose=True, seed=5)
    for k in range(100):
        late.offer(0.0, k, 1000)
    assert max(late.take(0.05)) < 50  # what is lost was on the air


def test_a_full_queue_loses_and_a_stream_has_none_to_lose():
    way = Way(SLOW, can_lose=True)
    assert [way.offer(0.0, k, 1000) for k in range(7)] == [True] * 5 + [False] * 2
    assert way.counts.overflowed == 2
    stream = Way(Direction(8000.0, 100.0, 0.0, 0.9, 5000), can_lose=False)
    assert all(stream.offer(0.0, k, 1000) for k in range(7))
    assert stream.room_bytes == -2000
    assert stream.take(100.0) == list(range(7))


def test_a_link_that_changes():
    way = Way(SLOW, can_lose=True)
    for k in range(3):
        way.offer(0.0, k, 1000)
    way.change(0.5, Direction(80_000.0, 10.0, 0.0, 0.0, 5000))
    assert way.take(1.02) == [0]  # was being sent: at the old rate, to 1.0
    assert way.next_at() == pytest.approx(1.1)
    assert way.take(1.211) == [1, 2]


def test_a_cut_loses_packets_and_holds_a_stream():
    packets, stream = Way(SLOW, can_lose=True), Way(SLOW, can_lose=False)
    for way in (packets, stream):
        way.offer(0.0, 0, 100)
        way.offer(0.0, 1, 100)
        way.cut(0.15)
        assert way.next_at() is None
        assert way.offer(1.0, 2, 100) is (way is stream)
        assert way.take(5.0) == []
        way.mend(5.0)
        way.mend(5.0)
        way.offer(5.0, 3, 100)
    assert packets.take(9.0) == [3]
    assert packets.counts.cut == 3
    assert stream.take(5.0) == [0]  # had left before
    assert stream.take(5.2) == [1]
    assert stream.take(9.0) == [2, 3]


def test_forgotten():
    way = Way(SLOW, can_lose=False)
    way.offer(0.0, 0, 100)
    way.clear()
    assert way.take(9.0) == []
    assert way.waiting_bytes == 0
