"""Two runs against each other."""

from __future__ import annotations

import msgspec
import pytest
from support.runs import make_run, make_way

from narrowcast.devices.profile.figures import Agreement, Distribution, Energy, Estimate, WindowConditions
from narrowcast.devices.profile.schema import Link, LinkSettings, Run
from narrowcast.devices.report.compare import compare, least_from
from narrowcast.devices.report.entries import Entry
from narrowcast.transport.errors import ConfigError

replace = msgspec.structs.replace


def local(median: float = 20.0, **fields):
    return make_way("local", median, link=None, kind="local", **fields)


def split(median: float = 10.0, up: float = 200.0, **fields):
    return make_way("split-1@real", median, up, kind="split", level=1, **fields)


def compared(old: Run, new: Run, **least: float):
    return compare(Entry("old", old), Entry("new", new), least)


def found(comparison, way: str, key: str):
    return next(one for one in comparison.differences if (one.way, one.quantity.key) == (way, key))


def joules(value: float) -> Energy:
    figure = Estimate(value=value, low=0.97 * value, high=1.03 * value)
    return Energy(gross_joules_per_frame=figure, net_joules_per_frame=figure)


def test_a_run_against_itself_has_no_regression():
    comparison = compared(make_run(), make_run())
    assert comparison.regressions == []
    assert {one.outcome for one in comparison.differences} == {"same"}
    assert (comparison.gone, comparison.added, comparison.unlike) == ([], [], [])


def test_slower_beyond_noise_is_a_regression_and_slower_within_it_is_none():
    old = make_run([local(), split(10.0)])
    worse = compared(old, make_run([local(), split(12.0)]))
    assert [(one.way, one.quantity.key) for one in worse.regressions] == [("split-1@real", "latency_p50_ms")]
    assert found(worse, "split-1@real", "latency_p50_ms").change == pytest.approx(0.2)
    assert compared(old, make_run([local(), split(10.2)])).regressions == []
    assert compared(old, make_run([local(), split(8.0)])).regressions == []
    better = found(compared(old, make_run([local(), split(8.0)])), "split-1@real", "latency_p50_ms")
    assert better.outcome == "better"


def test_the_least_change_that_matters_can_be_set():
    old, new = make_run([local(), split(10.0)]), make_run([local(), split(12.0)])
    assert compared(old, new, latency_p50_ms=0.3).regressions == []
    assert least_from("latency=30, energy=2") == {
        "latency_p50_ms": 0.3, "gross_joules_per_frame": 0.02, "net_joules_per_frame": 0.02}  # fmt: skip
    assert least_from(None) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [("latnecy=3", "did you mean 'latency'"), ("latency", "no number"), ("latency=-1", "no number"),
     ("bytes=nan", "no number"), ("=3", "no figure ''")],
)  # fmt: skip
def test_a_least_change_that_cannot_be_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        least_from(text)


def test_energy_and_agreement():
    old = make_run([local(), replace(split(), energy=joules(1.0))])
    new = make_run(
        [local(), replace(split(), energy=joules(1.2), agreement=Agreement(metric="top-1", share=0.7, frames=400))]
    )
    worse = {one.quantity.key for one in compared(old, new).regressions}
    assert worse == {"gross_joules_per_frame", "net_joules_per_frame", "agreement"}


def test_an_agreement_without_an_interval_cannot_be_told():
    ways = [replace(split(), agreement=Agreement(metric="boxes", share=share, frames=400)) for share in (0.9, 0.5)]
    comparison = compared(*(make_run([local(), way]) for way in ways))
    one = found(comparison, "split-1@real", "agreement")
    assert (one.outcome, one.why) == ("cannot tell", "no interval in one of the runs")


def test_bytes_are_certain_for_the_same_frames_and_cannot_be_told_for_others():
    old, new = make_run([local(), split(up=200.0)]), make_run([local(), split(up=220.0)])
    assert [one.quantity.key for one in compared(old, new).regressions] == ["bytes_up"]
    other = replace(new, plan=replace(new.plan, frames_from="other photos"))
    comparison = compared(old, other)
    assert found(comparison, "split-1@real", "bytes_up").outcome == "cannot tell"
    assert any("frames from" in line for line in comparison.unlike)


def test_bytes_are_those_of_the_frames_that_both_runs_sent():
    """The faster board comes to frames that the slower one has no time for, and that are larger; one of them failed here."""

    def run(mean: float, *sizes: float | None):
        way = split(up=mean)
        return make_run([local(), replace(way, bytes=replace(way.bytes, packet_up_by_frame=list(sizes)))])

    old, faster = run(150.0, 100.0, 200.0, None), run(275.0, 100.0, 200.0, 400.0, 400.0)
    one = found(compared(old, faster), "split-1@real", "bytes_up")
    assert (one.outcome, one.old.value, one.new.value) == ("same", 150.0, 150.0)
    larger = found(compared(old, run(150.0, 100.0, 206.0)), "split-1@real", "bytes_up")
    assert (larger.outcome, larger.old.value, larger.new.value) == ("worse", 150.0, 153.0)
    for other in (run(275.0), run(275.0, None, None, 300.0)):  # an older record; no frame that both have
        one = found(compared(old, other), "split-1@real", "bytes_up")
        assert (one.outcome, one.why) == ("cannot tell", "the runs do not tell of the same frames")


def test_a_way_that_fails_now_is_a_regression_though_it_has_no_figures():
    dead = replace(split(), latency=Distribution(frames=0), median_ms=None, failed={"UNAVAILABLE": 400}, bytes=None)
    comparison = compared(make_run(), make_run([local(), dead]))
    worse = {one.quantity.key: one for one in comparison.regressions}
    assert worse.keys() == {"latency_p50_ms", "answered"}
    assert "400 of 400 frames failed" in worse["latency_p50_ms"].why


def test_a_figure_that_only_one_run_has_is_told():
    measured = make_run([local(), replace(split(), energy=joules(1.0))])
    one = found(compared(measured, make_run()), "split-1@real", "gross_joules_per_frame")
    assert (one.outcome, one.why, one.change) == ("cannot tell", "only in the first run", None)


def test_ways_that_only_one_run_has():
    comparison = compared(make_run(), make_run([local(), make_way("jpeg-50@real", 9.0, 900.0, kind="image", codec="jpeg",
                                                                  quality=50)]))  # fmt: skip
    assert comparison.gone == ["split, level 1 over the real link"]
    assert comparison.added == ["JPEG 50 over the real link"]


def test_what_makes_runs_unlike_is_listed():
    old = make_run(links=[link(1000.0)])
    new = replace(
        make_run(links=[link(2000.0)]), complete=False, why_incomplete="interrupted",
        conditions=WindowConditions(throttled=["under-voltage"], power_mode="15W"),
        model=replace(old.model, release=2), board=replace(old.board, model="another", libraries={"onnxruntime": "9"}),
    )  # fmt: skip
    lines = " | ".join(compared(old, new).unlike)
    for expected in ("tiny, release 1, then tiny, release 2", "another", "onnxruntime 9", "not complete: interrupted",
                     "under-voltage", "power mode: none, then 15W", "link real was set otherwise"):  # fmt: skip
        assert expected in lines


def test_another_precision_or_backend_of_a_way_is_told():
    old = make_run(ways=[local(precision="int8", backend="onnxruntime"), split()])
    new = make_run(ways=[local(precision="fp32", backend="tensorrt"), split()])
    assert "local: int8 on onnxruntime, then fp32 on tensorrt" in compared(old, new).unlike
    assert not compared(old, old).unlike


def link(kbit: float) -> Link:
    settings = LinkSettings(preset="real", up_kbit=kbit, down_kbit=kbit, delay_ms=1.0, jitter_ms=0.0, loss_percent=0.0,
                            how="a relay")  # fmt: skip
    return Link(name="real", kind="emulated", address="127.0.0.1:1", settings=settings)


def test_it_goes_into_json():
    data = msgspec.json.decode(msgspec.json.encode(compared(make_run(), make_run([local(), split(12.0)])).as_dict()))
    assert (data["format"], data["schema"], data["regressions"]) == ("narrowcast-comparison", 1, 1)
    worse = [one for one in data["differences"] if one["outcome"] == "worse"]
    assert worse[0]["old"] == {"value": 10.0, "low": 9.8, "high": 10.2}
