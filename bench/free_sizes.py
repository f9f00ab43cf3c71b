"""What filling up and letterboxes cost in bytes, where one detector takes images of any size.

    python bench/free_sizes.py --work tasks-work/         after bench/tasks.py: its scenes and its detector are used

The test scenes are rendered with a side of 160 pixels and cut to 64 to 160 pixels either way, at the digits' own scale.
One bundle is compiled for images of any size, in multiples of 16, and evaluated on them by their labels. Then its head is
given the same scenes as other contracts prepare them: in larger multiples, filled up to one size, in letterboxes. Bytes are
packets.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tasks import DETECT, RECIPE, compiled, prepare, say

from narrowcast.compiler.evaluate import evaluate
from narrowcast.demo.scenes import SceneRenderer, Scenes, save_scenes
from narrowcast.head.session import HeadSession
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.contract import InputContract
from narrowcast.transport.frames import read_image
from narrowcast.transport.packet import STREAM_HEADER_BYTES

SIDE, LEAST = 160, 64
TEST_SCENES = 200
FREE = f'fit = "free"\nmax_size = [{SIDE}, {SIDE}]\nmultiple_of = 16'


def mixed_scenes(folder: Path) -> None:
    """Test scenes, cut to many sizes; boxes that lie in the cut by half or more are kept, as much of them as is left."""
    scenes = SceneRenderer(test=True, side=SIDE).render(TEST_SCENES, seed=2)
    random = np.random.default_rng(3)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for k, (frame, boxes, labels, mask) in enumerate(zip(*scenes, strict=True)):
        height, width = (int(side) for side in random.integers(LEAST, SIDE + 1, 2))
        top, left = (int(random.integers(0, SIDE - side + 1)) for side in (height, width))
        moved = np.clip(boxes - [left, top, left, top], 0, [width, height] * 2)
        area = np.prod(boxes[:, 2:] - boxes[:, :2], 1)
        kept = np.prod(moved[:, 2:] - moved[:, :2], 1) >= area / 2
        cut = np.s_[top : top + height, left : left + width]
        one = folder / "single" / f"{k:03}"
        save_scenes(Scenes(frame[cut][None], [moved[kept]], [labels[kept]], mask[cut][None]), one)
        table = json.loads((one / "annotations.json").read_text())
        (folder / "images").mkdir(exist_ok=True)
        (one / "images" / "00000.png").replace(folder / "images" / f"{k:03}.png")
        images.append({**table["images"][0], "id": k, "file_name": f"{k:03}.png"})
        annotations += [
            {**row, "id": len(annotations) + n, "image_id": k} for n, row in enumerate(table["annotations"])
        ]
    joined = {"images": images, "annotations": annotations, "categories": table["categories"]}
    (folder / "annotations.json").write_text(json.dumps(joined))


def free(multiple: int) -> InputContract:
    """Every scene its own size, filled up to a multiple."""
    most = -(-SIDE // multiple) * multiple
    return InputContract(size=(multiple, multiple), fit="free", max_size=(most, most), multiple_of=multiple)


WAYS = {
    "own size, multiples of 16": free(16),
    "own size, multiples of 32": free(32),
    "own size, filled up to 160 x 160": free(SIDE),
    "letterbox of 160 x 160": InputContract(size=(SIDE, SIDE), fit="letterbox"),
    "letterbox of 96 x 96": InputContract(size=(96, 96), fit="letterbox"),
}


def bytes_of(session: HeadSession, contract: InputContract, files: list[Path]) -> dict[str, Any]:
    """Mean pixels, and mean packet bytes by level, of scenes as a contract prepares them."""
    pixels, sizes = 0, np.zeros(session.levels)
    for file in files:
        image = contract.prepare(read_image(file)).image
        pixels += image.shape[0] * image.shape[1]
        for level in range(session.levels):
            payload = session.codec.encode(session.symbols(image, level), level)
            sizes[level] += len(payload) + STREAM_HEADER_BYTES
    return {"pixels": pixels / len(files), "bytes": (sizes / len(files)).round(1).tolist()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--scenes", type=int, default=5000, help="that the teacher is trained on (5000)")
    parser.add_argument("--images", type=int, default=1600, help="that a bottleneck is shown (1600)")
    parser.add_argument(
        "--plain", action="store_true", help="a bottleneck without training: minutes less, far more bytes"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures as JSON")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "detector.safetensors").is_file():
        prepare(args.work, args.scenes, 4)
    mixed = args.work / "mixed"
    if not (mixed / "annotations.json").is_file():
        mixed_scenes(mixed)
    recipe = RECIPE.format(teacher="detector", task=DETECT, images=args.images)
    recipe = recipe.replace("size = [96, 96]", f"size = [96, 96]\n{FREE}")
    if args.plain:
        start, end = recipe.index("[bottleneck]"), recipe.index("[train]")
        recipe = f'{recipe[:start]}[bottleneck]\npreset = "plain"\nbits = 6\n\n{recipe[end:]}'
    path, _ = compiled(args.work, "free-16", recipe)
    bundle, files = Bundle.open(path, allow_unsigned=True), sorted((mixed / "images").glob("*.png"))
    session = HeadSession(bundle, precision="fp32")
    found: dict[str, Any] = {name: bytes_of(session, contract, files) for name, contract in WAYS.items()}
    for name, row in found.items():
        print(f"{name:34} {row['pixels'] / 1000:5.1f} k pixels  {'  '.join(f'{size:7.1f} B' for size in row['bytes'])}")
    say("evaluating")
    result = evaluate(bundle, mixed / "images", labels=mixed / "annotations.json", codecs=())
    found["figures"] = {"teacher": result.of("teacher")[0].accuracy, "levels": [s.accuracy for s in result.of("split")]}
    print(f"mAP50 of the teacher {found['figures']['teacher']:.3f}, of the levels", end=" ")
    print(", ".join(f"{figure:.3f}" for figure in found["figures"]["levels"]))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
