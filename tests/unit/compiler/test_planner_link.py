"""Rates and times as people write them, what a link adds, and which way of getting answers is best."""

from __future__ import annotations

import pytest

from narrowcast.compiler.planner.link import (
    MESSAGE_BYTES,
    SEGMENT_BYTES,
    SEGMENT_HEADER_BYTES,
    Link,
    PlanSettings,
    Way,
    decide,
    over_link,
    wire_bytes,
)
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.structs import from_mapping
from narrowcast.transport.units import human_rate, parse_rate, parse_time_ms


@pytest.mark.parametrize(
    ("text", "bits"),
    [("5mbit", 5e6), ("800kbit", 8e5), ("1.5 Gbit", 1.5e9), ("300bit", 300), (".5Mbit/s", 5e5), ("1e3kbit", 1e6)],
)
def test_rates(text, bits):
    assert parse_rate(text) == pytest.approx(bits)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("5", "no unit"),
        ("5mbti", "did you mean 'mbit'"),
        ("5mbps", "bits or as bytes"),
        ("2MB/s", "bits or as bytes"),
        ("fast", "written like 5mbit"),
        ("-3mbit", "written like 5mbit"),
        ("0mbit", "no rate of a link"),
        ("1e-300bit", "no rate of a link"),
        ("1e300gbit", "no rate of a link"),
        ("", "written like 5mbit"),
        ("5ms", "the unit 'ms'"),
    ],
)
def test_what_is_no_rate(text, said):
    with pytest.raises(ConfigError, match=said):
        parse_rate(text)


@pytest.mark.parametrize(("text", "ms"), [("20ms", 20), ("0.1s", 100), ("300us", 0.3), ("300µs", 0.3), ("0ms", 0)])
def test_times(text, ms):
    assert parse_time_ms(text) == pytest.approx(ms)


@pytest.mark.parametrize(
    ("text", "said"),
    [("20", "no unit"), ("20min", "the unit 'min'"), ("soon", "like 20ms"), ("1e300s", "more than a day")],
)
def test_what_is_no_time(text, said):
    with pytest.raises(ConfigError, match=said):
        parse_time_ms(text)


def test_rates_are_shown_as_they_are_written():
    assert [human_rate(rate) for rate in (5e6, 8e5, 1.5e9, 300)] == [
        "5 Mbit/s",
        "800 kbit/s",
        "1.5 Gbit/s",
        "300 bit/s",
    ]


def test_every_segment_of_a_payload_has_its_headers():
    one = SEGMENT_BYTES - MESSAGE_BYTES
    assert wire_bytes(one) == SEGMENT_BYTES + SEGMENT_HEADER_BYTES
    assert wire_bytes(one + 1) == SEGMENT_BYTES + 1 + 2 * SEGMENT_HEADER_BYTES


def test_a_link_takes_the_bytes_over_the_rate():
    link = Link(uplink=1e6, downlink=2e6, rtt_ms=10)
    assert link.up_ms(1000) == pytest.approx(wire_bytes(1000) * 8 / 1e6 * 1e3)
    assert link.down_ms(1000) == pytest.approx(link.up_ms(1000) / 2)
    way = over_link(link, "split", "layer2", board_ms=3, up_bytes=1000, server_ms=2, answer_bytes=500)
    assert way.total_ms == pytest.approx(3 + link.up_ms(1000) + 10 + 2 + link.down_ms(500))
    assert way.as_dict()["total_ms"] == pytest.approx(way.total_ms, abs=1e-3)


def test_the_downlink_is_the_uplink_where_none_is_given():
    assert PlanSettings(uplink="2mbit").link == Link(2e6, 2e6, 20)
    assert PlanSettings(uplink="2mbit", downlink="8mbit", rtt="5ms").link == Link(2e6, 8e6, 5)
    assert str(PlanSettings(uplink="2mbit", downlink="8mbit").link) == "2 Mbit/s up, 8 Mbit/s down, round trip 20 ms"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"uplink": "5"}, "no unit"),
        ({"rtt": "5mbit"}, "the unit 'mbit'"),
        ({"keep": 1.5}, "keep"),
        ({"slowdown": 0}, "slowdown"),
        ({"slowdown": float("inf")}, "slowdown"),
        ({"uplnk": "5mbit"}, "did you mean 'uplink'"),
    ],
)
def test_settings_that_cannot_be(options, said):
    with pytest.raises(ConfigError, match=said):
        from_mapping(PlanSettings, options, "recipe.toml")


def way(name, total, *, link=0.0, detail="x", up=100):
    return Way(name, detail, total - link, up, link, 0)


def test_a_split_that_is_the_fastest_is_the_answer():
    found = decide([way("local", 50), way("image", 30, link=25), way("split", 20, link=15, detail="layer2")])
    assert found.split
    assert found.why == "Split at layer2: 10 ms before sending the image (x)."


def test_running_locally_is_the_answer_where_the_link_alone_takes_longer():
    found = decide([way("local", 5), way("image", 30, link=25), way("split", 12, link=10, detail="layer2")])
    assert not found.split
    assert found.best.name == "local"
    assert found.why == (
        "Do not split: running locally takes 5 ms; the best split (layer2) takes 12 ms, 2 ms on the board, 10 ms on the "
        "link, 0 ms on the server; its link alone takes longer than the whole network here."
    )
    assert found.best_split.detail == "layer2"


def test_running_locally_is_the_answer_where_the_head_takes_as_long():
    found = decide([way("local", 20), way("split", 25, link=3, detail="layer4")])
    assert found.why.endswith("takes 25 ms, 22 ms on the board, 3 ms on the link, 0 ms on the server.")


def test_sending_the_image_is_the_answer_where_the_head_costs_more_than_it_saves():
    found = decide([way("local", 90), way("image", 30, link=25, detail="webp", up=200), way("split", 35, link=20)])
    assert found.why.startswith("Do not split: sending the image (webp) takes 30 ms; the best split (x) takes 35 ms")
    assert found.why.endswith("on the server.")
    found = decide([way("image", 30, link=20), way("split", 35, link=22)])
    assert found.why.endswith("it sends no fewer bytes than the image.")


def test_of_equals_the_simpler_one_is_taken():
    assert decide([way("split", 10), way("image", 10), way("local", 10)]).best.name == "local"


def test_without_anything_measured_nothing_is_chosen():
    found = decide([])
    assert found.best is None
    assert not found.split
    assert "Nothing could be measured" in found.why
    assert "no split can be compared" in decide([way("local", 10)]).why
