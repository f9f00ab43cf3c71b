"""What images of any size cost and gain: one detector on scenes of many sizes, with free sizes and with letterboxes.

    python bench/free_sizes.py --work tasks-work/         after bench/tasks.py: its scenes and its detector are used

The test scenes are rendered with a side of 160 pixels and cut to 64 to 160 pixels either way, at the digits' own scale.
Three bundles of one detector are compiled from the same training scenes of 96 x 96: ``free`` with ``multiple_of`` 16 and
32, and one for letterboxes of 160 x 160. Each is evaluated on the same scenes: bytes a frame, and mAP50 against the labels.
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
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.frames import read_image

SIDE, LEAST = 160, 64
TEST_SCENES = 200
INPUTS = {
    "free-16": f'fit = "free"\nmax_size = [{SIDE}, {SIDE}]\nmultiple_of = 16',
    "free-32": f'fit = "free"\nmax_size = [{SIDE}, {SIDE}]\nmultiple_of = 32',
    "letterbox": 'fit = "letterbox"',
}


def mixed_scenes(folder: Path) -> None:
    """Test scenes, cut to many sizes; boxes that lie in the cut by half or more are kept, as much of them as is left."""
    scenes = SceneRenderer(test=True, side=SIDE).render(TEST_SCENES, seed=2)
    random = np.random.default_rng(3)
    for k, (frame, boxes, labels, mask) in enumerate(zip(*scenes, strict=True)):
        height, width = (int(side) for side in random.integers(LEAST, SIDE + 1, 2))
        top, left = (int(random.integers(0, SIDE - side + 1)) for side in (height, width))
        moved = np.clip(boxes - [left, top, left, top], 0, [width, height] * 2)
        area = np.prod(boxes[:, 2:] - boxes[:, :2], 1)
        kept = np.prod(moved[:, 2:] - moved[:, :2], 1) >= area / 2
        cut = np.s_[top : top + height, left : left + width]
        save_scenes(Scenes(frame[cut][None], [moved[kept]], [labels[kept]], mask[cut][None]), folder / f"{k:03}")
    _join(folder)


def _join(folder: Path) -> None:
    """One folder of images and one table of the single scenes'."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (folder / "images").mkdir()
    table: dict[str, Any] = {}
    for one in sorted(path for path in folder.iterdir() if path.name != "images"):
        table = json.loads((one / "annotations.json").read_text())
        name = f"{one.name}.png"
        (one / "images" / "00000.png").rename(folder / "images" / name)
        images.append({**table["images"][0], "id": len(images), "file_name": name})
        annotations += [
            {**row, "id": len(annotations) + k, "image_id": len(images) - 1}
            for k, row in enumerate(table["annotations"])
        ]
    (folder / "annotations.json").write_text(json.dumps({**table, "images": images, "annotations": annotations}))


def measured(work: Path, name: str, bundle: Bundle) -> dict[str, Any]:
    """One bundle on the mixed scenes."""
    say(f"evaluating {name}")
    folder = work / "mixed"
    result = evaluate(bundle, folder / "images", labels=folder / "annotations.json", codecs=())
    contract, pixels = bundle.manifest.input, 0
    for path in sorted((folder / "images").glob("*.png")):
        place = contract.placement(*read_image(path).shape[:2])
        pixels += place.input[0] * place.input[1]
    return {
        "bundle": name,
        "kilopixels": pixels / result.images / 1000,
        "teacher": result.of("teacher")[0].accuracy,
        "levels": [
            {"level": s.setting, "bytes": s.mean_bytes, "mAP50": s.accuracy, "to_teacher": s.agreement}
            for s in result.of("split")
        ],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--scenes", type=int, default=5000, help="that the teacher is trained on (5000)")
    parser.add_argument("--images", type=int, default=1600, help="that a bottleneck is shown (1600)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures as JSON")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "detector.safetensors").is_file():
        prepare(args.work, args.scenes, 4)
    if not (args.work / "mixed" / "annotations.json").is_file():
        mixed_scenes(args.work / "mixed")
    found = []
    for name, keys in INPUTS.items():
        usual = RECIPE.format(teacher="detector", task=DETECT, images=args.images)
        size = SIDE if name == "letterbox" else 96
        recipe = usual.replace("size = [96, 96]", f"size = [{size}, {size}]\n{keys}")
        path, _ = compiled(args.work, name, recipe)
        found.append(measured(args.work, name, Bundle.open(path, allow_unsigned=True)))
        row = found[-1]
        print(f"{name}: {row['kilopixels']:.1f} k pixels a frame, mAP50 of the teacher {row['teacher']:.3f}")
        for level in row["levels"]:
            print(
                f"  level {level['level']}: {level['bytes']:7.1f} B  mAP50 {level['mAP50']:.3f}  "
                f"to the teacher {level['to_teacher']:.3f}"
            )
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
