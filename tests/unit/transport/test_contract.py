"""The input contract: geometry, resampling, layouts, and the way back."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from narrowcast.transport import contract as contracts
from narrowcast.transport.contract import InputContract
from narrowcast.transport.errors import ConfigError, FrameError, MissingDependencyError
from narrowcast.transport.structs import from_mapping

SIZES = st.integers(8, 200)


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture without sharp edges, uint8 [height, width, 3]."""
    rough = np.random.default_rng(seed).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC))


def torchvision_resize_and_crop(frame: np.ndarray, scale: int, size: int, filter: str) -> np.ndarray:
    """torchvision.transforms.Resize(scale) and CenterCrop(size) on a Pillow image, from its documentation and source."""
    height, width = frame.shape[:2]
    short, long = min(height, width), max(height, width)
    new_long = int(scale * long / short)
    target = (scale, new_long) if width >= height else (new_long, scale)
    resized = Image.fromarray(frame).resize((target[1], target[0]), Image.Resampling[filter.upper()])
    top, left = int(round((target[0] - size) / 2.0)), int(round((target[1] - size) / 2.0))
    return np.asarray(resized.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (33, 47), (20, 91), (7, 300), (32, 32)])
@pytest.mark.parametrize("filter", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_center_crop_is_torchvisions(shape, filter, crop):
    frame = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    contract = InputContract(size=(32, 32), crop=crop, interpolation=filter)
    expected = torchvision_resize_and_crop(frame, int(32 / crop), 32, filter)
    assert np.array_equal(contract.prepare(frame).image, expected)


@pytest.mark.parametrize("shape", [(3, 500), (500, 3), (48, 64)])
@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_of_a_strip_that_would_be_scaled_to_gigabytes_only_what_is_seen_is_scaled(monkeypatch, shape, crop):
    """Nearly the same pixels: a cut through a source pixel lies a little elsewhere."""
    frame, size = smooth(*shape), InputContract(size=(32, 32), crop=crop)
    whole = size.prepare(frame).image
    monkeypatch.setattr(contracts, "MAX_RESIZED_PIXELS", 0)
    part = size.prepare(frame).image
    assert part.shape == whole.shape
    assert np.abs(part.astype(int) - whole).max() <= 2
    monkeypatch.undo()
    assert InputContract(size=(224, 224)).prepare(np.zeros((1, 16384, 3), np.uint8)).image.shape == (224, 224, 3)


def test_a_frame_of_the_contracts_size_passes_unchanged():
    frame = smooth(24, 40)
    prepared = InputContract(size=(24, 40)).prepare(frame)
    assert np.array_equal(prepared.image, frame)
    assert prepared.image.flags.c_contiguous


def test_bgr_frames_are_told_apart_by_layout_not_guessed():
    """A BGR camera's frame goes through to_rgb; the contract's colour order is the network's business."""
    from narrowcast.transport.frames import to_rgb

    frame = smooth(30, 44)
    contract = InputContract(size=(16, 16), color="bgr")
    assert np.array_equal(contract.prepare(to_rgb(frame[..., ::-1], "bgr")).image, contract.prepare(frame).image)


@given(SIZES, SIZES, st.integers(8, 64), st.integers(8, 64))
@settings(max_examples=60, deadline=None)
def test_letterbox_shows_the_whole_frame_and_fills_the_rest(height, width, rows, columns):
    contract = InputContract(size=(rows, columns), fit="letterbox", fill=(1, 2, 3))
    frame = np.full((height, width, 3), 200, np.uint8)
    image, place = contract.prepare(frame)
    top, left = place.inset
    inside = np.zeros((rows, columns), bool)
    inside[top : top + place.visible[0], left : left + place.visible[1]] = True
    assert (image[inside] == 200).all()
    assert (image[~inside] == (1, 2, 3)).all()
    assert place.visible == place.resized
    aspect = place.resized[1] / place.resized[0]
    assert abs(aspect - width / height) <= (1 + width / height) / min(place.resized)


@given(SIZES, SIZES, st.sampled_from(["center-crop", "letterbox", "stretch"]), st.sampled_from([1.0, 0.9]))
@settings(max_examples=60, deadline=None)
def test_points_and_boxes_go_there_and_back(height, width, fit, crop):
    place = InputContract(size=(48, 64), fit=fit, crop=crop).placement(height, width)
    points = np.random.default_rng(0).uniform(0, 1, (20, 2)) * (width, height)
    assert np.allclose(place.points_to_source(place.points_to_input(points)), points)
    boxes = np.concatenate([points[:10], points[10:]], 1)
    boxes = np.stack(
        [boxes[:, [0, 2]].min(1), boxes[:, [1, 3]].min(1), boxes[:, [0, 2]].max(1), boxes[:, [1, 3]].max(1)], 1
    )
    assert np.allclose(place.boxes_to_source(place.boxes_to_input(boxes)), boxes)


@pytest.mark.parametrize("fit", ["center-crop", "letterbox", "stretch"])
@pytest.mark.parametrize("shape", [(60, 100), (100, 60), (37, 53)])
def test_a_box_drawn_in_the_source_is_found_again_through_the_network(fit, shape):
    """A red square is found in the prepared image; its box, mapped back, is where the square was drawn."""
    height, width = shape
    frame = np.zeros((*shape, 3), np.uint8)
    top, left, side = height // 2 - 8, width // 2 - 8, 16
    frame[top : top + side, left : left + side] = (255, 0, 0)
    image, place = InputContract(size=(96, 96), fit=fit).prepare(frame)
    seen = image[..., 0].astype(int) - image[..., 1] > 127
    rows, columns = np.nonzero(seen)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    found = place.boxes_to_source(box)
    assert np.abs(found - [left, top, left + side, top + side]).max() <= 1.0


@pytest.mark.parametrize("fit", ["center-crop", "letterbox", "stretch"])
def test_a_mask_comes_back_to_the_source(fit):
    frame = np.zeros((70, 110, 3), np.uint8)
    frame[:, 55:] = 255
    contract = InputContract(size=(64, 64), fit=fit, fill=(0, 0, 0))
    image, place = contract.prepare(frame)
    mask = (image[..., 0] > 127).astype(np.uint8)
    back = place.mask_to_source(mask, (64, 64), outside=9)
    assert back.shape == (70, 110)
    shown = back != 9
    assert (back[shown] == (frame[..., 0] > 127)[shown]).mean() > 0.97
    assert shown.all() == (fit != "center-crop")
    quarter = place.mask_to_source(mask[::4, ::4], (64, 64), outside=9)
    assert (quarter[shown] == (frame[..., 0] > 127)[shown]).mean() > 0.9


def test_boxes_are_clipped_to_the_source():
    place = InputContract(size=(32, 32), fit="letterbox").placement(10, 100)
    assert place.boxes_to_source([0, 0, 32, 32]).tolist() == [0, 0, 100, 10]


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        [[1, 2, 3]],
        None,
    ],
    ids=["gray", "rgba", "float", "empty", "list", "none"],
)
def test_what_is_no_frame_is_refused_with_what_was_seen(frame):
    with pytest.raises(FrameError, match=r"frame"):
        InputContract(size=(8, 8)).prepare(frame)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": [0, 4]}, "height and width"),
        ({"size": [4, 99999]}, "height and width"),
        ({"crop": 0.0}, "crop"),
        ({"std": [1, 0, 1]}, "std"),
        ({"range": [1, 0]}, "range"),
        ({"range": [float("nan"), 1]}, r"range is \[nan, 1.0\]; its entries are finite"),
        ({"range": [0, float("inf")]}, "range is .* finite"),
        ({"mean": [0, float("nan"), 0]}, "mean is .* finite"),
        ({"std": [1, 1, float("inf")]}, "std is .* finite"),
        ({"fill": [1, 2, 300]}, "fill"),
        ({"fit": "cover"}, "cover"),
        ({"colour": "rgb"}, "did you mean 'color'"),
    ],
)
def test_a_contract_that_cannot_be_says_so(change, said):
    with pytest.raises(ConfigError, match=said):
        from_mapping(InputContract, {"size": [8, 8], **change}, "recipe.toml")


def test_resizing_needs_pillow_and_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    contract = InputContract(size=(8, 8))
    assert contract.prepare(np.zeros((8, 8, 3), np.uint8)).image.shape == (8, 8, 3)
    with pytest.raises(MissingDependencyError, match=r"narrowcast\[images\]"):
        contract.prepare(np.zeros((9, 8, 3), np.uint8))


def test_pillow_is_not_loaded_before_it_is_needed():
    code = "import sys, narrowcast.transport.contract, narrowcast.transport.frames; print('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
