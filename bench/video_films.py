"""Rendered films for ``bench/video.py``: real photographs in front of a camera, through which pieces of others move."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from narrowcast.compiler.data import choose, find_images
from narrowcast.transport.frames import read_image

SIDE = 288  # of the world; the camera sees a part of it
VIEW = 224
# name: camera's trembling and panning (pixels a frame), objects, part of the time in which they move, noise (grey levels).
FILMS = {
    "quiet": (0.0, 0.0, 1, 0.25, 1.5),  # a gate: hardly anybody comes
    "busy": (0.0, 0.0, 3, 1.0, 1.5),  # a street: something always moves
    "dark": (0.0, 0.0, 2, 0.5, 5.0),  # in the evening: noise
    "mast": (0.4, 0.0, 2, 0.5, 1.5),  # on a mast in the wind
    "pan": (0.0, 0.6, 2, 0.5, 1.5),  # the camera turns
}


def world(path: Path) -> np.ndarray:
    """A photograph, cut to a square of SIDE."""
    picture = Pillow.fromarray(read_image(path))
    scale = SIDE / min(picture.size)
    picture = picture.resize([max(SIDE, round(side * scale)) for side in picture.size], Pillow.Resampling.BICUBIC)
    left, top = (picture.width - SIDE) // 2, (picture.height - SIDE) // 2
    return np.asarray(picture.crop((left, top, left + SIDE, top + SIDE)))


def film(name: str, photos: list[Path], frames: int, seed: int) -> np.ndarray:
    """uint8 ``[frames, VIEW, VIEW, 3]``."""
    tremble, pan, objects, moving, noise = FILMS[name]
    random = np.random.default_rng([seed, *name.encode()])
    background = Pillow.fromarray(world(photos[0]))
    pieces = [_piece(world(photos[1 + k]), random) for k in range(objects)]
    places = [random.uniform(-20, VIEW, 2) for _ in pieces]
    speeds = [random.uniform(1, 5) * _direction(random) for _ in pieces]
    # Objects move in spells; a spell is a quarter of the film at the most.
    moves = np.zeros(frames, bool)
    while moves.mean() < moving:
        start = int(random.integers(frames))
        moves[start : start + max(5, frames // 8)] = True
    shown = np.empty((frames, VIEW, VIEW, 3), np.uint8)
    room = (SIDE - VIEW) / 2
    for number in range(frames):
        drift = room * np.sin(pan * number / room) if pan else 0.0
        x, y = room + drift + random.normal(0, tremble), room + random.normal(0, tremble)
        x, y = np.clip(x, 0, 2 * room), np.clip(y, 0, 2 * room)
        view = background.resize((VIEW, VIEW), Pillow.Resampling.BICUBIC, (x, y, x + VIEW, y + VIEW))
        for k, (piece, mask) in enumerate(pieces):
            if moves[number]:
                places[k] = (places[k] + speeds[k] + 60) % (VIEW + 60) - 60
            view.paste(piece, (round(places[k][0]), round(places[k][1])), mask)
        seen = np.asarray(view) + random.normal(0, noise, (VIEW, VIEW, 3))
        shown[number] = np.clip(np.rint(seen), 0, 255)
    return shown


def films(folder: Path, count: int, frames: int, seed: int = 0) -> dict[str, list[np.ndarray]]:
    """``count`` films of each kind, of photographs of a folder."""
    files = choose(find_images(folder), 5 * count * len(FILMS), seed)
    found: dict[str, list[np.ndarray]] = {}
    for k, name in enumerate(FILMS):
        mine = [files[(k * count + n) * 5 % len(files) :][:5] or files[:5] for n in range(count)]
        found[name] = [film(name, (some + files)[:5], frames, seed + n) for n, some in enumerate(mine)]
    return found


def _piece(photo: np.ndarray, random: np.random.Generator) -> tuple[Pillow.Image, Pillow.Image]:
    """Something that moves: an ellipse of a photograph, and its mask."""
    high, wide = (int(random.integers(28, 80)) for _ in range(2))
    top, left = random.integers(0, SIDE - high), random.integers(0, SIDE - wide)
    y, x = np.mgrid[-1 : 1 : high * 1j, -1 : 1 : wide * 1j]
    mask = (255 * np.clip((1 - np.hypot(x, y)) * 6, 0, 1)).astype(np.uint8)
    return Pillow.fromarray(photo[top : top + high, left : left + wide]), Pillow.fromarray(mask)


def _direction(random: np.random.Generator) -> np.ndarray:
    angle = random.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])
