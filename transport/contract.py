"""The input contract: how a frame becomes the network's input, and how results find their way back.

Preprocessing that differs between training and the board is the commonest silent loss of accuracy in the field. So the
recipe's ``[input]`` is frozen in the bundle, and this one implementation is used for training, evaluation, the server's
image path and the board. It ends at ``uint8 [H, W, 3]`` RGB; colour order, range, mean and standard deviation are applied
inside the compiled network, from the same contract.

Geometry and resampling are those of torchvision's ``Resize`` + ``CenterCrop`` on Pillow images (integer sizes, antialiased),
bit for bit. Pillow is loaded only where a frame has to be resampled: a camera that delivers
the contract's size needs none.
"""

from __future__ import annotations

import zlib
from math import floor, isfinite
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from narrowcast.transport.errors import FrameError, MissingDependencyError
from narrowcast.transport.structs import Settings

Image = npt.NDArray[np.uint8]
Fit = Literal["center-crop", "letterbox", "stretch", "free"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

MAX_SIDE = 16384
MAX_RESIZED_PIXELS = 64_000_000
# A free size is so many times ``multiple_of`` at most: a packet has a byte for each side.
MAX_UNITS = 255


class FreeSize(NamedTuple):
    """How far inputs may differ in size.

    Attributes:
        most: height and width of the largest, pixels.
        multiple: what both sides are a multiple of, pixels.
    """

    most: tuple[int, int]
    multiple: int


class InputContract(Settings, frozen=True):
    """The recipe's ``[input]``.

    Attributes:
        size: height and width of the network's input, pixels; with ``free``, of the crops that training sees.
        fit: ``center-crop`` scales the shorter side and cuts the rest off, ``letterbox`` scales the longer side and fills
            up, ``stretch`` scales both. ``free`` leaves every frame its own size and aspect: it is scaled down where it is
            larger than ``max_size``, and filled up at the right and at the bottom to ``multiple_of``.
        crop: with ``center-crop``, the part of the shorter side that stays (timm's ``crop_pct``).
        interpolation: the resampling filter, by Pillow's name.
        color: the channel order that the network was trained on. Frames are always given as RGB.
        range: what pixel values 0 and 255 become before mean and std.
        mean: subtracted per channel, in the network's channel order, after ``range``.
        std: divided by per channel.
        fill: RGB of what is filled up, 0..255.
        max_size: with ``free``: height and width of the largest input, pixels.
        multiple_of: with ``free``: what both sides of an input are a multiple of, pixels; at least the network's stride.
    """

    size: tuple[int, int]
    fit: Fit = "center-crop"
    crop: float = 1.0
    interpolation: Interpolation = "bilinear"
    color: Literal["rgb", "bgr"] = "rgb"
    range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    fill: tuple[int, int, int] = (114, 114, 114)
    # Not null where they are missing, but missing: contracts of one size have the bytes that they always had.
    max_size: tuple[int, int] | msgspec.UnsetType = msgspec.UNSET
    multiple_of: Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)] | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        if not all(1 <= side <= MAX_SIDE for side in self.size):
            raise ValueError(f"size is {list(self.size)}; height and width lie in 1..{MAX_SIDE}")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop is {self.crop}; it is the part of the shorter side that stays, in (0, 1]")
        for name, values in (("range", self.range), ("mean", self.mean), ("std", self.std)):
            if not all(map(isfinite, values)):  # TOML has nan and inf; a manifest, which is JSON, has not
                raise ValueError(f"{name} is {list(values)}; its entries are finite numbers")
        if not all(s > 0 for s in self.std):
            raise ValueError(f"std is {list(self.std)}; every entry is above 0")
        if self.range[0] >= self.range[1]:
            raise ValueError(f"range is {list(self.range)}; the first is below the second")
        if not all(0 <= v <= 255 for v in self.fill):
            raise ValueError(f"fill is {list(self.fill)}; RGB lies in 0..255")
        self._check_free()

    def _check_free(self) -> None:
        most, multiple = self.max_size, self.multiple_of
        if self.fit != "free":
            if most is not msgspec.UNSET or multiple is not msgspec.UNSET:
                raise ValueError(f'max_size and multiple_of go with fit = "free"; fit is {self.fit!r}')
            return
        if isinstance(most, msgspec.UnsetType) or isinstance(multiple, msgspec.UnsetType):
            raise ValueError(  # noqa: TRY004  (a key is missing)
                'fit = "free" wants max_size (the largest input) and multiple_of (the network\'s stride)'
            )
        if self.crop != 1:
            raise ValueError(f'crop is {self.crop}; fit = "free" cuts nothing off')
        for name, sides in (("size", self.size), ("max_size", most)):
            if not all(1 <= side <= MAX_SIDE and side % multiple == 0 for side in sides):
                raise ValueError(f"{name} is {list(sides)}; height and width are multiples of {multiple} (multiple_of)")
        if self.size[0] > most[0] or self.size[1] > most[1]:
            raise ValueError(f"size is {list(self.size)}, more than max_size, {list(most)}")
        if max(most) > MAX_UNITS * multiple:
            raise ValueError(f"max_size is {list(most)}; a side is at most {MAX_UNITS} times multiple_of, {multiple}")

    @property
    def free(self) -> FreeSize | None:
        """How far inputs may differ in size; None where all have one."""
        if isinstance(self.max_size, msgspec.UnsetType) or isinstance(self.multiple_of, msgspec.UnsetType):
            return None
        return FreeSize(self.max_size, self.multiple_of)

    def placement(self, height: int, width: int) -> Placement:
        """Where a source image of ``height`` x ``width`` pixels comes to lie in the network's input."""
        return _PLACE[self.fit](self, height, width)

    def prepare(self, frame: Image) -> Prepared:
        """A frame as the network's input.

        Args:
            frame: uint8 ``[H, W, 3]``, RGB, any size (see :mod:`narrowcast.transport.frames` for other layouts).

        Returns:
            ``image`` uint8 ``[*placement.input, 3]``, contiguous, and the ``placement`` that leads back.

        Raises:
            FrameError: not such an array.
            MissingDependencyError: it must be resampled, and Pillow is not installed.
        """
        _check(frame)
        place = self.placement(frame.shape[0], frame.shape[1])
        if place.resized == frame.shape[:2] == place.input:
            return Prepared(np.ascontiguousarray(frame), place)
        same = place.resized == frame.shape[:2] and self.fit == "free"
        inside = frame if same else _resample(frame, place, self.interpolation)
        if inside.shape[:2] == place.input:
            return Prepared(inside, place)
        return Prepared(self._filled(inside, place.input, place.inset), place)

    def training_view(self, frame: Image) -> Image:
        """A frame as training sees it, uint8 ``[size[0], size[1], 3]``.

        Where sizes are fixed, what :meth:`prepare` gives; where they are free, a crop of that at the frame's own scale,
        filled up where the frame is smaller. Its place is drawn by the frame's bytes: the same whenever it is asked for.

        Raises:
            FrameError, MissingDependencyError: see :meth:`prepare`.
        """
        view: Image = self.training_crop(self.prepare(frame).image[None])[0]
        return view

    def training_crop(self, frames: Image) -> Image:
        """What :meth:`prepare` gave for frames of one size, uint8 ``[T, H, W, 3]``, as training sees it: ``[T, *size, 3]``.

        One place for all of them, drawn by the first one's bytes: what moves in a clip is what moved before the camera.
        """
        if self.free is None:
            return frames
        drawn = zlib.crc32(frames[0].data)
        spare = [max(0, have - want) for have, want in zip(frames.shape[1:3], self.size, strict=True)]
        top, left = (drawn & 0xFFFF) % (spare[0] + 1), (drawn >> 16) % (spare[1] + 1)
        crop = frames[:, top : top + self.size[0], left : left + self.size[1]]
        if crop.shape[1:3] == self.size:
            return np.ascontiguousarray(crop)
        return np.stack([self._filled(one, self.size) for one in crop])

    def _filled(self, inside: Image, size: tuple[int, int], inset: tuple[int, int] = (0, 0)) -> Image:
        image = np.empty((*size, 3), np.uint8)
        image[:] = self.fill
        top, left = inset
        image[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        return image


class Placement(NamedTuple):
    """Where the source image lies in the network's input; all in pixels, coordinates at pixel edges.

    Attributes:
        source: height and width of the source image.
        resized: height and width that the whole source image is scaled to.
        inset: top and left of the scaled image in the input (letterbox).
        cropped: top and left of the input in the scaled image (center-crop).
        visible: height and width of the part of the scaled image that the input shows.
        input: height and width of the network's input.
    """

    source: tuple[int, int]
    resized: tuple[int, int]
    inset: tuple[int, int]
    cropped: tuple[int, int]
    visible: tuple[int, int]
    input: tuple[int, int]

    @property
    def scale(self) -> tuple[float, float]:
        """Source pixels per input pixel, vertical and horizontal."""
        return self.source[0] / self.resized[0], self.source[1] / self.resized[1]

    @property
    def origin(self) -> tuple[float, float]:
        """The input's top left corner in source pixels (negative under a letterbox), y and x."""
        down, across = self.scale
        return (self.cropped[0] - self.inset[0]) * down, (self.cropped[1] - self.inset[1]) * across

    def points_to_source(self, points: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Points ``[..., 2]`` (x, y) in the input as points in the source image."""
        (down, across), (top, left) = self.scale, self.origin
        return np.asarray(points, np.float64) * (across, down) + (left, top)

    def points_to_input(self, points: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Points ``[..., 2]`` (x, y) in the source image as points in the input."""
        (down, across), (top, left) = self.scale, self.origin
        return (np.asarray(points, np.float64) - (left, top)) / (across, down)

    def boxes_to_source(self, boxes: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Boxes ``[..., 4]`` (x1, y1, x2, y2) in the input as boxes in the source image, clipped to it."""
        boxes = np.asarray(boxes, np.float64)
        corners = self.points_to_source(boxes.reshape(*boxes.shape[:-1], 2, 2))
        return np.clip(corners, 0, (self.source[1], self.source[0])).reshape(boxes.shape)

    def boxes_to_input(self, boxes: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Boxes ``[..., 4]`` (x1, y1, x2, y2) in the source image as boxes in the input, not clipped."""
        boxes = np.asarray(boxes, np.float64)
        return self.points_to_input(boxes.reshape(*boxes.shape[:-1], 2, 2)).reshape(boxes.shape)

    def mask_to_source(self, mask: npt.NDArray[Any], input_size: tuple[int, int], outside: int = 0) -> npt.NDArray[Any]:
        """A map over the input as a map over the source image, by nearest neighbour.

        Args:
            mask: ``[h, w, ...]``, at any resolution of the input (a quarter-size mask is fine).
            input_size: the contract's height and width.
            outside: the value where the input does not show the source.

        Returns:
            ``[source height, source width, ...]`` of the mask's dtype.
        """
        rows, row_seen = self._nearest(0, mask.shape[0], input_size[0])
        columns, column_seen = self._nearest(1, mask.shape[1], input_size[1])
        full = mask[rows[:, None], columns[None, :]]
        full[~(row_seen[:, None] & column_seen[None, :])] = outside
        return full

    def mask_to_input(self, mask: npt.NDArray[Any], input_size: tuple[int, int], outside: int = 0) -> npt.NDArray[Any]:
        """A map over the source image as a map over the input, by nearest neighbour.

        Args:
            mask: ``[source height, source width, ...]``.
            input_size: the contract's height and width.
            outside: the value where the input shows no source (the bars of a letterbox).

        Returns:
            ``[input_size[0], input_size[1], ...]`` of the mask's dtype.
        """
        found = [
            (np.arange(input_size[axis]) + 0.5) * self.scale[axis] + self.origin[axis] for axis in (0, 1)
        ]  # the centres of the input's pixels, in source pixels
        seen = [(centres >= 0) & (centres < extent) for centres, extent in zip(found, self.source, strict=True)]
        rows, columns = (
            np.clip(np.floor(centres), 0, extent - 1).astype(np.intp)
            for centres, extent in zip(found, self.source, strict=True)
        )
        full: npt.NDArray[Any] = mask[rows[:, None], columns[None, :]]
        full[~(seen[0][:, None] & seen[1][None, :])] = outside
        return full

    def _nearest(self, axis: int, entries: int, extent: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """For each source row (column): the mask's row that shows it, and whether any does."""
        centres = (np.arange(self.source[axis]) + 0.5 - self.origin[axis]) / self.scale[axis]
        seen = (centres >= 0) & (centres < extent)
        return np.clip(np.floor(centres * entries / extent), 0, entries - 1).astype(np.intp), seen


class Prepared(NamedTuple):
    """A frame as the network takes it: ``image`` uint8 ``[H, W, 3]`` RGB, and where it came from."""

    image: Image
    placement: Placement


def _center_crop(contract: InputContract, height: int, width: int) -> Placement:
    down, across = floor(contract.size[0] / contract.crop), floor(contract.size[1] / contract.crop)
    # The side that must not fall short is scaled exactly; the other keeps the aspect, rounded down (torchvision).
    if height * across <= width * down:
        resized = down, max(across, int(down * width / height))
    else:
        resized = max(down, int(across * height / width)), across
    cropped = round((resized[0] - contract.size[0]) / 2.0), round((resized[1] - contract.size[1]) / 2.0)
    return Placement((height, width), resized, (0, 0), cropped, contract.size, contract.size)


def _letterbox(contract: InputContract, height: int, width: int) -> Placement:
    scale = min(contract.size[0] / height, contract.size[1] / width)
    resized = (
        min(contract.size[0], max(1, round(height * scale))),
        min(contract.size[1], max(1, round(width * scale))),
    )
    inset = (contract.size[0] - resized[0]) // 2, (contract.size[1] - resized[1]) // 2
    return Placement((height, width), resized, inset, (0, 0), resized, contract.size)


def _stretch(contract: InputContract, height: int, width: int) -> Placement:
    return Placement((height, width), contract.size, (0, 0), (0, 0), contract.size, contract.size)


def _free(contract: InputContract, height: int, width: int) -> Placement:
    assert contract.free is not None
    most, multiple = contract.free
    scale = min(1.0, most[0] / height, most[1] / width)
    resized = min(most[0], max(1, round(height * scale))), min(most[1], max(1, round(width * scale)))
    whole = -(-resized[0] // multiple) * multiple, -(-resized[1] // multiple) * multiple
    return Placement((height, width), resized, (0, 0), (0, 0), resized, whole)


_PLACE = {"center-crop": _center_crop, "letterbox": _letterbox, "stretch": _stretch, "free": _free}


def _check(frame: Any) -> None:
    if not isinstance(frame, np.ndarray):
        raise FrameError(f"a frame is a NumPy array, uint8 [H, W, 3]; this is a {type(frame).__name__}")
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise FrameError(
            f"a frame is uint8 [H, W, 3] in RGB; this is {frame.dtype} {list(frame.shape)} "
            "(narrowcast.transport.frames.to_rgb converts other layouts)"
        )
    if not all(1 <= side <= MAX_SIDE for side in frame.shape[:2]):
        raise FrameError(f"a frame of {frame.shape[0]} x {frame.shape[1]} pixels; sides lie in 1..{MAX_SIDE}")


def _resample(frame: Image, place: Placement, interpolation: Interpolation) -> Image:
    """The visible part of the scaled frame."""
    try:
        from PIL import Image as Pillow
    except ImportError as error:
        need = f"resizing {frame.shape[0]}x{frame.shape[1]} frames to {place.visible[0]}x{place.visible[1]}"
        raise MissingDependencyError(need, "Pillow", "pip install 'narrowcast[images]'", error) from error
    picture, resampling = Pillow.fromarray(np.ascontiguousarray(frame)), Pillow.Resampling[interpolation.upper()]
    (top, left), (height, width) = place.cropped, place.visible
    if place.resized[0] * place.resized[1] > MAX_RESIZED_PIXELS:  # a strip: the part that the input shows, alone
        (down, across), (rows, columns) = place.scale, place.source
        right, bottom = min(columns, (left + width) * across), min(rows, (top + height) * down)
        return np.asarray(picture.resize((width, height), resampling, (left * across, top * down, right, bottom)))
    resized = picture.resize((place.resized[1], place.resized[0]), resampling)
    return np.asarray(resized.crop((left, top, left + width, top + height)))
