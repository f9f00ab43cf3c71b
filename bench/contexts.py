"""What context tables save on real photographs, and what they cost: bytes a frame and nanoseconds a symbol, side by side.

    python bench/contexts.py model.ncb --fit training-photos/ --test other-photos/ [--allow-unsigned] [--json FILE]

Both kinds of tables are fitted to the symbols that the bundle's head gives for the same training photographs, and code the
symbols of photographs that neither has seen. Bytes are real payloads. Kinds take turns; medians over rounds are quoted.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median

import msgspec
import numpy as np

from narrowcast.compiler.codec import collect_symbols, fit_codec
from narrowcast.compiler.data import choose, find_images
from narrowcast.compiler.recipe import CodingSettings
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.codec import Codec, open_codec
from narrowcast.transport.frames import read_image

ROUNDS = 21


def symbols_of(bundle: Bundle, folder: Path, count: int) -> np.ndarray:
    """What the head gives for photographs: uint8 [levels, N, C, H, W]."""
    contract = bundle.manifest.input
    frames = [contract.prepare(read_image(path)).image for path in choose(find_images(folder), count, seed=0)]
    return collect_symbols({"fp32": bundle.read("head")}, np.stack(frames), bundle.manifest.codec)


def nanoseconds(codec: Codec, symbols: np.ndarray, level: int) -> tuple[float, float]:
    """Per symbol, to encode and to decode a frame at a time."""
    start = time.perf_counter_ns()
    payloads = [codec.encode(frame, level) for frame in symbols]
    between = time.perf_counter_ns()
    for payload in payloads:
        codec.decode_batch([payload], [level])
    end = time.perf_counter_ns()
    return (between - start) / symbols.size, (end - between) / symbols.size


def main() -> None:
    parser = argparse.ArgumentParser(description="Context tables beside a table per channel, on real photographs.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--fit", type=Path, required=True, metavar="DIR", help="photographs to fit the tables to")
    parser.add_argument("--test", type=Path, required=True, metavar="DIR", help="photographs to measure on")
    parser.add_argument("--images", type=int, default=256, metavar="N", help="of either (default: 256)")
    parser.add_argument("--allow-unsigned", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle, allow_unsigned=args.allow_unsigned)
    spec = msgspec.structs.replace(bundle.manifest.codec, name="rans")
    seen, unseen = (symbols_of(bundle, folder, args.images) for folder in (args.fit, args.test))
    kinds = {
        kind: open_codec(*fit_codec(spec, seen, None, CodingSettings(tables=kind))) for kind in ("channel", "context")
    }
    rows = []
    print(f"{'level':<7}{'channel':>12}{'context':>12}{'saved':>9}{'encode, decode ns a symbol':>44}")
    for level in range(spec.levels):
        times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        sizes = {kind: sum(len(codec.encode(f, level)) for f in unseen[level]) for kind, codec in kinds.items()}
        for _ in range(ROUNDS):
            for kind, codec in kinds.items():
                times[kind].append(nanoseconds(codec, unseen[level][:16], level))
        speed = {kind: [median(column) for column in zip(*found, strict=True)] for kind, found in times.items()}
        mean = {kind: size / unseen.shape[1] for kind, size in sizes.items()}
        saved = 1 - mean["context"] / mean["channel"]
        shown = "   ".join(f"{kind} {encode:.1f}, {decode:.1f}" for kind, (encode, decode) in speed.items())
        print(f"{level:<7}{mean['channel']:>10.0f} B{mean['context']:>10.0f} B{saved:>8.1%}{shown:>44}")
        rows.append({"level": level, "mean_payload_bytes": mean, "saved": saved, "encode_decode_ns": speed})
    if args.json:
        args.json.write_text(json.dumps({"images": unseen.shape[1], "levels": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
