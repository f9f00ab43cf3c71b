"""Frames from what cameras and files deliver: everything becomes uint8 ``[H, W, 3]`` RGB, upright.

Image files go through Pillow (EXIF orientation applied, size bounded before any pixel is decoded). Raw layouts are
converted here; NV12 by the integer forms of ITU-R BT.601 and BT.709 (H.273, 8 bits).
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from narrowcast.transport.contract import MAX_SIDE, Image
from narrowcast.transport.errors import FrameError, MissingDependencyError

Layout = Literal["rgb", "bgr", "rgba", "bgra", "gray", "nv12"]
Matrix = Literal["bt601", "bt709"]

MAX_PIXELS = 64_000_000
# EXIF's orientation, and what turns a picture upright. Pillow's own exif_transpose writes all other tags anew as well, and
# fails on those that it cannot write, of which cameras leave many.
_ORIENTATION = 0x0112
_TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
_ORDER = {"rgb": (3, [0, 1, 2]), "bgr": (3, [2, 1, 0]), "rgba": (4, [0, 1, 2]), "bgra": (4, [2, 1, 0])}
# (Y gain, V to R, U to G, V to G, U to B), times 256, for luma in 16..235
_NV12_LIMITED = {"bt601": (298, 409, -100, -208, 516), "bt709": (298, 459, -55, -136, 541)}
_NV12_FULL = {"bt601": (256, 359, -88, -183, 454), "bt709": (256, 403, -48, -120, 475)}


def read_image(source: str | Path | bytes, *, max_pixels: int = MAX_PIXELS) -> Image:
    """An image file, or its bytes, as uint8 ``[H, W, 3]`` RGB, turned upright by its EXIF orientation.

    Raises:
        FrameError: no such file, not an image, truncated, more than ``max_pixels`` pixels, or a side that no contract takes.
        MissingDependencyError: Pillow is not installed.
    """
    try:
        from PIL import Image as Pillow
    except ImportError as error:
        raise MissingDependencyError(
            "reading image files", "Pillow", "pip install 'narrowcast[images]'", error
        ) from error
    name = "an image" if isinstance(source, bytes) else str(source)
    try:
        with Pillow.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            if picture.width * picture.height > max_pixels:
                raise FrameError(f"{name} has {picture.width} x {picture.height} pixels; the limit is {max_pixels}")
            if max(picture.size) > MAX_SIDE:
                raise FrameError(f"{name} has {picture.width} x {picture.height} pixels; a side has {MAX_SIDE} at most")
            picture.load()  # a TIFF turns itself here
            turn = _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
            upright = picture if turn is None else picture.transpose(Pillow.Transpose[turn])
            # PNM of 16 bits, and PNG in older Pillows, come in 32 bits. Pillow would clip all of these, not scale.
            if upright.mode.startswith("I;16") or (upright.mode == "I" and picture.format in ("PPM", "PNG")):
                gray = np.clip(np.asarray(upright), 0, 0xFFFF).astype(np.uint16) >> 8
                return to_rgb(gray.astype(np.uint8), "gray")
            if upright.mode in ("I", "F"):
                raise FrameError(f"{name} has {upright.mode!r} pixels, which have no range; save it with 8 or 16 bits")
            return np.asarray(upright.convert("RGB"))
    except FrameError:
        raise
    except FileNotFoundError as error:
        raise FrameError(f"{name}: no such file") from error
    except Exception as error:  # Pillow's decoders raise many kinds on bad bytes
        raise FrameError(f"{name} cannot be read as an image: {error}") from error


def to_rgb(frame: npt.NDArray[Any], layout: Layout, *, matrix: Matrix = "bt601", full_range: bool = False) -> Image:
    """A raw frame as uint8 ``[H, W, 3]`` RGB.

    Args:
        frame: uint8. ``rgb``, ``bgr``: ``[H, W, 3]``; ``rgba``, ``bgra``: ``[H, W, 4]`` (alpha is dropped);
            ``gray``: ``[H, W]`` or ``[H, W, 1]``; ``nv12``: ``[H * 3 / 2, W]``, H and W even.
        layout: the layout.
        matrix: with ``nv12``, the colour matrix (bt601 for most cameras, bt709 for HD video).
        full_range: with ``nv12``, luma spans 0..255 (JPEG) instead of 16..235 (video).

    Raises:
        FrameError: the array is not of that layout.
    """
    if frame.dtype != np.uint8:
        raise FrameError(f"a raw frame is uint8; this is {frame.dtype}")
    if layout == "nv12":
        return _from_nv12(frame, matrix, full_range)
    if layout == "gray":
        plane = frame[..., 0] if frame.ndim == 3 and frame.shape[2] == 1 else frame
        if plane.ndim != 2:
            raise FrameError(f"a gray frame is [H, W] or [H, W, 1]; this is {list(frame.shape)}")
        return np.repeat(plane[..., None], 3, axis=2)
    channels, order = _ORDER[layout]
    if frame.ndim != 3 or frame.shape[2] != channels:
        raise FrameError(f"a frame in {layout} is [H, W, {channels}]; this is {list(frame.shape)}")
    return np.ascontiguousarray(frame[..., order])


def _from_nv12(frame: npt.NDArray[np.uint8], matrix: Matrix, full_range: bool) -> Image:
    if frame.ndim != 2 or frame.shape[0] % 3 or frame.shape[1] % 2 or not frame.size:
        raise FrameError(f"an nv12 frame is [H * 3 / 2, W] with H and W even; this is {list(frame.shape)}")
    height, width = frame.shape[0] * 2 // 3, frame.shape[1]
    gain, v_red, u_green, v_green, u_blue = (_NV12_FULL if full_range else _NV12_LIMITED)[matrix]
    luma = (frame[:height].astype(np.int32) - (0 if full_range else 16)) * gain + 128
    chroma = frame[height:].reshape(height // 2, width // 2, 2).astype(np.int32) - 128
    u, v = (chroma[..., k].repeat(2, axis=0).repeat(2, axis=1) for k in (0, 1))
    planes = luma + v_red * v, luma + u_green * u + v_green * v, luma + u_blue * u
    rgb: Image = np.clip(np.stack(planes, axis=2) >> 8, 0, 255).astype(np.uint8)
    return rgb
