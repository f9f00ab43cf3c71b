"""A detector and a segmenter, split: mAP50 and mIoU of the teachers and of every level, on scenes not trained on.

    python bench/tasks.py --work tasks-work/                   all of it; about ten minutes on two quiet cores
    python bench/tasks.py --work tasks-work/ --scenes 400 --epochs 1 --images 400      whether it runs

Scenes are rendered (narrowcast/demo/scenes.py), a detector and a segmenter are trained on them (scene_teachers.py), and
three bundles are compiled without labels: the detector, the segmenter, and both as two tails of the detector's head. Each is
evaluated as `narrowcast evaluate` does it, beside WebP. What is in the work folder already is not made again.

The exit code is 0 when both teachers reach 0.7 and a level of each split keeps 95 % of its teacher's figure.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from narrowcast.compiler.codecs import codecs_named
from narrowcast.compiler.compile import compile as compile_recipe
from narrowcast.compiler.evaluate import Evaluation, evaluate
from narrowcast.compiler.progress import SILENT
from narrowcast.demo.scenes import DIGIT_NAMES, MASK_NAMES, SceneRenderer, save_scenes
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.files import replacing

TEST_SCENES = 200
WANTED, KEPT = 0.7, 0.95
DETECT = f"""kind = "detect"
classes = {json.dumps(DIGIT_NAMES)}
strides = [8, 16]
"""
SEGMENT = f"""kind = "segment"
classes = {json.dumps(MASK_NAMES)}
"""
RECIPE = """[teacher]
model = "scene_teachers.py:{teacher}"
weights = "{teacher}.safetensors"

[data]
train = "train/images"

[cut]
at = "backbone.stages.0"

[input]
size = [96, 96]

[bottleneck]
preset = "shallow-residual"
encoder_macs = "12M"
trunk = "teacher"
stride = 8
channels = 24
levels = 3
rate_weights = [0.15, 4.0]
decoder_width = 48

[train]
images = {images}
batch = 16
learning_rate = 2e-3

[task]
{task}"""
FURTHER = """
[[tails]]
name = "segment"
model = "scene_teachers.py:segmenter"
weights = "segmenter.safetensors"
decoder_width = 48
at = "backbone.stages.0"

[tails.task]
{task}"""


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def prepare(work: Path, scenes: int, epochs: int) -> dict[str, float]:
    """Scenes and teachers; gives the seconds that each took where it was made."""
    from safetensors.torch import load_file, save

    from narrowcast.demo import scene_teachers as teachers

    seconds: dict[str, float] = {}
    started = time.perf_counter()
    training = SceneRenderer(test=False).render(scenes, seed=0)
    if not (work / "test" / "annotations.json").is_file():
        save_scenes(training, work / "train")
        save_scenes(SceneRenderer(test=True).render(TEST_SCENES, seed=1), work / "test")
        seconds["scenes"] = time.perf_counter() - started
    shutil.copyfile(teachers.__file__, work / "scene_teachers.py")
    for name in ("detector", "segmenter"):
        file = work / f"{name}.safetensors"
        if file.is_file():
            continue
        started = time.perf_counter()
        say(f"training the {name}")
        if name == "detector":
            net: Any = teachers.train_detector(training, epochs=epochs, seed=0, advance=lambda n, figures: None)
        else:
            detector = teachers.detector()
            detector.load_state_dict(load_file(work / "detector.safetensors"))
            net = teachers.train_segmenter(
                training, epochs=max(1, epochs - 1), seed=0, advance=lambda n, figures: None, start=detector.backbone
            )
        with replacing(file) as out:
            out.write(save(net.state_dict()))
        seconds[name] = time.perf_counter() - started
    return seconds


def compiled(work: Path, name: str, recipe: str) -> tuple[Path, float]:
    """A bundle, and the seconds that it took."""
    (work / f"{name}.toml").write_text(recipe)
    started = time.perf_counter()
    say(f"compiling {name}")
    compile_recipe(work / f"{name}.toml", work / f"{name}.ncb", work=work / "work")
    return work / f"{name}.ncb", time.perf_counter() - started


def measured(work: Path, bundle: Path, kind: str, tail: str, codecs: str) -> dict[str, Any]:
    """One tail on the test scenes, with their labels."""
    say(f"evaluating {bundle.stem}, {kind}")
    labels = work / "test" / ("annotations.json" if kind == "detect" else "masks")
    result: Evaluation = evaluate(
        Bundle.open(bundle, allow_unsigned=True), work / "test" / "images", labels=labels, tail=tail,
        codecs=codecs_named(codecs), work=work / "work", progress=SILENT,
    )  # fmt: skip
    teacher = result.of("teacher")[0].accuracy or 0.0
    return {
        "bundle": bundle.stem,
        "tail": tail,
        "metric": result.metric,
        "images": result.images,
        "teacher": teacher,
        "levels": [
            {
                "level": score.setting,
                "mean_bytes": score.mean_bytes,
                "figure": score.accuracy,
                "interval": score.accuracy_interval,
                "kept": (score.accuracy or 0.0) / max(teacher, 1e-9),
                "agreement": score.agreement,
                "webp_bytes_there": result.bytes_at_accuracy("webp", score.accuracy or 0.0),
            }
            for score in result.of("split")
        ],
    }


def show(row: dict[str, Any]) -> None:
    print(
        f"{row['bundle']}, tail {row['tail']}: {row['metric']} of the teacher {row['teacher']:.3f} on {row['images']} scenes"
    )
    for level in row["levels"]:
        there = level["webp_bytes_there"]
        print(
            f"  level {level['level']}: {level['mean_bytes']:7.1f} B  {row['metric']} {level['figure']:.3f} "
            f"({100 * level['kept']:.1f} % of the teacher's)  to the teacher {level['agreement']:.3f}  "
            f"WebP {'does not get there' if there is None else f'{there:.0f} B'}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--scenes", type=int, default=5000, help="to train the teachers on (5000)")
    parser.add_argument(
        "--epochs",
        type=int,
        default=4,
        help="of the teachers (4; the segmenter, which begins with the detector's backbone, one less)",
    )
    parser.add_argument("--images", type=int, default=6_000, help="that a bottleneck is shown (6000)")
    parser.add_argument("--codecs", default="webp", help="beside the split (webp), or none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures as JSON")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    seconds = prepare(args.work, args.scenes, args.epochs)
    recipes = {
        "detector": RECIPE.format(teacher="detector", task=DETECT, images=args.images),
        "segmenter": RECIPE.format(teacher="segmenter", task=SEGMENT, images=args.images),
    }
    recipes["both"] = recipes["detector"] + FURTHER.format(task=SEGMENT)
    found = []
    for name, recipe in recipes.items():
        bundle, seconds[f"compile {name}"] = compiled(args.work, name, recipe)
        tails = {"detector": [("detect", "main")], "segmenter": [("segment", "main")]}
        for kind, tail in tails.get(name, [("detect", "main"), ("segment", "segment")]):
            found.append(measured(args.work, bundle, kind, tail, args.codecs))
            show(found[-1])
            if args.json:
                args.json.write_text(json.dumps({"seconds": seconds, "rows": found}, indent=2) + "\n")
    for what, spent in seconds.items():
        say(f"{what}: {spent:.0f} s")
    good = all(row["teacher"] >= WANTED for row in found)
    kept = all(max(level["kept"] for level in row["levels"]) >= KEPT for row in found[:2])
    return 0 if good and kept else 1


if __name__ == "__main__":
    sys.exit(main())
