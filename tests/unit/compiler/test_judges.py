"""mAP50 and mIoU: exact on small cases, equal to the libraries that everybody uses, the same through any resampling."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image as Pillow

from narrowcast.compiler import judges
from narrowcast.compiler import samples as samples_of
from narrowcast.compiler.bootstrap import Resampler
from narrowcast.compiler.errors import DataError
from narrowcast.compiler.judges import IGNORE, Boxes, ClassJudge, DetectionJudge, SegmentationJudge, judge_for, match
from narrowcast.compiler.samples import Hits, Matches, Overlaps, restore
from narrowcast.compiler.truth import find_truth, read_mask
from narrowcast.transport.contract import InputContract
from narrowcast.transport.errors import MissingDependencyError
from narrowcast.transport.tasks import ClassifyTask, DetectTask, SegmentTask

pytest.importorskip("pycocotools", reason="pycocotools is not installed")

DETECT = DetectTask(classes=["cat", "dog"], strides=[8], scores=["scores"], boxes=["boxes"], centerness=[])
SEGMENT = SegmentTask(classes=["sky", "sea", "sand"], output="out")
SIZE = (32, 32)
A, B = [0.0, 0, 10, 10], [20.0, 20, 30, 30]
BESIDE = [0.0, 0, 10, 20]  # IoU 0.5 with A
APART = [0.0, 0, 10, 21]


def found(*rows) -> Boxes:
    """From (box, label, score)."""
    return Boxes(
        np.array([r[0] for r in rows], float).reshape(-1, 4), np.array([r[1] for r in rows], int),
        np.array([r[2] for r in rows], float),
    )  # fmt: skip


def wanted(*rows, crowd=None) -> Boxes:
    boxes, labels = np.array([r[0] for r in rows], float).reshape(-1, 4), np.array([r[1] for r in rows], int)
    return Boxes(boxes, labels, None, None if crowd is None else np.array(crowd))


class TestMeanAveragePrecision:
    @pytest.mark.parametrize(
        ("detections", "truth", "precision"),
        [
            ([(A, 0, 0.9)], [(A, 0)], 1.0),
            ([(BESIDE, 0, 0.9)], [(A, 0)], 1.0),
            ([(APART, 0, 0.9)], [(A, 0)], 0.0),
            ([(A, 1, 0.9)], [(A, 0)], 0.0),
            ([], [(A, 0)], 0.0),
            ([(A, 0, 0.9), (A, 0, 0.8)], [(A, 0)], 1.0),  # the second is wrong, after all is found
            ([(B, 0, 0.9), (A, 0, 0.8)], [(A, 0)], 0.5),
            ([(A, 0, 0.9)], [(A, 0), (B, 0)], 51 / 101),  # recalls 0 to 0.5 of COCO's 101
            ([(A, 0, 0.9)], [(A, 0), (B, 1)], 0.5),
        ],
    )
    def test_by_hand(self, detections, truth, precision):
        samples = match([(found(*detections), wanted(*truth))], 2, 100)
        assert samples.figure() == pytest.approx(precision)
        assert samples.weighted(np.ones((1, 1)))[0] == pytest.approx(precision)

    def test_without_truth_there_is_no_figure(self):
        assert match([(found((A, 0, 0.9)), wanted())], 2, 100).figure() is None

    def test_crowds_are_neither_asked_for_nor_held_against(self):
        samples = match([(found((B, 0, 0.9), (A, 0, 0.5)), wanted((A, 0), (B, 0), crowd=[False, True]))], 2, 100)
        assert samples.figure() == pytest.approx(1.0)
        assert samples.hit.tolist() == [True]

    def test_the_weighted_figure_is_that_of_the_repeated_images(self):
        random = np.random.default_rng(3)

        def scene():
            corners = random.integers(0, 20, (random.integers(1, 5), 2))
            truth = np.concatenate([corners, corners + random.integers(4, 12, corners.shape)], 1).astype(float)
            labels = random.integers(0, 2, len(truth))
            guesses = truth + random.integers(-2, 3, truth.shape)
            sure = np.round(random.random(len(truth)), 1)  # ties
            return Boxes(guesses, np.where(random.random(len(labels)) < 0.7, labels, 1 - labels), sure), Boxes(
                truth, labels
            )

        scenes = [scene() for _ in range(12)]
        samples = match(scenes, 2, 100)
        assert samples.weighted(np.ones((1, 12)))[0] == pytest.approx(samples.figure(), abs=1e-12)
        weights = random.integers(0, 3, 12)
        repeated = [one for one, times in zip(scenes, weights, strict=True) for _ in range(times)]
        assert samples.weighted(weights[None].astype(float))[0] == pytest.approx(match(repeated, 2, 100).figure())
        assert samples.resampled(Resampler(12, resamples=20)).shape == (20,)

    def test_many_detections_take_bounded_memory(self, monkeypatch):
        """Parts of the resamples give the numbers that all of them at once give."""
        random = np.random.default_rng(5)
        labels = random.integers(0, 2, 300)
        hit = random.random(300) < 0.6
        truths = random.integers(20, 40, (10, 2))
        samples = Matches(np.sort(random.integers(0, 10, 300)), labels, random.random(300), hit, truths, 0.5)
        whole = samples.resampled(Resampler(10, resamples=50))
        shapes, precision = [], samples_of._average_precision

        def seen(weights, *rest):
            shapes.append(weights.shape)
            return precision(weights, *rest)

        monkeypatch.setattr(samples_of, "_average_precision", seen)
        monkeypatch.setattr(samples_of, "_PART_ENTRIES", 1000, raising=False)
        assert np.array_equal(samples.resampled(Resampler(10, resamples=50)), whole)
        assert sum(rows for rows, _ in shapes) == 2 * 50
        assert max(rows * detections for rows, detections in shapes) <= 1000

    def test_the_judge_takes_maps(self):
        outputs = {"scores": np.full((1, 2, 4, 4), -9.0, np.float32), "boxes": np.ones((1, 4, 4, 4), np.float32)}
        outputs["scores"][0, 1, 1, 1] = 3
        judge = DetectionJudge(DETECT, SIZE)
        answers = judge.answers(outputs)
        assert answers[0].boxes.tolist() == [[4, 4, 20, 20]]
        assert judge.truth(outputs)[0].labels.tolist() == [1]
        outputs["scores"][0, 1, 1, 1] = -0.1  # below agreement_score
        assert len(judge.truth(outputs)[0].labels) == 0
        assert judge.join([judge.compare(answers, [wanted(([4, 4, 20, 20], 1))])]).figure() == pytest.approx(1.0)


class TestMeanIoU:
    def test_by_hand(self):
        judge = SegmentationJudge(SEGMENT, (2, 2))
        got, truth = np.array([[0, 0], [1, 1]]), np.array([[0, 1], [1, 1]])
        samples = judge.join([judge.compare([got], [truth])])
        assert samples.inside.tolist() == [[1, 2, 0]]
        assert samples.union.tolist() == [[2, 3, 0]]
        assert samples.figure() == pytest.approx((1 / 2 + 2 / 3) / 2)

    def test_unlabelled_pixels_are_not_asked(self):
        judge = SegmentationJudge(SEGMENT, (1, 2))
        samples = judge.compare([np.array([[0, 2]])], [np.array([[0, IGNORE]])])
        assert samples.figure() == 1.0

    def test_small_maps_are_enlarged(self):
        judge = SegmentationJudge(SEGMENT, (4, 4))
        scores = np.zeros((1, 3, 2, 2), np.float32)
        scores[0, 1, 0] = 1
        assert judge.answers({"out": scores})[0].tolist() == [[1] * 4] * 2 + [[0] * 4] * 2

    def test_as_scikit_learn_has_it(self):
        metrics = pytest.importorskip("sklearn.metrics")
        random = np.random.default_rng(0)
        got, truth = random.integers(0, 3, (2, 6, 5, 7))
        truth[0, 0, :3] = IGNORE
        got, truth = np.where(got == 2, 1, got), np.where(truth == 2, 0, truth)  # nobody has the last class
        judge = SegmentationJudge(SEGMENT, (5, 7))
        samples = judge.join([judge.compare(got[:4], truth[:4]), judge.compare(got[4:], truth[4:])])
        asked = truth != IGNORE
        value = metrics.jaccard_score(truth[asked], got[asked], average="macro")
        assert samples.figure() == pytest.approx(value, abs=1e-6)
        weights = Resampler(6, resamples=5)
        drawn = next(weights.weights())
        again = [
            Overlaps(*(part.repeat(times.astype(int), 0) for part in (samples.inside, samples.union))).figure()
            for times in drawn
        ]
        assert samples.resampled(weights).tolist() == pytest.approx(again)


def test_every_kind_of_sample_is_kept_and_restored():
    kinds = [
        Hits(np.array([True, False])),
        Overlaps(np.array([[1, 2]]), np.array([[3, 4]])),
        match([(found((A, 0, 0.9)), wanted((A, 0)))], 2, 100),
        match([(found(), wanted())], 2, 100),
    ]
    for samples in kinds:
        again = restore(dict(samples.arrays()))
        assert type(again) is type(samples)
        assert again.figure() == samples.figure()
    assert restore({}) is None


def test_each_task_has_its_judge():
    assert isinstance(judge_for(None, SIZE), ClassJudge)
    assert isinstance(judge_for(ClassifyTask(), SIZE), ClassJudge)
    assert isinstance(judge_for(DETECT, SIZE), DetectionJudge)
    assert isinstance(judge_for(SEGMENT, SIZE), SegmentationJudge)
    assert isinstance(match([(found(), wanted())], 2, 1), Matches)


def test_a_missing_library_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools.coco", None)
    with pytest.raises(MissingDependencyError, match=r"narrowcast\[metrics\]"):
        judges.coco_tools()


@pytest.fixture
def folder(tmp_path):
    """Two images of 64 x 32 with boxes and masks."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    for name in ("a", "b"):
        Pillow.new("RGB", (32, 64)).save(images / f"{name}.png")
        Pillow.fromarray(np.full((64, 32), 1, np.uint8)).save(masks / f"{name}.png")
    table = {
        "images": [{"id": 7, "file_name": "a.png", "height": 64, "width": 32}, {"id": 8, "file_name": "b.png"}],
        "categories": [{"id": 3, "name": "dog"}, {"id": 4, "name": "owl"}],
        "annotations": [
            {"image_id": 7, "category_id": 3, "bbox": [2, 4, 10, 20], "iscrowd": 0},
            {"image_id": 7, "category_id": 4, "bbox": [2, 4, 10, 20]},
        ],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(table))
    return tmp_path


class TestLabels:
    place = InputContract(size=SIZE, fit="stretch").placement(64, 32)

    def test_boxes_in_the_inputs_pixels_by_category_name(self, folder):
        truth = find_truth(folder / "images", None, DETECT, None)
        assert [path.name for path in truth.files] == ["a.png", "b.png"]
        first, second = (truth.of(path, self.place) for path in truth.files)
        assert first.boxes.tolist() == [[2, 2, 12, 12]]
        assert first.labels.tolist() == [1]
        assert len(second.boxes) == 0

    def test_boxes_end_where_the_input_ends_as_detections_do(self, folder):
        """A crop shows the middle 32 rows of 64: rows 4 to 24 of the box are half seen, and the second box is not."""
        table = json.loads((folder / "annotations.json").read_text())
        table["annotations"] += [{"image_id": 7, "category_id": 3, "bbox": [0, 0, 32, 16], "iscrowd": 1}]
        table["annotations"] += [{"image_id": 7, "category_id": 4, "bbox": [40, 50, 4, 4]}]
        (folder / "annotations.json").write_text(json.dumps(table))
        truth = find_truth(folder / "images", None, DETECT, None)
        found = truth.of(truth.files[0], InputContract(size=SIZE).placement(64, 32))
        assert found.boxes.tolist() == [[2, 0, 12, 8]]
        assert (found.labels.tolist(), found.crowd.tolist()) == ([1], [False])

    def test_masks_in_the_inputs_pixels(self, folder):
        truth = find_truth(folder / "images", None, SEGMENT, None)
        assert (truth.of(truth.files[0], self.place) == 1).all()
        (folder / "masks" / "b.png").unlink()
        truth = find_truth(folder / "images", folder / "masks", SEGMENT, None)
        assert [path.name for path in truth.files] == ["a.png"]
        assert [path.name for path in truth.unlabelled] == ["b.png"]

    def test_images_that_a_table_does_not_list(self, folder):
        table = json.loads((folder / "annotations.json").read_text())
        assert find_truth(folder / "images", None, DETECT, None).unlabelled == []
        (folder / "annotations.json").write_text(json.dumps({**table, "images": table["images"][:1]}))
        assert find_truth(folder / "images", None, DETECT, None).unlabelled == [folder / "images" / "b.png"]
        classes = folder / "truth.csv"
        classes.write_text("file,label\n../images/b.png,0\n")
        found = find_truth(folder / "images", classes, None, 3)
        assert ([path.name for path in found.files], found.unlabelled) == (["b.png"], [folder / "images" / "a.png"])
        empty = folder / "empty"  # a table may list what lies elsewhere
        empty.mkdir()
        assert find_truth(empty, classes, None, 3).unlabelled == []

    def test_without_labels_there_are_images(self, folder):
        (folder / "annotations.json").unlink()
        truth = find_truth(folder / "images", None, DETECT, None)
        assert truth.of is None
        assert len(truth.files) == 2

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: "no JSON", "no table of boxes in COCO's form"),
            (lambda t: json.dumps({**t, "images": []}), "lists no images"),
            (lambda t: json.dumps({**t, "categories": [{"id": 3, "name": "owl"}]}), "none of the bundle's classes"),
            (lambda t: json.dumps({**t, "images": t["images"][1:]}), "box of image 7"),
        ],
    )
    def test_tables_that_are_none(self, folder, change, message):
        path = folder / "annotations.json"
        path.write_text(change(json.loads(path.read_text())))
        with pytest.raises(DataError, match=message):
            find_truth(folder / "images", path, DETECT, None)

    def test_masks_that_are_none(self, folder):
        with pytest.raises(DataError, match="no folder of masks"):
            find_truth(folder / "images", folder / "nothing", SEGMENT, None)
        with pytest.raises(DataError, match="no mask for any image"):
            find_truth(folder / "images", folder / "images" / "..", SEGMENT, None)
        mask = folder / "masks" / "a.png"
        Pillow.fromarray(np.full((64, 32), 9, np.uint8)).save(mask)
        with pytest.raises(DataError, match=r"class 9; the bundle has 0\.\.2"):
            read_mask(mask, 3)
        Pillow.new("RGB", (32, 64)).save(mask)
        with pytest.raises(DataError, match="mode RGB"):
            read_mask(mask, 3)
        mask.write_bytes(b"no image")
        with pytest.raises(DataError, match="cannot be read as a mask"):
            read_mask(mask, 3)
        Pillow.fromarray(np.full((3, 3), 1, np.uint8)).save(mask)
        truth = find_truth(folder / "images", None, SEGMENT, None)
        with pytest.raises(DataError, match="its image is"):
            truth.of(truth.files[0], self.place)

    def test_unlabelled_pixels(self, folder):
        Pillow.fromarray(np.full((64, 32), 255, np.uint8)).save(folder / "masks" / "a.png")
        assert (read_mask(folder / "masks" / "a.png", 3) == IGNORE).all()
