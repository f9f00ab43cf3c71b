"""Boxes and maps of classes for the command line: as JSON, and as PNG files."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from narrowcast.transport.files import replacing
from narrowcast.transport.frames import SUFFIXES
from narrowcast.transport.tasks import MAIN, Detections, Segmentation

if TYPE_CHECKING:
    from narrowcast.head.replay import Replayed
    from narrowcast.head.results import Result


def answers(result: Result | Replayed) -> dict[str, Any]:
    """A result's boxes and maps, for JSON; those of the main tail under ``detections`` or ``segmentation``.

    Those of further tails lie under ``tails`` and the tail's name. Boxes are x1, y1, x2, y2 in pixels of the source image;
    of a map, the part of the network's input that each class has.
    """
    found = {name: _answer(answer) for name, answer in result.answers.items()}
    main = found.pop(MAIN, {})
    return main | ({"tails": found} if found else {})


def _answer(answer: Detections | Segmentation) -> dict[str, Any]:
    if isinstance(answer, Detections):
        rows = zip(answer.boxes.tolist(), answer.scores.tolist(), answer.labels.tolist(), strict=True)
        return {
            "detections": [
                {
                    "box": [round(side, 2) for side in box],
                    "score": round(score, 4),
                    "class": label,
                    "label": answer.names[label],
                }
                for box, score, label in rows
            ]
        }
    counts = np.bincount(answer.mask.ravel(), minlength=len(answer.names))
    present = [int(k) for k in np.flatnonzero(counts)]
    parts = {answer.names[k]: round(float(counts[k] / answer.mask.size), 4) for k in present}
    return {"segmentation": parts}


def write_masks(result: Result, folder: Path, source: Path, root: Path) -> list[str]:
    """Writes a result's maps over the source image as PNG files of class numbers; gives their paths.

    They lie in ``folder`` as the sources lie under ``root``, further tails in a folder of their own name. Where
    sources differ by their ending alone, it stays in the maps' names (``a.jpg.png``).
    """
    from PIL import Image as Pillow

    inner = Path(source.name) if root.is_file() else source.relative_to(root)
    alike = [one for one in source.parent.glob(f"{glob.escape(source.stem)}.*") if one.suffix.lower() in SUFFIXES]
    name = f"{inner.name}.png" if len(alike) > 1 and root.is_dir() else f"{inner.stem}.png"
    written = []
    for tail, answer in result.answers.items():
        if isinstance(answer, Segmentation):
            path = (folder if tail == MAIN else folder / tail) / inner.with_name(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            mask = answer.to_source()
            if mask.dtype != np.uint8:  # PNG has 8 or 16 bits, and class numbers fit into 16
                mask = mask.astype(np.uint16)
            with replacing(path) as out:
                Pillow.fromarray(mask).save(out, "png")
            written.append(str(path))
    return written
