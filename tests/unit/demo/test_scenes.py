"""Rendered scenes: the same for a seed, boxes around what the masks show, labels that tools read, targets that decode."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image as Pillow

pytest.importorskip("sklearn", reason="scikit-learn, which has the digits, is not installed")

from narrowcast.compiler.judges import Boxes, match
from narrowcast.demo import scene_teachers as teachers
from narrowcast.demo.scenes import DIGIT_NAMES, KINDS, MASK_NAMES, SCENE_SIDE, SceneRenderer, save_scenes
from narrowcast.transport.tasks import DetectTask
from narrowcast.transport.tasks.boxes import decode_boxes


@pytest.fixture(scope="module")
def scenes():
    return SceneRenderer(test=True).render(40, seed=5)


def test_the_same_seed_gives_the_same_scenes(scenes):
    again = SceneRenderer(test=True).render(40, seed=5)
    assert np.array_equal(scenes.frames, again.frames)
    assert np.array_equal(scenes.masks, again.masks)
    assert not np.array_equal(scenes.frames, SceneRenderer(test=True).render(40, seed=6).frames)


def test_test_scenes_show_other_digits(scenes):
    training, test = SceneRenderer(test=False), SceneRenderer(test=True)
    ours, theirs = ({one.tobytes() for one in r._sources.digits} for r in (training, test))
    assert not ours & theirs


def test_boxes_are_tight_around_the_masks(scenes):
    assert {len(boxes) for boxes in scenes.boxes} <= {1, 2, 3}
    assert {int(label) for labels in scenes.labels for label in labels} == set(range(len(KINDS)))
    for boxes, labels, mask in zip(scenes.boxes, scenes.labels, scenes.masks, strict=True):
        left = mask.copy()
        for (x1, y1, x2, y2), label in zip(boxes.astype(int), labels, strict=True):
            inside = mask[y1:y2, x1:x2]
            assert set(np.unique(inside)) <= {0, label + 1}
            ink = inside > 0
            assert ink[0].any()
            assert ink[-1].any()
            assert ink[:, 0].any()
            assert ink[:, -1].any()
            left[y1:y2, x1:x2] = 0
        assert not left.any()


def test_scenes_are_saved_as_people_keep_them(scenes, tmp_path):
    save_scenes(scenes, tmp_path)
    table = json.loads((tmp_path / "annotations.json").read_text())
    assert [category["name"] for category in table["categories"]] == DIGIT_NAMES
    assert len(table["images"]) == 40
    assert sum(len(boxes) for boxes in scenes.boxes) == len(table["annotations"])
    first = table["annotations"][0]
    x, y, width, height = first["bbox"]
    assert [x, y, x + width, y + height] == scenes.boxes[0][0].tolist()
    assert np.array_equal(np.asarray(Pillow.open(tmp_path / "masks" / "00003.png")), scenes.masks[3])
    assert np.array_equal(np.asarray(Pillow.open(tmp_path / "images" / "00003.png")), scenes.frames[3])
    assert scenes.masks.max() < len(MASK_NAMES)


def test_what_the_detector_is_asked_for_decodes_to_the_boxes(scenes):
    """Its targets, given to the product's decoder as if the network had said them, are the scene's boxes."""
    task = DetectTask(
        classes=DIGIT_NAMES, strides=list(teachers.STRIDES), activation="none", score_threshold=0.5,
        scores=["s0", "s1"], boxes=["b0", "b1"], centerness=[],
    )  # fmt: skip
    frames = []
    for boxes, labels in zip(scenes.boxes, scenes.labels, strict=True):
        classes, distances = teachers.targets_of(boxes, labels, SCENE_SIDE)
        outputs, start = {}, 0
        for k, stride in enumerate(teachers.STRIDES):
            grid = SCENE_SIDE // stride
            rows = slice(start, start + grid * grid)
            scores = np.zeros((len(KINDS), grid * grid), np.float32)
            there = np.flatnonzero(classes[rows] >= 0)
            scores[classes[rows][there], there] = 1
            outputs[f"s{k}"] = scores.reshape(-1, grid, grid)
            outputs[f"b{k}"] = distances[rows].T.reshape(4, grid, grid)
            start += grid * grid
        found = decode_boxes(task, outputs, (SCENE_SIDE, SCENE_SIDE))
        frames.append((Boxes(found[0].astype(float), found[2], found[1]), Boxes(boxes, labels)))
    assert match(frames, len(KINDS), 100).figure() > 0.99


@pytest.mark.parametrize("kind", ["detector", "segmenter"])
def test_the_teachers_learn(kind):
    training = SceneRenderer(test=False).render(64, seed=0)
    losses = []
    train = teachers.train_detector if kind == "detector" else teachers.train_segmenter
    net = train(training, epochs=5, seed=0, advance=lambda count, figures: losses.append(figures["loss"]))
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    assert not net.training
