"""Figures of an evaluation that follow from its single images."""

from __future__ import annotations

import csv
import json
from functools import cache

import numpy as np
import pytest

from narrowcast.compiler.codecs import CODECS, available, codecs_named
from narrowcast.compiler.comparison import add_statistics
from narrowcast.compiler.errors import DataError
from narrowcast.compiler.plots import check_plot, write_plot
from narrowcast.compiler.scores import Evaluation, Outcome, Score, check_measurable
from narrowcast.transport.errors import ConfigError, MissingDependencyError

IMAGES = 200


def right(count: int) -> np.ndarray:
    """The first ``count`` of the images right: what is right for one is right for every better one."""
    return np.arange(IMAGES) < count


def evaluation(*rows, labelled: bool = True) -> Evaluation:
    """Of (way, setting, scale, mean bytes, images right); bytes alternate by 10 around their mean."""
    found = Evaluation("model", 3, IMAGES, labelled)
    for way, setting, scale, size, count in rows:
        sizes = None if size is None else size + 10 * (-1) ** np.arange(IMAGES)
        truth = right(count) if labelled else None
        found.scores.append(
            Score(way, setting, size, count / IMAGES if labelled else None, count / IMAGES, None, scale=scale)
        )
        found.outcomes.append(Outcome(truth, right(count), sizes))
    return found


@cache
def measured(**options) -> Evaluation:
    """A split at a quarter of JPEG's bytes; WebP between them; AVIF too poor to be compared."""
    found = evaluation(
        ("teacher", None, None, None, 180),
        ("split", 0, None, 250, 80),
        ("split", 1, None, 500, 120),
        ("split", 2, None, 1000, 160),
        ("jpeg", 10, 1.0, 1000, 80),
        ("jpeg", 50, 1.0, 2000, 120),
        ("jpeg", 90, 1.0, 4000, 160),
        ("jpeg", 90, 0.5, 4100, 40),
        ("webp", 10, 1.0, 500, 80),
        ("webp", 90, 1.0, 2000, 160),
        ("avif", 10, 1.0, 100, 20),
        ("png", None, 1.0, 9000, 180),
        **options,
    )
    add_statistics(found)
    return found


def test_every_figure_has_its_interval():
    found = measured()
    for score in found.scores:
        low, high = score.accuracy_interval
        error = (score.accuracy * (1 - score.accuracy) / IMAGES) ** 0.5
        assert low <= score.accuracy <= high
        assert high - low == pytest.approx(2 * 1.96 * error, rel=0.2)
        assert score.agreement_interval == score.accuracy_interval  # the same images, the same draws
        if score.way == "teacher":
            assert score.mean_bytes_interval is None
        else:
            low, high = score.mean_bytes_interval
            assert high - low == pytest.approx(2 * 1.96 * 10 / IMAGES**0.5, rel=0.2)


def test_differences_from_the_teacher_are_paired():
    found = measured()
    teacher, png = found.of("teacher")[0], found.of("png")[0]
    assert (teacher.accuracy_gain, teacher.accuracy_gain_interval) == (None, None)
    assert (png.accuracy_gain, png.accuracy_gain_interval) == (0, (0, 0))  # right on the very same images
    level = found.of("split")[2]
    assert level.accuracy_gain == pytest.approx(-0.1)
    low, high = level.accuracy_gain_interval
    assert high - low == pytest.approx(2 * 1.96 * (0.1 * 0.9 / IMAGES) ** 0.5, rel=0.2)  # 20 images differ, 180 do not


def test_the_front_is_of_the_lossy_codecs_alone():
    found = measured()
    on_front = [(score.way, score.setting) for score in found.scores if score.on_front]
    assert on_front == [("webp", 10), ("webp", 90), ("avif", 10)]
    assert [score.mean_bytes for score in found.front("best")] == [100, 500, 2000]
    assert [score.setting for score in found.front("jpeg")] == [10, 50, 90]
    assert [score.mean_bytes for score in found.of("jpeg")] == [1000, 2000, 4000, 4100]


def test_a_point_of_another_scale_makes_no_curve_dearer():
    """Small images at 1900 bytes just belong to the front of all; a line through them would pass above 1000 to 2000."""
    found = evaluation(
        ("split", 0, None, 100, 80), ("split", 1, None, 200, 160),
        ("webp", 10, 1.0, 1000, 80), ("webp", 90, 1.0, 2000, 160), ("webp", 90, 0.5, 1900, 84),
    )  # fmt: skip
    add_statistics(found)
    assert [score.mean_bytes for score in found.front("webp")] == [1000, 1900, 2000]
    assert found.bytes_at_accuracy("webp", 0.6) == pytest.approx(1000 * 2**0.5)
    assert found.comparison("webp").bd_rate == found.comparison("best").bd_rate == pytest.approx(-0.9)


def test_rates_against_each_codec_and_the_best():
    found = measured()
    jpeg, webp, best = (found.comparison(way) for way in ("jpeg", "webp", "best"))
    assert jpeg.bd_rate == pytest.approx(-0.75)
    assert (jpeg.low, jpeg.high) == (0.4, 0.8)
    low, high = jpeg.bd_rate_interval
    assert low <= -0.75 <= high
    assert high - low < 0.1  # the same images for both: which are drawn moves both curves alike
    assert webp.bd_rate == best.bd_rate == pytest.approx(-0.5)
    assert jpeg.bytes_there == pytest.approx([1000, 2000, 4000])
    assert webp.bytes_there == pytest.approx([500, 1000, 2000])
    assert {(c.against, c.by) for c in found.comparisons} == {
        (way, by) for way in ("jpeg", "webp", "avif", "best") for by in ("accuracy", "agreement")
    }


def test_a_codec_that_reaches_nothing_of_the_split_has_no_rate():
    avif = measured().comparison("avif")
    assert (avif.bd_rate, avif.bd_rate_interval, avif.low, avif.high) == (None, None, None, None)
    assert avif.bytes_there == [None, None, None]


def test_an_interval_of_the_rate_wants_a_common_range_in_nearly_all_resamples():
    """The curves overlap in half a point of accuracy: in many resamples they do not."""
    found = evaluation(
        ("split", 0, None, 250, 40),
        ("split", 1, None, 500, 101),
        ("jpeg", 1, 1.0, 500, 100),
        ("jpeg", 9, 1.0, 900, 160),
    )
    found.outcomes[2] = Outcome(np.roll(right(100), 77), right(100), found.outcomes[2].sizes)
    add_statistics(found)
    jpeg = found.comparison("jpeg", "accuracy")
    assert jpeg.bd_rate is not None
    assert jpeg.bd_rate_interval is None


def test_without_labels_agreement_is_what_counts():
    found = measured(labelled=False)
    assert found.by == "agreement"
    assert {c.by for c in found.comparisons} == {"agreement"}
    assert found.comparison("jpeg").bd_rate == pytest.approx(-0.75)
    for score in found.scores:
        assert (score.accuracy, score.accuracy_interval, score.accuracy_gain) == (None, None, None)


def test_bytes_at_matched_accuracy():
    found = measured()
    assert found.bytes_at_accuracy("jpeg", 0.5) == pytest.approx(1000 * 2**0.5)
    assert found.bytes_at_accuracy("jpeg", 0.1) == pytest.approx(1000)
    assert found.bytes_at_accuracy("jpeg", 0.81) is None
    assert found.bytes_at_accuracy("best", 0.1, by="agreement") == pytest.approx(100)
    assert found.bytes_at_accuracy("nothing", 0.1) is None


def test_json_is_whole_and_has_no_single_images():
    data = json.loads(json.dumps(measured().as_dict()))
    assert "outcomes" not in data
    assert data["bootstrap"] == {"resamples": 1000, "confidence": 0.95, "seed": 0}
    assert data["scores"][1]["accuracy_interval"] == pytest.approx(measured().scores[1].accuracy_interval)
    assert [c["against"] for c in data["comparisons"]][:4] == ["jpeg", "webp", "avif", "best"]


def test_csv_has_a_row_for_each_score(tmp_path):
    found = measured()
    found.write_csv(tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found.scores)
    assert rows[0]["mean_bytes"] == rows[0]["mean_bytes_low"] == ""
    level = found.scores[1]
    assert float(rows[1]["accuracy_low"]) == level.accuracy_interval.low
    assert float(rows[1]["mean_bytes_high"]) == level.mean_bytes_interval.high
    assert [row["on_front"] for row in rows[8:11]] == ["1", "1", "1"]


@pytest.mark.parametrize(
    ("by", "there", "said"),
    [
        ("accuracy", {"labelled": False}, "accuracy wants labels"),
        ("agreement", {"teacher": False}, r"compile with \[export\] whole = true"),
        ("accuracy", {"classes": False}, "no output of m is class scores"),
    ],
)
def test_a_figure_that_cannot_be_measured(by, there, said):
    everything = {"labelled": True, "teacher": True, "classes": True}
    check_measurable(by, "m", **everything)
    with pytest.raises(DataError, match=said):
        check_measurable(by, "m", **{**everything, **there})


class TestPlot:
    def test_svg_names_every_curve_and_stays_the_same(self, tmp_path):
        found = measured()
        for name in ("a.svg", "b.svg"):
            write_plot(found, tmp_path / name)
        svg = (tmp_path / "a.svg").read_text()
        assert svg == (tmp_path / "b.svg").read_text()
        for text in ("narrowcast split", "JPEG", "WebP", "AVIF", "best of the codecs", "teacher 90.0 %", "accuracy, %"):
            assert f">{text}</text>" in svg

    def test_the_axis_names_the_task_s_figure(self, tmp_path):
        found = measured()
        found.metric = "mAP50"
        for by, said in (("accuracy", "mAP50, %"), ("agreement", "mAP50 to the teacher, %")):
            write_plot(found, tmp_path / "a.svg", by)
            assert f">{said}</text>" in (tmp_path / "a.svg").read_text()

    def test_png_by_agreement(self, tmp_path):
        from PIL import Image

        write_plot(measured(labelled=False), tmp_path / "a.PNG")
        with Image.open(tmp_path / "a.PNG") as picture:
            assert picture.format == "PNG"
            assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50

    def test_what_cannot_be_drawn(self, tmp_path, monkeypatch):
        with pytest.raises(ConfigError, match=r"ending '.pdf'; plots are .svg or .png files"):
            check_plot(tmp_path / "a.pdf")
        with pytest.raises(DataError, match="nothing to plot: model has no accuracy"):
            write_plot(measured(labelled=False), tmp_path / "a.svg", "accuracy")
        monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
        with pytest.raises(MissingDependencyError, match=r"a plot needs matplotlib.*narrowcast\[plots\]"):
            check_plot(tmp_path / "a.svg")


class TestCodecs:
    @pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
    def test_an_image_arrives_in_its_own_size(self, codec):
        if not codec.available:
            pytest.skip(f"the installed Pillow has no {codec.name}")
        image = np.linspace(0, 255, 40 * 30 * 3).reshape(40, 30, 3).astype(np.uint8)
        for quality in codec.qualities[::4]:
            for scale in codec.scales:
                arrived, size = codec.transcode(image, quality, scale)
                assert arrived.shape == image.shape
                assert arrived.dtype == np.uint8
                assert np.abs(arrived.astype(int) - image).mean() < 25
                assert size > 0
                assert np.array_equal(arrived, image) == (codec.name == "png")

    def test_smaller_images_and_lower_qualities_cost_less(self):
        image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
        (jpeg,) = codecs_named("jpeg")
        sizes = [[jpeg.transcode(image, quality, scale)[1] for quality in (90, 10)] for scale in (1.0, 0.5)]
        assert sizes[0][0] > sizes[0][1] > sizes[1][1]
        assert sizes[0][0] > sizes[1][0] > sizes[1][1]

    def test_a_codec_that_pillow_lacks_is_left_out_by_name(self):
        lacking = CODECS[1]._replace(name="jpeg9", feature="no such library")
        assert available([CODECS[0], lacking]) == ([CODECS[0]], ["jpeg9"])

    def test_codecs_by_name(self):
        assert [codec.name for codec in codecs_named("webp, jpeg")] == ["jpeg", "webp"]
        assert codecs_named(None) == list(CODECS)
        assert codecs_named("none") == []
        with pytest.raises(ConfigError, match=r"no image codec 'jpg' .there are png, .* did you mean 'jpeg'"):
            codecs_named("jpg")
