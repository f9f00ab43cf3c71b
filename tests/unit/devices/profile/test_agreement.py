"""Whether two ways gave the same answer; what the bundle says of a way; frames."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from PIL import Image as Pillow
from support import bundles

from narrowcast.devices.errors import ProfileError
from narrowcast.devices.profile.accuracy import accuracy_of
from narrowcast.devices.profile.agreement import agreement, metric_of
from narrowcast.devices.profile.frames import load_frames
from narrowcast.devices.profile.runners import WayInfo
from narrowcast.transport.contract import InputContract
from narrowcast.transport.tasks import DetectTask, SegmentTask

MANIFEST = bundles.make().manifest


def vector(*values):
    return {"output": np.array(values, np.float32)}


def test_classes_agree_or_do_not():
    local = {0: vector(1, 2, 3), 1: vector(3, 2, 1), 2: vector(1, 3, 2)}
    found = agreement(MANIFEST, {0: vector(0, 0, 1), 1: vector(0, 0, 1), 5: vector(1, 0, 0)}, local)
    assert (found.metric, found.share, found.frames) == ("top-1", 0.5, 2)
    assert agreement(MANIFEST, {9: vector(1, 2, 3)}, local).why_not == "no frame was answered by both"
    assert "did not run on the board" in agreement(MANIFEST, local, None).why_not


def test_maps_agree_by_pixels():
    task = SegmentTask(output="output", classes=["a", "b"])
    manifest = msgspec.structs.replace(MANIFEST, task=task)
    one, other = {"mask": np.array([[0, 1], [1, 1]])}, {"mask": np.array([[0, 1], [0, 0]])}
    assert agreement(manifest, {0: one}, {0: other}).share == 0.5
    assert metric_of(manifest) == "pixels"


def boxes(*rows):
    """x1, y1, x2, y2, label."""
    table = np.array(rows, np.float32).reshape(-1, 5)
    return {"boxes": table[:, :4], "labels": table[:, 4].astype(np.int32), "scores": np.ones(len(table), np.float32)}


@pytest.mark.parametrize(
    ("mine", "share"),
    [
        (boxes((0, 0, 10, 10, 0), (20, 20, 40, 40, 1)), 1.0),
        (boxes((0, 0, 10, 8, 0), (20, 20, 40, 40, 1)), 1.0),  # IoU 0.8
        (boxes((0, 0, 10, 4, 0), (20, 20, 40, 40, 1)), 0.5),  # IoU 0.4
        (boxes((0, 0, 10, 10, 1), (20, 20, 40, 40, 1)), 0.5),  # another class
        (boxes((0, 0, 10, 10, 0), (0, 0, 10, 10, 0), (20, 20, 40, 40, 1)), 0.8),  # one box has one partner
        (boxes(), 0.0),
    ],
)
def test_boxes_agree_by_overlap_and_class(mine, share):
    manifest = msgspec.structs.replace(MANIFEST, task=DetectTask(classes=["a", "b"], strides=[8]))
    local = boxes((0, 0, 10, 10, 0), (20, 20, 40, 40, 1))
    assert agreement(manifest, {0: mine}, {0: local}).share == pytest.approx(share)
    assert agreement(manifest, {0: boxes()}, {0: boxes()}).share == 1.0


def test_other_outputs_agree_by_their_error():
    outputs = [msgspec.structs.replace(MANIFEST.outputs[0], shape=[2, 2])]
    manifest = msgspec.structs.replace(MANIFEST, outputs=outputs)
    local = {0: {"output": np.array([[1.0, 2.0], [3.0, 4.0]])}}
    assert agreement(manifest, local, local).share == 1.0
    assert agreement(manifest, {0: {"output": np.full((2, 2), 2.5)}}, local).share == 0.0
    assert agreement(manifest, {0: {"output": np.zeros((3, 2))}}, local).share == 0.0


def test_what_the_bundle_says_of_each_way():
    figures = {
        "metric": "top-1",
        "levels": [{"level": 0, "agreement": 0.8, "mean_packet_bytes": 100, "output_error": 0.1}],
        "precisions": {"int8": {"levels": [{"level": 0, "agreement": 0.7}]}},
        "whole": {"precisions": {"fp32": {"ms": 1.0}, "int8": {"ms": 1.0, "agreement": 0.9}}},
        "exit": {"levels": [{"level": 0, "agreement": 0.5}, {"level": 1, "agreement": 0.6}]},
    }

    def of(kind, **fields):
        return accuracy_of(figures, WayInfo("x", kind, "x", **fields)).agreement

    assert of("split", level=0, precision="fp32") == 0.8
    assert of("split", level=0, precision="int8") == 0.7
    assert of("split", level=1, precision="fp32") is None
    assert (of("local", precision="fp32"), of("local", precision="int8")) == (1.0, 0.9)
    assert of("exit", precision="fp32") == 0.6
    assert "narrowcast evaluate" in accuracy_of(figures, WayInfo("x", "image", "x")).why_not
    for odd in ({"levels": "x"}, {"levels": [3]}, {"levels": [{"level": 0, "agreement": "high"}]}, {"whole": [1]}, {}):
        assert accuracy_of(odd, WayInfo("x", "split", "x", level=0, precision="fp32")).why_not is not None


def test_frames_come_in_one_order_however_often(tmp_path):
    for k in range(4):
        (tmp_path / f"{k % 2}").mkdir(exist_ok=True)
        Pillow.fromarray(np.full((6, 8, 3), 10 * k, np.uint8)).save(tmp_path / f"{k % 2}" / f"{k}.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    frames = load_frames(tmp_path, MANIFEST.input, limit=10)
    assert [int(frames.get(k)[0][0, 0, 0]) for k in range(6)] == [0, 20, 10, 30, 0, 20]
    assert frames.get(0)[1] is None
    assert "broken.jpg" in frames.warnings[0]
    assert len(load_frames(tmp_path, MANIFEST.input, limit=2)) <= 2
    read = load_frames(tmp_path / "1" / "1.png", MANIFEST.input, limit=9, read_each=True)
    image, capture_ms = read.get(7)
    assert image.shape == (6, 8, 3)
    assert capture_ms > 0


def test_frames_that_are_not_there(tmp_path):
    with pytest.raises(ProfileError, match="no such file or folder"):
        load_frames(tmp_path / "none", MANIFEST.input, limit=9)
    with pytest.raises(ProfileError, match="no images"):
        load_frames(tmp_path, MANIFEST.input, limit=9)
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(ProfileError, match="none of 1 images can be read"):
        load_frames(tmp_path, MANIFEST.input, limit=9)
    drawn = load_frames(None, InputContract(size=(8, 8)), limit=9)
    assert "were drawn" in drawn.warnings[0]
