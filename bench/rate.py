"""What rate control is worth: the fraction of frames answered rightly before their deadline, on made-up links.

    python bench/rate.py                                              # the table, on the links of the test seeds
    python bench/rate.py --bundle mobilenet_v2.ncb --photos photos/   # packets of real photos instead of fitted sizes
    python bench/rate.py --part tune                                  # the seeds that constants were chosen on
    python bench/rate.py --mahimahi Verizon-LTE.up --scale 0.05       # a recorded link, in Mahimahi's format

A discrete-event simulation around the product's own controller: frames at a fixed rate, a link of a changing rate with a
queue, delay and jitter, a server. A frame's value is its level's accuracy (the bundle's figure) if it is answered in time,
else 0.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import rate_rivals as rivals
from rate_links import CONSTANT, SECONDS, VARYING, Scenario, mahimahi, scenario

from narrowcast.head.rate.options import Option

# A bundle of MobileNetV2 with 64 channels: agreement with the teacher and mean bytes by its figures; logarithms of the
# bytes scatter so on 300 photos.
ACCURACY = (0.602, 0.754, 0.848, 0.875)
BYTES = (692.0, 1326.0, 2306.0, 3479.0)
SCATTER = (0.215, 0.149, 0.107, 0.088)
ENCODE_SECONDS = 0.012
DELAY_SECONDS = 0.025  # each way
SERVER_SECONDS = 0.004
JITTER_SECONDS = 0.004
GRID_SECONDS = 0.001
SEEDS = {"tune": range(100, 106), "test": range(200, 212)}


class Camera(NamedTuple):
    """Frames: how many a second, by when they are to be answered, and their packets."""

    fps: float
    deadline: float
    options: list[Option]
    sizes: npt.NDArray[np.float64]  # [frame, level], drawn from


class Outcome(NamedTuple):
    """What became of the frames."""

    right: float  # fraction, expected
    in_time: float
    dropped: float
    late: float
    switches_a_minute: float
    levels: list[float]


def fitted_sizes(count: int = 3000) -> npt.NDArray[np.float64]:
    """Log-normal packets; a frame's levels move together."""
    rng = np.random.default_rng(7)
    scatter = np.array(SCATTER)
    return np.exp(np.log(BYTES) - scatter**2 / 2 + rng.normal(size=(count, 1)) * scatter)


def simulate(rule: rivals.Rule, case: Scenario, camera: Camera, picks: npt.NDArray[np.int64]) -> Outcome:
    """Runs one rule on one link."""
    free_at, used, answers = 0.0, [], []  # type: float, list[int | None], list[tuple[float, int]]
    in_time = np.zeros(len(picks), bool)
    newest = 0.0
    for frame, pick in enumerate(picks):
        captured = frame / camera.fps
        now = captured + ENCODE_SECONDS
        while answers and answers[0][0] <= now:
            at, number = heapq.heappop(answers)
            in_time[number] = at - number / camera.fps <= camera.deadline
            rule.answered(number, at, SERVER_SECONDS, bool(in_time[number]))
        if isinstance(rule, rivals.Told):
            rule.tell(case.link.rate(now), case.link.carried(now, free_at) if free_at > now else 0.0)
        level = rule.level(frame, now, ENCODE_SECONDS)
        used.append(level)
        if level is None:
            continue
        size = round(camera.sizes[pick, level])
        rule.encoded(level, size)
        rule.sent(frame, size, now)
        free_at = float(case.link.finish(max(now, free_at), size))
        newest = max(newest, free_at + 2 * DELAY_SECONDS + SERVER_SECONDS + case.jitter[frame])
        heapq.heappush(answers, (newest, frame))
    for at, number in answers:
        in_time[number] = at - number / camera.fps <= camera.deadline
    worth = {one.level: one.accuracy for one in camera.options}
    value = sum(worth[level] for level, good in zip(used, in_time, strict=True) if level is not None and good)
    sent = [level for level in used if level is not None]
    switches = sum(sent[k] != sent[k - 1] for k in range(1, len(sent)))
    count = len(picks)
    return Outcome(
        value / count, float(in_time.mean()), 1 - len(sent) / count, len(sent) / count - float(in_time.mean()),
        switches / (count / camera.fps / 60), [sent.count(one.level) / count for one in camera.options],
    )  # fmt: skip


def limit(case: Scenario, camera: Camera, picks: npt.NDArray[np.int64]) -> float:
    """The bound for this case, as a fraction."""
    captured = np.arange(len(picks)) / camera.fps
    # An answer also waits for those before it (TCP keeps order): leaving that out can only add to the bound.
    latest = captured + camera.deadline - 2 * DELAY_SECONDS - SERVER_SECONDS - case.jitter
    sizes = np.round(camera.sizes[picks])
    accuracy = [one.accuracy for one in camera.options]
    return rivals.bound(case, captured + ENCODE_SECONDS, sizes, accuracy, latest, GRID_SECONDS) / len(picks)


def rules(aimd: tuple[float, float, int]) -> dict[str, Callable[[Camera], rivals.Rule]]:
    made: dict[str, Callable[[Camera], rivals.Rule]] = {
        "ours": lambda camera: rivals.Ours(camera.options, camera.deadline, camera.fps),
        "told the rate": lambda camera: rivals.Told(
            camera.options, camera.deadline, camera.fps, 2 * DELAY_SECONDS + SERVER_SECONDS + JITTER_SECONDS
        ),
        "AIMD": lambda camera: rivals.Aimd(camera.options, camera.deadline, camera.fps, *aimd),
    }
    for level in range(len(ACCURACY)):
        made[f"level {level}"] = lambda camera, level=level: rivals.Fixed(
            camera.options, camera.deadline, camera.fps, level
        )
        made[f"level {level}, our drops"] = lambda camera, level=level: rivals.FixedDropping(
            camera.options, camera.deadline, camera.fps, level
        )
    return made


def one_seed(job: tuple[str, int, Camera, tuple[float, float, int], list[float] | None]) -> dict[str, Any]:
    """All rules on one link of one seed."""
    name, seed, camera, aimd, rates = job
    frames = int(SECONDS * camera.fps)
    case = scenario(name, seed, frames, JITTER_SECONDS, None if rates is None else np.array(rates))
    picks = np.random.default_rng([seed, 1]).integers(0, len(camera.sizes), frames)
    found: dict[str, Any] = {
        rule: simulate(make(camera), case, camera, picks)._asdict() for rule, make in rules(aimd).items()
    }
    return {"link": name, "seed": seed, "bound": limit(case, camera, picks), "rules": found}


def tuned_aimd(camera: Camera, seeds: Sequence[int]) -> tuple[float, float, int]:
    """AIMD's constants that are best over all varying links of the seeds for tuning."""
    frames = int(SECONDS * camera.fps)
    cases = [(scenario(name, seed, frames, JITTER_SECONDS), seed) for name in VARYING for seed in seeds]
    scores = {}
    for constants in [(i, d, w) for i in (0.1, 0.3, 1.0, 3.0) for d in (0.5, 0.7, 0.85) for w in (2, 3, 5, 8)]:
        total = 0.0
        for case, seed in cases:
            picks = np.random.default_rng([seed, 1]).integers(0, len(camera.sizes), frames)
            rule = rivals.Aimd(camera.options, camera.deadline, camera.fps, *constants)
            total += simulate(rule, case, camera, picks).right
        scores[constants] = total / len(cases)
    return max(scores, key=lambda one: scores[one])


def measured_sizes(bundle: Path, photos: Path) -> tuple[npt.NDArray[np.float64], list[Option]]:
    """Packets of every photo at every level, and the levels by the bundle's figures."""
    from narrowcast.head.session import HeadSession
    from narrowcast.transport.bundle import Bundle
    from narrowcast.transport.frames import SUFFIXES, read_image

    session = HeadSession(Bundle.open(bundle, "device", allow_unsigned=True), precision="fp32", threads=1)
    files = sorted(path for path in photos.rglob("*") if path.suffix.lower() in SUFFIXES)
    images = [session.contract.prepare(read_image(path)).image for path in files]
    sizes = [
        [len(session.codec.encode(session.symbols(one, level), level)) for level in range(session.levels)]
        for one in images
    ]
    figures = session.bundle.manifest.figures["levels"]
    means = np.mean(sizes, 0)
    options = [Option(one["level"], one["agreement"], float(means[one["level"]])) for one in figures]
    return np.array(sizes, float), options


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds of one link."""
    names = list(rows[0]["rules"])
    mean = {name: float(np.mean([row["rules"][name]["right"] for row in rows])) for name in names}
    bound = float(np.mean([row["bound"] for row in rows]))
    ours = [row["rules"]["ours"] for row in rows]
    return {
        "bound": bound, "right": mean, "of_bound": mean["ours"] / bound,
        "least_of_bound": min(row["rules"]["ours"]["right"] / row["bound"] for row in rows),
        "switches_a_minute": float(np.mean([one["switches_a_minute"] for one in ours])),
        "late": float(np.mean([one["late"] for one in ours])),
        "dropped": float(np.mean([one["dropped"] for one in ours])),
        "levels": np.mean([one["levels"] for one in ours], 0).tolist(),
        "seeds_won": {
            name: sum(row["rules"]["ours"]["right"] > row["rules"][name]["right"] for row in rows) / len(rows)
            for name in names if name != "ours"
        },
    }  # fmt: skip


def show(found: dict[str, dict[str, Any]]) -> None:
    print(f"{'link':14} {'ours':>6} {'bound':>6} {'of it':>6} {'told':>6} {'AIMD':>6} {'best level':>16} {'+our drops':>16} "
          f"{'late':>6} {'drop':>6} {'sw/min':>6}")  # fmt: skip
    for link, one in found.items():
        right = one["right"]
        plain = max((n for n in right if n.startswith("level") and "drops" not in n), key=lambda n: right[n])
        drops = max((n for n in right if "drops" in n), key=lambda n: right[n])
        print(
            f"{link:14} {right['ours']:6.3f} {one['bound']:6.3f} {one['of_bound']:6.1%} "
            f"{right['told the rate']:6.3f} {right['AIMD']:6.3f} "
            f"{right[plain]:6.3f} ({plain[6:7]}) {right[drops]:12.3f} ({drops[6:7]}) {one['late']:11.1%} "
            f"{one['dropped']:6.1%} {one['switches_a_minute']:6.1f}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=sorted(SEEDS), default="test")
    parser.add_argument("--fps", type=float, default=10)
    parser.add_argument("--deadline-ms", type=float, default=300)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--mahimahi", type=Path, help="a recorded link instead of the made-up ones")
    parser.add_argument("--scale", type=float, default=1.0, help="of the recorded rates")
    parser.add_argument("--links", nargs="*", help="only these")
    parser.add_argument("--seeds", type=int, default=12, help="at most so many (default: 12)")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write figures there")
    args = parser.parse_args()
    options = [Option(level, a, b) for level, (a, b) in enumerate(zip(ACCURACY, BYTES, strict=True))]
    sizes = fitted_sizes()
    if args.bundle is not None:
        sizes, options = measured_sizes(args.bundle, args.photos)
    camera = Camera(args.fps, args.deadline_ms / 1000, options, sizes)
    aimd = tuned_aimd(camera, list(SEEDS["tune"])[:2])
    rates = None if args.mahimahi is None else (mahimahi(args.mahimahi) * args.scale).tolist()
    links = [args.mahimahi.stem] if rates else args.links or [*VARYING, *CONSTANT]
    jobs = [(link, seed, camera, aimd, rates) for link in links for seed in list(SEEDS[args.part])[: args.seeds]]
    with ProcessPoolExecutor(args.jobs) as pool:
        rows = list(pool.map(one_seed, jobs))
    found = {link: summary([row for row in rows if row["link"] == link]) for link in links}
    show(found)
    print(f"AIMD with {aimd}, the best of 48 settings on two of the seeds for tuning", file=sys.stderr)
    if args.json is not None:
        report = {"part": args.part, "fps": args.fps, "deadline_ms": args.deadline_ms, "aimd": aimd, "links": found}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
