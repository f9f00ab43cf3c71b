"""A synthetic camera: a few frames of one scene, one after the other, made from a photograph.

There are no videos among training photographs, and yet tables that go by the frame before have to be fitted to frames that
follow one another. So a photograph is looked at through a window: the camera stands still or trembles, or pans and zooms a
little, the light changes by a few per cent, a piece of another photograph moves through the picture, and the sensor adds
its noise to each frame anew.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

Frames = npt.NDArray[np.uint8]
Scene = Literal["still", "tremble", "object", "pan"]
SCENES: tuple[Scene, ...] = get_args(Scene)

# How often each is drawn: cameras that stand still see mostly what they saw before.
SHARES: dict[Scene, float] = {"still": 0.3, "tremble": 0.2, "object": 0.4, "pan": 0.1}
# Grey levels of noise on a pixel, from a good sensor by day to a cheap one in the evening.
NOISE = (0.5, 4.0)
# Room around the window, as a part of a side, for what moves.
MARGIN = 0.1
# In pixels of a picture of 224 x 224, a frame.
_TREMBLE, _PAN, _OBJECT_SPEED = 0.5, (0.5, 4.0), (0.5, 6.0)
_OBJECT_SIDES = (0.12, 0.45)
_OBJECTS_BESIDES = 0.3
_LIGHT_CHANGES, _LIGHT = 0.3, 0.01
_NOMINAL_SIDE = 224


class Camera:
    """Films photographs; the same clips for the same seed.

    Args:
        seed: of everything random.
    """

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def clip(self, photo: Frames, other: Frames, count: int, scene: Scene | None = None) -> Frames:
        """Frames uint8 ``[count, H, W, 3]`` of ``photo``, through which a piece of ``other`` may move.

        Args:
            photo: the scene, uint8 ``[H, W, 3]``.
            other: where what moves is cut from, of the same shape.
            count: how many frames.
            scene: what happens; drawn by :data:`SHARES` if None.
        """
        random = self._random
        if scene is None:
            scene = SCENES[random.choice(len(SCENES), p=[SHARES[one] for one in SCENES])]
        height, width = photo.shape[:2]
        picture = Pillow.fromarray(photo)
        looks = [
            np.asarray(picture.resize((width, height), Pillow.Resampling.BICUBIC, window))
            for window in self._windows(height, width, count, scene)
        ]
        if scene == "object" or (scene != "still" and random.random() < _OBJECTS_BESIDES):
            looks = self._pass(looks, other)
        noise = random.uniform(*NOISE)
        drifts = random.normal(0, _LIGHT, count) if random.random() < _LIGHT_CHANGES else np.zeros(count)
        light = 1 + np.cumsum(drifts)
        return np.stack([_seen(look, gain, noise, random) for look, gain in zip(looks, light, strict=True)])

    def _windows(self, height: int, width: int, count: int, scene: Scene) -> list[tuple[float, float, float, float]]:
        """Where each frame looks: left, top, right, bottom."""
        random, unit = self._random, min(height, width) / _NOMINAL_SIDE
        places: npt.NDArray[np.float64] = np.zeros((count, 2))
        zoom: npt.NDArray[np.float64] = np.ones(count)
        if scene == "tremble":
            places = random.normal(0, _TREMBLE * unit, (count, 2))
        elif scene == "pan":
            angle, speed = random.uniform(0, 2 * np.pi), random.uniform(*_PAN) * unit
            steps: npt.NDArray[np.float64] = np.arange(count, dtype=np.float64) - (count - 1) / 2
            places = steps[:, None] * speed * np.array([np.cos(angle), np.sin(angle)])
            zoom = 1 + steps * random.normal(0, 0.003)
        half = np.array([width, height]) * (0.5 - MARGIN)
        room = np.array([width, height]) / 2
        windows = []
        for place, scale in zip(places, zoom, strict=True):
            extent = np.minimum(half * scale, room)
            centre = room + np.clip(place, extent - room, room - extent)
            (left, top), (right, bottom) = (centre - extent).tolist(), (centre + extent).tolist()
            windows.append((max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom)))
        return windows

    def _pass(self, looks: list[Frames], other: Frames) -> list[Frames]:
        """Something moves through the picture: an ellipse of another photograph."""
        random = self._random
        height, width = looks[0].shape[:2]
        high, wide = (max(2, round(side * random.uniform(*_OBJECT_SIDES))) for side in (height, width))
        top, left = random.integers(0, height - high + 1), random.integers(0, width - wide + 1)
        piece = Pillow.fromarray(other[top : top + high, left : left + wide])
        y, x = np.mgrid[-1 : 1 : high * 1j, -1 : 1 : wide * 1j]
        mask = Pillow.fromarray((255 * np.clip((1 - np.hypot(x, y)) * 6, 0, 1)).astype(np.uint8))
        angle = random.uniform(0, 2 * np.pi)
        speed = random.uniform(*_OBJECT_SPEED) * min(height, width) / _NOMINAL_SIDE
        step = speed * np.array([np.cos(angle), np.sin(angle)])
        place = np.array([random.uniform(-wide / 2, width - wide / 2), random.uniform(-high / 2, height - high / 2)])
        found = []
        for look in looks:
            picture = Pillow.fromarray(look)
            picture.paste(piece, (round(place[0]), round(place[1])), mask)
            found.append(np.asarray(picture))
            place = place + step
        return found


def _seen(look: Frames, gain: float, noise: float, random: np.random.Generator) -> Frames:
    """As the sensor gives it."""
    values = look * np.float32(gain) + random.normal(0, noise, look.shape).astype(np.float32)
    seen: Frames = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return seen
