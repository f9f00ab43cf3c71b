"""False alarms and delays of the rate-drift detector, on real photos through a real bundle.

    python bench/drift.py --bundle mobilenet_v2.ncb --data DATA --json drift.json

DATA holds ``photos300/`` (lossless photos) and ``caltech101/`` (a folder per class). Profiles come from the bundle's
head on ONNX Runtime and its coder (``bench/drift_frames.py``), once; cameras are then drawn from them, and the product's own
detector is told every frame. The kinds of cameras:

- ``photos``: every frame is another photo, drawn independently. Harder than any camera: nothing is alike.
- ``place``: independent photos of one sort of thing (a class of Caltech-101).
- ``walk``: one scene that shakes: a lazy random walk over 25 crops of a photo, each with its own light and sensor noise.
  Correlated.
- ``patrol``: a walk in one of three scenes (``--patrol``), and every 20 frames on average (``--stay``) on to another.

Constants were chosen on the even photos, scenes and classes (``--part tune``); figures are for the odd ones
(``--part test``). What changes a camera begins after ``--age`` frames. An alarm on unchanged frames is false; the detector
then goes on as if nothing had been. Intervals are exact for Poisson counts (Garwood 1936), and hold for alarms that come
independently.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import drift_frames
import numpy as np
import numpy.typing as npt
from drift_frames import GRID, SORTS

from narrowcast.tail.drift.detector import Detector, DriftSettings, Verdict

Profiles = npt.NDArray[np.float64]
LONGEST = 1000
KINDS = ("photos", "place", "walk", "patrol")


def walk(places: Profiles, frames: int, rng: np.random.Generator) -> Profiles:
    """A lazy random walk over the grid of crops ``[place, sort]`` of one sort."""
    steps = rng.integers(-1, 2, (2, frames)) * (rng.random(frames) < 0.5)
    path = np.cumsum(np.concatenate([rng.integers(0, GRID, (2, 1)), steps], 1), 1)[:, 1:]
    period = 2 * (GRID - 1)  # reflected at the borders
    folded = np.abs((path + GRID - 1) % period - (GRID - 1))
    return np.asarray(places[folded[0] * GRID + folded[1]])


def patrol(scenes: Profiles, frames: int, stay: float, rng: np.random.Generator) -> Profiles:
    """Walks in each of ``scenes`` ``[scene, place]``, one of which is seen at a time, for ``stay`` frames on average."""
    walks = np.stack([walk(places, frames, rng) for places in scenes])
    jumps = np.where(rng.random(frames) < 1 / stay, rng.integers(1, len(scenes), frames), 0)
    now = (rng.integers(len(scenes)) + np.cumsum(jumps)) % len(scenes)
    return np.asarray(walks[now, np.arange(frames)])


class Cameras:
    """One kind of camera: draws profiles for the camera of a number, unchanged or changed."""

    def __init__(self, kind: str, found: dict[str, Profiles], part: str, scenes: int = 3, stay: float = 20.0) -> None:
        self._scenes, self._stay = scenes, stay  # of a patrol
        odd = part == "test"
        self.kind = kind
        self._photos = found["photos"][odd::2]
        self._crops = found["crops"][odd::2]
        places = [found[name] for name in sorted(found) if name.startswith("class-")]
        self._places = places[odd::2]
        spoiled = SORTS[1:] if kind != "place" else []
        self.changes = [*spoiled, *(["another scene"] if kind != "photos" else [])]

    def draw(self, number: int, change: str | None, frames: int, rng: np.random.Generator) -> Profiles:
        """Profiles ``[frames, number]``."""
        other = change == "another scene"
        sort = 0 if change is None or other else SORTS.index(change)
        if self.kind == "photos":
            return self._photos[rng.integers(len(self._photos), size=frames), sort]
        if self.kind == "place":
            count = len(self._places)
            jump = 1 + number // count % (count - 1)
            pool = self._places[(number + jump * other) % count]
            return pool[rng.integers(len(pool), size=frames)]
        count = len(self._crops)
        if self.kind == "walk":
            jump = 1 + number // count % (count - 1)
            return walk(self._crops[(number + jump * other) % count, :, sort], frames, rng)
        order, first = np.random.default_rng([77, number]).permutation(count), self._scenes * other
        return patrol(self._crops[order[first : first + self._scenes]][:, :, sort], frames, self._stay, rng)


def false_alarms(cameras: Cameras, settings: DriftSettings, frames: int, life: int) -> dict[str, float]:
    """Alarms on unchanged frames, from a camera's first frame on."""
    alarms = watched = number = 0
    while watched < frames:
        detector = Detector(settings)
        for profile in cameras.draw(number, None, life, np.random.default_rng([1, number])):
            if detector.tell(profile, 0) is Verdict.DRIFT:
                alarms += 1
                detector.dismiss()
        watched += life
        number += 1
    low, high = poisson_interval(alarms)
    return {
        "frames": watched, "cameras": number, "alarms": alarms, "per_100k_frames": alarms / watched * 1e5,
        "low_95": low / watched * 1e5, "high_95": high / watched * 1e5,
    }  # fmt: skip


def poisson_interval(count: int) -> tuple[float, float]:
    """The 95 % interval of a Poisson mean (Garwood), by bisection on the distribution itself."""

    def at_most(k: int, mean: float) -> float:
        terms = np.cumsum(np.log(np.maximum(np.arange(k + 1), 1)))
        return float(np.exp(np.arange(k + 1) * np.log(mean) - mean - terms).sum()) if k >= 0 else 0.0

    def solve(goal: Callable[[float], float]) -> float:
        low, high = 1e-9, 10.0 + 4.0 * count
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if goal(middle) > 0 else (low, middle)
        return low

    upper = solve(lambda mean: at_most(count, mean) - 0.025)
    return (solve(lambda mean: 0.025 - (1 - at_most(count - 1, mean))) if count else 0.0), upper


def delays(cameras: Cameras, settings: DriftSettings, count: int, age: int) -> dict[str, dict[str, float | None]]:
    """Frames from a change to its alarm."""
    found: dict[str, list[int]] = {change: [] for change in cameras.changes}
    for number in range(count):
        old = Detector(settings)
        for profile in cameras.draw(number, None, age, np.random.default_rng([2, number])):
            if old.tell(profile, 0) is Verdict.DRIFT:
                old.dismiss()
        for order, change in enumerate(cameras.changes):
            detector = copy.deepcopy(old)
            seen = cameras.draw(number, change, LONGEST, np.random.default_rng([3, number, order]))
            first = next(
                (k + 1 for k, profile in enumerate(seen) if detector.tell(profile, 0) is Verdict.DRIFT), LONGEST + 1
            )
            found[change].append(first)
    return {change: _told(np.array(values)) for change, values in found.items()}


def _told(values: npt.NDArray[np.int64]) -> dict[str, float | None]:
    def quantile(part: float) -> float | None:
        value = float(np.quantile(values, part, method="higher"))
        return None if value > LONGEST else value

    within = float((values <= 200).mean())
    return {"cameras": len(values), "median": quantile(0.5), "p95": quantile(0.95), "within_200": within}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("drift-frames"), help="a folder for the profiles")
    parser.add_argument("--level", type=int, default=2)
    parser.add_argument("--scenes", type=int, default=24, help="photos that walks and patrols are made of")
    parser.add_argument("--patrol", type=int, default=3, help="scenes of a patrol; at most a quarter of --scenes")
    parser.add_argument("--stay", type=float, default=20.0, help="frames of a patrol in a scene, on average")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of cameras")
    parser.add_argument("--part", choices=("tune", "test"), default="test")
    parser.add_argument("--frames", type=int, default=1_000_000, help="for false alarms, for each kind of camera")
    parser.add_argument("--life", type=int, default=20_000, help="frames of one camera, there")
    parser.add_argument("--age", type=int, default=5_000, help="frames before a change")
    parser.add_argument("--cameras", type=int, default=120, help="for each kind, for delays")
    parser.add_argument("--settings", default="{}", help="JSON: of DriftSettings")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    if not 2 <= args.patrol <= args.scenes // 4:
        parser.error(f"--patrol {args.patrol}: 2 to {args.scenes // 4}, a quarter of --scenes {args.scenes}")
    settings = DriftSettings(**json.loads(args.settings))
    found = drift_frames.measure(
        args.bundle, args.data, args.cache, args.level, args.scenes, lambda text: print(text, file=sys.stderr)
    )
    report: dict[str, object] = {"part": args.part, "level": args.level, "age": args.age, "life": args.life}
    report |= {"patrol_scenes": args.patrol, "patrol_stay_frames": args.stay}
    for kind in args.kinds:
        started = time.perf_counter()
        cameras = Cameras(kind, found, args.part, args.patrol, args.stay)
        alarms = false_alarms(cameras, settings, args.frames, args.life)
        table = delays(cameras, settings, args.cameras, args.age)
        report[kind] = {"false_alarms": alarms, "delays": table}
        print(
            f"\n{kind}: {alarms['alarms']} false alarms in {alarms['frames']:,} frames of {alarms['cameras']} cameras: "
            f"{alarms['per_100k_frames']:.2f} in 100,000 (95 %: {alarms['low_95']:.2f} to {alarms['high_95']:.2f})"
            f"   [{time.perf_counter() - started:.0f} s]"
        )
        print(f"  {'change':<16}{'median':>8}{'p95':>8}{'within 200':>12}")
        for change, row in table.items():
            median, p95 = (f"{row[key]:.0f}" if row[key] is not None else f">{LONGEST}" for key in ("median", "p95"))
            print(f"  {change:<16}{median:>8}{p95:>8}{row['within_200']:>11.1%}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
