"""What video tables save on a camera's frames: bytes a frame and the answers, beside key frames and video codecs.

    python bench/video.py model.ncb --photos photos/ [--films 2] [--frames 60] [--level N] [--allow-unsigned] [--json FILE]
    python bench/video.py model.ncb --film street.mp4

Films are rendered of photographs (``bench/video_films.py``), or read. Each way sends the same frames: key frames alone
(``key``), frames predicted from the last answered one (``predicted``), and those with the frames left out that show nothing
new (``skip``), which is what a client does. Bytes are whole packets, as ``head/video/chain.py`` would send them. x264 and
x265 (through PyAV, tuned for low latency, no B frames) encode the frames at the network's size, at several qualities; of
those, the one with the fewest bytes is shown whose decoded frames the teacher answers as well as the split does, and all are
in the JSON. Answers are compared with the teacher's on the camera's own frames.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from video_films import films

from narrowcast.compiler.normalize import Normalize
from narrowcast.compiler.teacher import load_teacher
from narrowcast.compiler.verify import OnnxNetwork
from narrowcast.compiler.video.fit import tail_of
from narrowcast.compiler.video.follow import Step, follow
from narrowcast.compiler.video.unchanged import errors_of
from narrowcast.head.session import HeadSession
from narrowcast.head.sources import open_source
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.codec import Codec
from narrowcast.transport.packet import STREAM_HEADER_BYTES, Kind
from narrowcast.transport.video import VideoCodec, change_between

CODECS = {"x264": "libx264", "x265": "libx265"}
QUALITIES = (20, 26, 32, 38, 44, 50)
ROUNDS = 9


def teacher_of(bundle: Bundle, folder: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """The network that the bundle was made of."""
    recipe = bundle.manifest.recipe["teacher"]
    network = load_teacher(
        recipe["model"], weights=recipe.get("weights"), options=recipe.get("options"), folder=folder,
        part=recipe.get("part"),
    )  # fmt: skip
    normalize = Normalize(bundle.manifest.input)

    @torch.no_grad()
    def run(frames: np.ndarray) -> dict[str, np.ndarray]:
        found = [network(normalize(torch.from_numpy(frames[k : k + 16]))) for k in range(0, len(frames), 16)]
        return {"output": torch.cat(found).numpy()}

    return run


def encoded(frames: np.ndarray, codec: str, quality: int) -> tuple[np.ndarray, float]:
    """What a video codec makes of frames: those that are decoded, and the bytes a frame that it took."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        stream = out.add_stream(CODECS[codec], rate=10)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.options = {
            "crf": str(quality),
            "preset": "medium",
            "tune": "zerolatency",
            "x265-params": "log-level=none",
        }
        packets = [p for f in frames for p in stream.encode(av.VideoFrame.from_ndarray(f, format="rgb24"))]
        packets += stream.encode()
        size = sum(packet.size for packet in packets)
        for packet in packets:
            out.mux(packet)
    file.seek(0)
    with av.open(file) as back:
        seen = np.stack([frame.to_ndarray(format="rgb24") for frame in back.decode(video=0)])
    return seen, size / len(frames)


def speeds(codec: Codec, video: VideoCodec, symbols: np.ndarray, level: int) -> dict[str, float]:
    """Nanoseconds of this thread a symbol: to predict, to decode, to remember, to compare; and of a key frame; medians."""
    key = codec.encode(symbols[1], level)
    before = video.memory(symbols[0], None)
    payload = video.encode(symbols[1], level, before)
    steps: dict[str, Callable[[], Any]] = {
        "encode_ns": lambda: video.encode(symbols[1], level, before),
        "decode_ns": lambda: video.decode_batch([payload], [level], [before]),
        "remember_ns": lambda: video.memory(symbols[1], before),
        "compare_ns": lambda: change_between(symbols[0], symbols[1]),
        "key_encode_ns": lambda: codec.encode(symbols[1], level),
        "key_decode_ns": lambda: codec.decode_batch([key], [level]),
    }
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            start = time.thread_time_ns()
            for _ in range(20):
                step()
            found[name].append((time.thread_time_ns() - start) / 20 / symbols[0].size)
    return {name: round(median(some), 2) for name, some in found.items()}


class Bench:
    """One bundle, at one level."""

    def __init__(self, bundle: Bundle, level: int | None, folder: Path) -> None:
        self.session = HeadSession(bundle)
        self.codec, self.video = self.session.codec, self.session.video_codec()
        self.level = self.session.levels - 1 if level is None else level
        self.tail = tail_of(OnnxNetwork(bundle.read("tail")))
        self.teacher = teacher_of(bundle, folder)

    def ways(self, frames: np.ndarray, codecs: bool) -> dict[str, Any]:
        """Bytes a frame and wrong answers by way, for one film."""
        symbols = np.stack([self.session.symbols(frame, self.level) for frame in frames])
        outputs, wanted = self.tail(symbols, self.level), self.teacher(frames)
        key = [
            Step(Kind.SYMBOLS, STREAM_HEADER_BYTES + len(self.codec.encode(one, self.level)), number)
            for number, one in enumerate(symbols)
        ]
        ways = {
            "key": key,
            "predicted": list(follow(self.codec, self.video, symbols, self.level, skip=False)),
            "skip": list(follow(self.codec, self.video, symbols, self.level)),
            "skip, 4 frames late": list(follow(self.codec, self.video, symbols, self.level, behind=4)),
        }
        found: dict[str, Any] = {}
        for name, steps in ways.items():
            by = [step.answered_by for step in steps]
            wrong = errors_of({n: values[by] for n, values in outputs.items()}, wanted)
            found[name] = {
                "bytes": float(np.mean([step.size for step in steps])), "error": float(wrong.mean()),
                "skipped": float(np.mean([step.kind is Kind.SKIP for step in steps])),
            }  # fmt: skip
        for codec in CODECS if codecs else ():
            for quality in QUALITIES:
                seen, size = encoded(frames, codec, quality)
                wrong = errors_of(self.teacher(seen), wanted)
                found[f"{codec} crf {quality}"] = {"bytes": size, "error": float(wrong.mean())}
        return found


def joined(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over films."""
    return {
        way: {figure: round(float(np.mean([row[way][figure] for row in rows])), 4) for figure in rows[0][way]}
        for way in rows[0]
    }


def cheapest(row: dict[str, Any], codec: str) -> str | None:
    """The quality of a video codec with the fewest bytes whose answers are as good as the split's."""
    good = [way for way in row if way.startswith(codec) and row[way]["error"] <= row["skip"]["error"] + 1e-9]
    return min(good, key=lambda way: float(row[way]["bytes"]), default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--photos", type=Path, metavar="DIR", help="photographs to render films of")
    parser.add_argument("--film", action="append", default=[], help="a video instead (may be repeated)")
    parser.add_argument("--films", type=int, default=2, metavar="N", help="of each kind (default: 2)")
    parser.add_argument("--frames", type=int, default=60, metavar="N", help="of each film (default: 60)")
    parser.add_argument("--level", type=int, help="default: the highest")
    parser.add_argument("--no-codecs", action="store_true", help="leave x264 and x265 out")
    parser.add_argument("--teacher-folder", type=Path, default=Path(), help="what the recipe's model is relative to")
    parser.add_argument("--allow-unsigned", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    args = parser.parse_args()
    if bool(args.film) == (args.photos is not None):
        parser.error("either --photos or --film")
    bundle = Bundle.open(args.bundle, allow_unsigned=args.allow_unsigned)
    bench = Bench(bundle, args.level, args.teacher_folder)
    contract = bundle.manifest.input
    material: dict[str, list[np.ndarray]]
    if args.film:
        material = {
            name: [np.stack([c.image for c in islice(open_source(name).frames(), args.frames)])] for name in args.film
        }
    else:
        material = films(args.photos, args.films, args.frames)
    result: dict[str, Any] = {"level": bench.level, "frames": args.frames, "films": {}}
    print(
        f"{'film':<8}{'key':>9}{'predicted':>11}{'skip':>9}{'skipped':>9}{'late':>9}   wrong: key, skip  as good: x264, x265"
    )
    for name, some in material.items():
        prepared = [np.stack([contract.prepare(frame).image for frame in one]) for one in some]
        row = joined([bench.ways(frames, not args.no_codecs) for frames in prepared])
        rivals = {codec: cheapest(row, codec) for codec in (() if args.no_codecs else CODECS)}
        result["films"][name] = {
            "ways": row, "as_good": rivals,
            "ratios": {
                "predicted/key": round(row["predicted"]["bytes"] / row["key"]["bytes"], 4),
                "skip/key": round(row["skip"]["bytes"] / row["key"]["bytes"], 4),
                **{f"skip/{c}": round(row["skip"]["bytes"] / row[w]["bytes"], 4) for c, w in rivals.items() if w},
            },
        }  # fmt: skip
        beside = ", ".join("none" if way is None else f"{row[way]['bytes']:.0f} B" for way in rivals.values())
        print(
            f"{name[-8:]:<8}{row['key']['bytes']:>7.0f} B{row['predicted']['bytes']:>9.0f} B{row['skip']['bytes']:>7.0f} B"
            f"{row['skip']['skipped']:>9.1%}{row['skip, 4 frames late']['bytes']:>7.0f} B"
            f"{row['key']['error']:>12.3f}, {row['skip']['error']:.3f}   {beside}"
        )
        if "speed" not in result:
            symbols = np.stack([bench.session.symbols(frame, bench.level) for frame in prepared[0][:2]])
            result["speed"] = speeds(bench.codec, bench.video, symbols, bench.level)
    print("nanoseconds a symbol:", ", ".join(f"{name[:-3]} {value}" for name, value in result["speed"].items()))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
