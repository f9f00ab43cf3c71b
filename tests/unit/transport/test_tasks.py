"""What is made of outputs outside the graph: boxes against a slow and plain reference, maps, limits, hostile answers."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowcast.transport.bundle import OutputSpec
from narrowcast.transport.contract import InputContract
from narrowcast.transport.errors import ConfigError, TransportError
from narrowcast.transport.structs import Settings, from_mapping
from narrowcast.transport.tasks import (
    ClassifyTask,
    Detections,
    DetectTask,
    Segmentation,
    SegmentTask,
    Task,
    answer_of,
    check_outputs,
    finish,
    sent_outputs,
)
from narrowcast.transport.tasks.boxes import MAX_CANDIDATES, decode_boxes, suppress

SIZE = (32, 32)
HERE = InputContract(size=SIZE).placement(*SIZE)


class Holder(Settings, frozen=True):
    task: Task


def detect(**changes) -> DetectTask:
    given = {"classes": ["a", "b"], "strides": [8], "activation": "none", "centerness": [], **changes}
    return from_mapping(Holder, {"task": {"kind": "detect", **given}}, "test").task


def maps(scores: dict, boxes: dict, grid=(4, 4), classes: int = 2) -> dict:
    """Maps that are 0 but for ``{(class, row, column): score}`` and ``{(row, column): distances}``."""
    outputs = {"scores": np.zeros((classes, *grid), np.float32), "boxes": np.ones((4, *grid), np.float32)}
    for place, value in scores.items():
        outputs["scores"][place] = value
    for (row, column), sides in boxes.items():
        outputs["boxes"][:, row, column] = sides
    return outputs


def plain_iou(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inside = max(0.0, width) * max(0.0, height)
    areas = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    return inside / (areas - inside)


class TestDecoding:
    def test_a_cell_speaks_for_its_centre_in_strides(self):
        outputs = maps({(1, 1, 2): 0.9}, {(1, 2): (0.5, 1, 1.5, 0.25)})
        boxes, scores, classes = decode_boxes(detect(), outputs, SIZE)
        # the centre of row 1, column 2 at stride 8 is (20, 12)
        assert boxes.tolist() == [[20 - 4, 12 - 8, 20 + 12, 12 + 2]]
        assert scores.tolist() == pytest.approx([0.9])
        assert classes.tolist() == [1]

    def test_distances_in_pixels(self):
        outputs = maps({(0, 0, 0): 0.9}, {(0, 0): (1, 2, 3, 4)})
        assert decode_boxes(detect(unit="pixel"), outputs, SIZE)[0].tolist() == [[3, 2, 7, 8]]

    def test_boxes_end_where_the_input_ends(self):
        outputs = maps({(0, 3, 3): 0.9}, {(3, 3): (1, 1, 9, 9)})
        assert decode_boxes(detect(), outputs, SIZE)[0].tolist() == [[20, 20, 32, 32]]

    def test_sigmoid_and_centerness_by_the_geometric_mean(self):
        outputs = maps({(0, 1, 1): 2.0}, {}) | {"centerness": np.full((1, 4, 4), -1.0, np.float32)}
        task = detect(activation="sigmoid", centerness=["centerness"], score_threshold=0.4)
        wanted = math.sqrt(1 / (1 + math.exp(-2.0)) * 1 / (1 + math.exp(1.0)))
        assert decode_boxes(task, outputs, SIZE)[1].tolist() == pytest.approx([wanted], rel=1e-6)

    def test_extreme_logits_do_not_overflow(self):
        outputs = maps({(0, 1, 1): 1e30, (1, 2, 2): -1e30}, {})
        with np.errstate(all="raise"):
            assert decode_boxes(detect(activation="sigmoid", score_threshold=0.9), outputs, SIZE)[1].tolist() == [1.0]

    def test_what_is_no_number_or_has_no_area_is_left_out(self):
        outputs = maps(
            {(0, 0, 0): np.nan, (1, 0, 0): np.inf, (0, 1, 1): 0.9, (0, 2, 2): 0.8, (0, 3, 3): 0.7, (1, 1, 2): 0.6},
            {(1, 1): (np.nan, 1, 1, 1), (2, 2): (-1, 1, 1, 1), (3, 3): (np.inf,) * 4, (1, 2): (1, 1, 1, 1e9)},
        )
        boxes, scores, _ = decode_boxes(detect(), outputs, SIZE)
        assert scores.tolist() == pytest.approx([0.6])  # clipped first, what is infinite would be the whole image
        assert np.isfinite(boxes).all()

    def test_two_maps_of_two_strides(self):
        small, large = maps({(0, 0, 0): 0.5}, {}), maps({(1, 0, 0): 0.6}, {}, grid=(2, 2))
        outputs = {f"{k}_0": v for k, v in small.items()} | {f"{k}_1": v for k, v in large.items()}
        boxes, _, classes = decode_boxes(detect(strides=[8, 16]), outputs, SIZE)
        assert classes.tolist() == [1, 0]
        assert boxes.tolist() == [[0, 0, 24, 24], [0, 0, 12, 12]]

    def test_work_and_answers_are_bounded(self):
        random = np.random.default_rng(0)
        outputs = {
            "scores": random.random((50, 64, 64), np.float32),
            "boxes": random.random((4, 64, 64), np.float32),
        }
        task = detect(
            classes=[str(k) for k in range(50)], strides=[1], score_threshold=0.0, max_detections=7, nms_iou=1.0
        )
        boxes, scores, _ = decode_boxes(task, outputs, (64, 64))
        assert len(boxes) == 7
        assert scores.tolist() == np.sort(outputs["scores"].ravel())[::-1][:7].tolist()
        assert outputs["scores"].size > MAX_CANDIDATES


class TestSuppression:
    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.floats(0, 1), st.integers(1, 50))
    def test_against_the_plain_algorithm(self, seed, count, iou, most):
        random = np.random.default_rng(seed)
        corners = random.integers(0, 20, (count, 2))
        boxes = np.concatenate([corners, corners + random.integers(1, 12, (count, 2))], 1).astype(np.float32)
        classes = random.integers(0, 3, count)
        kept: list[int] = []
        for row in range(count):
            if all(classes[row] != classes[k] or plain_iou(boxes[row], boxes[k]) <= np.float32(iou) for k in kept):
                kept.append(row)
        assert suppress(boxes, classes, np.float32(iou), most).tolist() == kept[:most]

    def test_classes_do_not_suppress_each_other(self):
        boxes = np.array([[0, 0, 10, 10]] * 3, np.float32)
        assert suppress(boxes, np.array([0, 1, 0]), 0.5, 10).tolist() == [0, 1]


class TestWhatIsSent:
    def test_a_server_sends_boxes(self):
        outputs = {name: np.stack([one, one]) for name, one in maps({(0, 1, 1): 0.9}, {}).items()}
        frames = finish(detect(), outputs, SIZE)
        assert [{n: (str(v.dtype), v.shape) for n, v in frame.items()} for frame in frames] == [
            {"boxes": ("float32", (1, 4)), "scores": ("float32", (1,)), "labels": ("int32", (1,))}
        ] * 2
        spec = [OutputSpec(name="scores", dtype="float32", shape=[2, 4, 4])]
        assert [(o.name, o.shape, o.up_to) for o in sent_outputs(detect(max_detections=9), spec)] == [
            ("boxes", [9, 4], True),
            ("scores", [9], True),
            ("labels", [9], True),
        ]

    @pytest.mark.parametrize("task", [None, ClassifyTask(), detect(decode_on="device")])
    def test_or_the_outputs_as_they_are(self, task):
        outputs = {"x": np.arange(6).reshape(2, 3)}
        assert [frame["x"].tolist() for frame in finish(task, outputs, SIZE)] == [[0, 1, 2], [3, 4, 5]]
        spec = [OutputSpec(name="x", dtype="int64", shape=[3])]
        assert [tuple(o) for o in sent_outputs(task, spec)] == [("x", "int64", [3], False)]

    def test_boxes_are_the_same_wherever_they_are_chosen(self):
        outputs = maps({(0, 1, 1): 0.9, (1, 2, 3): 0.4}, {(1, 1): (0.5, 0.5, 1, 2)})
        place = InputContract(size=SIZE, fit="letterbox").placement(100, 50)
        sent = finish(detect(), {name: one[None] for name, one in outputs.items()}, SIZE)[0]
        on_server = answer_of(detect(), sent, place, SIZE)
        on_device = answer_of(detect(decode_on="device"), outputs, place, SIZE)
        assert isinstance(on_server, Detections)
        assert isinstance(on_device, Detections)
        assert [np.array_equal(a, b) for a, b in zip(on_server[:3], on_device[:3], strict=True)] == [True] * 3
        # 32 rows show 100, and 16 of the 32 columns show 50
        assert on_server.boxes[0].tolist() == pytest.approx([0, 25, 37.5, 87.5])
        assert on_server.names == ["a", "b"]

    def test_maps_of_classes(self):
        scores = np.zeros((1, 3, 4, 4), np.float32)
        scores[0, 2, :2] = 1
        task = SegmentTask(classes=["x", "y", "z"], output="out")
        sent = finish(task, {"out": scores}, SIZE)[0]["mask"]
        assert sent.dtype == np.uint8
        assert sent.tolist() == [[2] * 4] * 2 + [[0] * 4] * 2
        place = InputContract(size=SIZE, fit="stretch").placement(64, 10)
        answer = answer_of(task, {"mask": sent}, place, SIZE)
        assert isinstance(answer, Segmentation)
        assert answer.to_source().shape == (64, 10)
        assert (answer.to_source()[:32] == 2).all()
        assert not answer.to_source()[32:].any()

    def test_many_classes_take_wider_numbers(self):
        task = SegmentTask(classes=[str(k) for k in range(300)], output="out")
        assert finish(task, {"out": np.eye(300, dtype=np.float32)[None, :, 299:, None]}, SIZE)[0]["mask"].tolist() == [
            [299]
        ]
        assert sent_outputs(task, [OutputSpec(name="out", dtype="float32", shape=[300, 1, 1])])[0].dtype == "int32"


@pytest.mark.parametrize(
    ("task", "outputs", "message"),
    [
        (
            detect(),
            {"boxes": np.zeros((1, 4)), "scores": np.zeros(1), "labels": np.array([2])},
            "class 2; the bundle has 2",
        ),
        (detect(), {"boxes": np.zeros((1, 4)), "scores": np.zeros(1), "labels": np.array([-1])}, "the bundle has 2"),
        (detect(), {"boxes": np.zeros((2, 4)), "scores": np.zeros(1), "labels": np.array([1])}, "2, 1, 1"),
        (detect(), {"boxes": np.full((1, 4), np.nan), "scores": np.zeros(1), "labels": np.array([1])}, "finite"),
        (SegmentTask(classes=["a", "b"], output="o"), {"mask": np.array([[7]], np.uint8)}, "class 7"),
    ],
)
def test_answers_that_cannot_be_are_refused(task, outputs, message):
    with pytest.raises(TransportError, match=message):
        answer_of(task, outputs, HERE, SIZE)


class TestSettings:
    shapes = {"scores": [2, 4, 4], "boxes": [4, 4, 4]}

    def test_outputs_get_their_names(self):
        task = check_outputs(DetectTask(classes=["a", "b"], strides=[8]), self.shapes, SIZE, "[task]")
        assert (task.scores, task.boxes, task.centerness) == (["scores"], ["boxes"], [])
        assert check_outputs(task, self.shapes, SIZE, "[task]") == task
        segment = check_outputs(SegmentTask(classes=["a", "b"]), {"y": [2], "out": [2, 8, 8]}, SIZE, "[task]")
        assert segment.output == "out"

    @pytest.mark.parametrize(
        ("task", "shapes", "message"),
        [
            (DetectTask(classes=["a"], strides=[8]), shapes, r"'scores' is \[2, 4, 4\]; \[1, 4, 4\] is wanted"),
            (DetectTask(classes=["a", "b"], strides=[16]), shapes, r"\[2, 2, 2\] is wanted"),
            (detect(boxes=["boxs"]), shapes, "no output 'boxs'; did you mean 'boxes'"),
            (detect(centerness=["centre"]), shapes, "no output 'centre'"),
            (SegmentTask(classes=["a", "b"]), {"a": [2, 8, 8], "b": [2, 8, 8]}, "name the output"),
            (SegmentTask(classes=["a", "b"], output="c"), {"a": [3, 8, 8]}, "no output 'c'"),
            (SegmentTask(classes=["a", "b"], output="a"), {"a": [3, 8, 8]}, r"\[2, any, any\] is wanted"),
            (ClassifyTask(), {"a": [3, 8, 8]}, "no output .K. of class scores"),
            (ClassifyTask(classes=["a"]), {"a": [3]}, "1 classes; the network gives 3"),
        ],
    )
    def test_what_does_not_fit_is_told(self, task, shapes, message):
        with pytest.raises(ConfigError, match=message):
            check_outputs(task, shapes, SIZE, "[task]")

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({"kind": "detct", "classes": ["a"]}, "detct"),
            (
                {"kind": "detect", "classes": ["a"], "strides": [8], "scores": ["a", "b"]},
                "names 2 outputs; there are 1",
            ),
            ({"kind": "detect", "classes": ["a"], "strides": [8], "nms": 0.5}, "unknown key 'nms'"),
            ({"kind": "detect", "classes": ["a"], "strides": [8], "max_detections": 100_000}, "max_detections"),
            ({"kind": "segment", "classes": ["a"]}, "classes"),
        ],
    )
    def test_tables_that_cannot_be(self, table, message):
        with pytest.raises(ConfigError, match=message):
            from_mapping(Holder, {"task": table}, "recipe.toml")

    def test_a_task_survives_json(self):
        task = detect(strides=[8, 16], centerness=["c0", "c1"])
        assert msgspec.json.decode(msgspec.json.encode(task), type=Task) == task


@pytest.mark.parametrize("fit", ["center-crop", "letterbox", "stretch"])
@pytest.mark.parametrize("source", [(32, 32), (64, 128), (50, 31)])
def test_masks_find_their_way_into_the_input(fit, source):
    place = InputContract(size=(32, 48), fit=fit).placement(*source)
    rows, columns = np.mgrid[: source[0], : source[1]]
    mask = (rows * 1000 + columns).astype(np.int32)
    found = place.mask_to_input(mask, (32, 48), outside=-1)
    for row, column in [(0, 0), (31, 47), (15, 20), (31, 0)]:
        x, y = place.points_to_source((column + 0.5, row + 0.5))
        inside = 0 <= x < source[1] and 0 <= y < source[0]
        assert found[row, column] == (int(y) * 1000 + int(x) if inside else -1)
