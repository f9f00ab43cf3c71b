"""``narrowcast stream --masks``: the files that it writes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image as Pillow

from narrowcast.cli.answers import write_masks
from narrowcast.head.results import FrameTimes, Result
from narrowcast.transport.contract import Placement
from narrowcast.transport.tasks import MAIN, Segmentation


@pytest.mark.parametrize(
    ("mask", "classes", "mode"),
    [
        (np.array([[0, 1, 255]], np.uint8), 256, "L"),
        (np.array([[0, 256, 299]], np.int32), 300, "I;16"),
        (np.array([[0, 32_768, 65_535]], np.int32), 65_536, "I;16"),
    ],
)
def test_maps_of_any_number_of_classes_are_files_of_their_class_numbers(tmp_path, mask, classes, mode):
    whole = Placement(source=(1, 3), resized=(1, 3), inset=(0, 0), cropped=(0, 0), visible=(1, 3), input=(1, 3))
    answer = Segmentation(mask, [f"class {number}" for number in range(classes)], whole, (1, 3))
    result = Result(0, {}, None, 0, 0, FrameTimes(), 0.0, whole, answers={MAIN: answer})
    source = tmp_path / "photos" / "street.jpg"
    assert write_masks(result, tmp_path / "maps", source, source.parent) == [str(tmp_path / "maps" / "street.png")]
    with Pillow.open(tmp_path / "maps" / "street.png") as written:
        assert written.mode == mode
        assert np.array_equal(np.asarray(written), mask)
