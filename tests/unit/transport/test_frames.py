"""Image files and raw camera layouts."""

from __future__ import annotations

import io
from struct import pack

import numpy as np
import pytest
from PIL import Image

from narrowcast.transport.contract import MAX_SIDE
from narrowcast.transport.errors import FrameError
from narrowcast.transport.frames import read_image, to_rgb

PICTURE = np.zeros((6, 10, 3), np.uint8)
PICTURE[:3, :5] = (250, 10, 20)
PICTURE[:3, 5:] = (10, 240, 20)
PICTURE[3:, :5] = (10, 20, 230)


def saved(picture: Image.Image, **options) -> bytes:
    """A picture as file bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    """The stored pixels are turned so that applying the tag gives the picture back."""
    undo = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: np.swapaxes(a, 0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.swapaxes(np.rot90(a, 2), 0, 1),
        8: lambda a: np.rot90(a, 3),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(np.ascontiguousarray(undo(PICTURE))), format="png", exif=exif)
    assert np.array_equal(read_image(data), PICTURE)


def test_a_photograph_with_tags_that_nobody_can_write_is_turned_all_the_same():
    """A camera's resolution unit, stored as text."""
    tags = pack(">HHI", 0x0112, 3, 1) + b"\0\6\0\0" + pack(">HHI", 0x0128, 2, 2) + b"2\0\0\0"
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + pack(">H", 2) + tags + bytes(4)
    assert read_image(saved(Image.fromarray(PICTURE), format="jpeg", exif=exif)).shape == (10, 6, 3)


@pytest.mark.parametrize("most", [4095, 65535])
def test_gray_of_16_bits_is_scaled_in_portable_maps_too(most):
    data = b"P5\n2 1\n%d\n" % most + pack(">2H", (most + 1) // 2, most)
    assert read_image(data)[0, :, 0].tolist() == [128, 255]


def test_a_side_that_no_contract_takes_is_said(tmp_path):
    Image.new("RGB", (MAX_SIDE + 1, 1)).save(tmp_path / "strip.png")
    with pytest.raises(FrameError, match=rf"strip.png has {MAX_SIDE + 1} x 1 pixels; a side has {MAX_SIDE} at most"):
        read_image(tmp_path / "strip.png")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1", "LA"])
def test_every_ordinary_mode_becomes_rgb(mode):
    format = "jpeg" if mode == "CMYK" else "png"
    frame = read_image(saved(Image.fromarray(PICTURE).convert(mode), format=format))
    assert frame.shape == (6, 10, 3)
    assert frame.dtype == np.uint8


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 60).astype(np.uint16).reshape(6, 10)
    frame = read_image(saved(Image.fromarray(ramp), format="png"))
    assert np.array_equal(frame[..., 0], (ramp >> 8).astype(np.uint8))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cannot be read"),
        (b"not an image at all", "cannot be read"),
        (saved(Image.fromarray(PICTURE), format="png")[:60], "cannot be read"),
        (saved(Image.fromarray(np.tile(PICTURE, (20, 20, 1))), format="jpeg")[:700], "cannot be read"),
        (saved(Image.new("F", (4, 4)), format="tiff"), "no range"),
    ],
    ids=["empty", "text", "truncated png", "truncated jpeg", "float"],
)
def test_bad_files_are_frame_errors(data, said):
    with pytest.raises(FrameError, match=said):
        read_image(data)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FrameError, match="nowhere.jpg: no such file"):
        read_image(tmp_path / "nowhere.jpg")


def test_the_size_is_checked_before_pixels_are_decoded():
    with pytest.raises(FrameError, match="1000 x 1000 pixels; the limit is 999999"):
        read_image(saved(Image.new("1", (1000, 1000)), format="png"), max_pixels=999_999)


@pytest.mark.parametrize("layout", ["bgr", "rgba", "bgra", "rgb"])
def test_channel_orders(layout):
    order = {"bgr": [2, 1, 0], "rgba": [0, 1, 2, 0], "bgra": [2, 1, 0, 0], "rgb": [0, 1, 2]}[layout]
    assert np.array_equal(to_rgb(PICTURE[..., order], layout), PICTURE)


def test_gray():
    gray = PICTURE[..., 0]
    for frame in (gray, gray[..., None]):
        assert (to_rgb(frame, "gray") == gray[..., None]).all()


def nv12(luma: int, u: int, v: int) -> np.ndarray:
    """A frame of one colour, 4 x 6 pixels."""
    frame = np.empty((6, 6), np.uint8)
    frame[:4] = luma
    frame[4:] = np.tile([u, v], 6).reshape(2, 6)
    return frame


# 8-bit limited-range codes of 100 % colour bars: ITU-R BT.601 and BT.709
@pytest.mark.parametrize(
    ("matrix", "codes", "rgb"),
    [
        ("bt601", (235, 128, 128), (255, 255, 255)),
        ("bt601", (16, 128, 128), (0, 0, 0)),
        ("bt601", (81, 90, 240), (255, 0, 0)),
        ("bt601", (145, 54, 34), (0, 255, 0)),
        ("bt601", (41, 240, 110), (0, 0, 255)),
        ("bt709", (63, 102, 240), (255, 0, 0)),
        ("bt709", (173, 42, 26), (0, 255, 0)),
        ("bt709", (32, 240, 118), (0, 0, 255)),
    ],
)
def test_nv12_colour_bars(matrix, codes, rgb):
    found = to_rgb(nv12(*codes), "nv12", matrix=matrix)
    assert found.shape == (4, 6, 3)
    assert np.abs(found.astype(int) - rgb).max() <= 2


def test_nv12_full_range():
    assert to_rgb(nv12(255, 128, 128), "nv12", full_range=True).max() == 255
    red = to_rgb(nv12(76, 85, 255), "nv12", full_range=True)  # JPEG's own codes of pure red
    assert np.abs(red.astype(int) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize(
    ("frame", "layout"),
    [
        (np.zeros((5, 6), np.uint8), "nv12"),
        (np.zeros((6, 5), np.uint8), "nv12"),
        (np.zeros((6, 6, 3), np.uint8), "nv12"),
        (np.zeros((0, 4), np.uint8), "nv12"),
        (np.zeros((4, 4), np.uint8), "bgr"),
        (np.zeros((4, 4, 3), np.uint8), "bgra"),
        (np.zeros((4, 4, 3), np.uint8), "gray"),
        (np.zeros((4, 4, 3), np.float32), "rgb"),
    ],
)
def test_arrays_of_another_layout_are_refused(frame, layout):
    with pytest.raises(FrameError):
        to_rgb(frame, layout)
