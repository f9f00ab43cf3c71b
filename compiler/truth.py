"""Labels of a folder of images: classes, boxes or masks, as people keep them (``docs/tasks.md``)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from narrowcast.compiler.data import find_images
from narrowcast.compiler.errors import DataError
from narrowcast.compiler.judges import IGNORE, Boxes
from narrowcast.compiler.labels import TABLE, class_folders, read_labels
from narrowcast.transport.contract import Placement
from narrowcast.transport.tasks import DetectTask, SegmentTask, Task

MASK_SUFFIX = ".png"
UNLABELLED = 255  # of a mask's pixels, as PASCAL VOC and Cityscapes have it
MAX_TABLE_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Truth:
    """Images and what is known about them.

    Attributes:
        files: the images.
        of: a file's truth in terms of the network's input, given where the image lies in it; None without labels.
        digest: names the labels, as they are now.
        unlabelled: images of the folder that ``files`` leaves out, as the labels say nothing about them.
    """

    files: list[Path]
    of: Callable[[Path, Placement], Any] | None = None
    digest: str = ""
    unlabelled: list[Path] = field(default_factory=list)


def find_truth(folder: Path, labels: Path | None, task: Task | None, classes: int | None) -> Truth:
    """The images of ``folder`` and their labels, by what the task wants.

    Args:
        folder: images.
        labels: where the labels are; None looks where they usually are.
        task: the bundle's.
        classes: how many class scores the network gives; None where it gives none.

    Raises:
        DataError: no images, or labels that do not fit.
    """
    if isinstance(task, DetectTask):
        usual = (folder / "annotations.json", folder.parent / "annotations.json")
        table = labels or next((path for path in usual if path.is_file()), None)
        return Truth(find_images(folder)) if table is None else _coco(folder, table, task)
    if isinstance(task, SegmentTask):
        masks = labels or folder.parent / "masks"
        if labels is None and (not masks.is_dir() or masks == folder):
            return Truth(find_images(folder))
        return _masks(folder, masks, task)
    return _classes(folder, labels, classes)


def _others(folder: Path, listed: Iterable[Path]) -> list[Path]:
    """The images of ``folder`` that a table does not list; none where it has no images, whatever the table lists then."""
    try:
        images = find_images(folder)
    except DataError:
        return []
    known = {os.path.normpath(path) for path in listed}  # a table may say ``../a/1.png``
    return [path for path in images if os.path.normpath(path) not in known]


def _classes(folder: Path, table: Path | None, classes: int | None) -> Truth:
    if table is None and (folder / TABLE).is_file():
        table = folder / TABLE
    truth: dict[Path, int] | None = None
    others: list[Path] = []
    if table is not None:
        truth = read_labels(table, folder, classes)
        files, others = sorted(truth), _others(folder, truth)
    else:
        files = find_images(folder)
        names = class_folders(files, folder)
        if classes is not None and len(names) == classes:
            truth = {path: names.index(path.relative_to(folder).parts[0]) for path in files}
    if truth is None:
        return Truth(files)
    found = truth
    digest = " ".join(f"{path.name} {found[path]}" for path in files)
    return Truth(files, lambda path, _: found[path], digest, others)


class _Image(msgspec.Struct):
    id: int
    file_name: str


class _Category(msgspec.Struct):
    id: int
    name: str


class _Annotation(msgspec.Struct):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0


class _Coco(msgspec.Struct):
    """Of COCO's object detection form, what is used."""

    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def _coco(folder: Path, table: Path, task: DetectTask) -> Truth:
    try:
        data = table.read_bytes()
        found = msgspec.json.decode(data, type=_Coco)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{table} is no table of boxes in COCO's form: {error}") from error
    if not found.images:
        raise DataError(f"{table} lists no images")
    numbers = {name: k for k, name in enumerate(task.classes)}
    labels = {category.id: numbers.get(category.name) for category in found.categories}
    if all(label is None for label in labels.values()):
        seen = ", ".join(category.name for category in found.categories[:5])
        raise DataError(f"{table} has none of the bundle's classes ({task.classes[0]}, ...); it has {seen}")
    by_image: dict[int, list[tuple[tuple[float, ...], int, bool]]] = {image.id: [] for image in found.images}
    for entry in found.annotations:
        if entry.image_id not in by_image or entry.category_id not in labels:
            raise DataError(
                f"{table} has a box of image {entry.image_id} and category {entry.category_id}; it does not list both"
            )
        label = labels[entry.category_id]
        if label is not None:  # the network knows nothing of the other categories
            by_image[entry.image_id].append((entry.bbox, label, bool(entry.iscrowd)))
    files = {folder / image.file_name: image.id for image in found.images}

    def of(path: Path, placement: Placement) -> Boxes:
        rows = by_image[files[path]]
        corners = np.array([row[0] for row in rows], np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        kinds, crowd = np.array([row[1] for row in rows], np.int64), np.array([row[2] for row in rows], bool)
        # Detections end where the input ends, and so does what they are held against.
        boxes = np.clip(placement.boxes_to_input(corners), 0, placement.input[::-1] * 2)
        seen = (boxes[:, 2:] > boxes[:, :2]).all(1)
        return Boxes(boxes[seen], kinds[seen], None, crowd[seen])

    return Truth(sorted(files), of, hashlib.sha256(data).hexdigest(), _others(folder, files))


def _masks(folder: Path, masks: Path, task: SegmentTask) -> Truth:
    if not masks.is_dir():
        raise DataError(f"no folder of masks {masks}")
    files = [path for path in find_images(folder) if masks not in path.parents]
    of_file = {path: masks / path.relative_to(folder).with_suffix(MASK_SUFFIX) for path in files}
    there = [path for path in files if of_file[path].is_file()]
    bare = [path for path in files if not of_file[path].is_file()]
    if not there:
        raise DataError(f"no mask for any image of {folder}: {of_file[files[0]]} is wanted for {files[0].name}")

    def of(path: Path, placement: Placement) -> Any:
        mask = read_mask(of_file[path], len(task.classes))
        if mask.shape != placement.source:
            raise DataError(f"{of_file[path]} is {mask.shape}; its image is {placement.source} (height, width)")
        return placement.mask_to_input(mask, placement.input, IGNORE)

    stamps = [f"{of_file[path]} {(stat := of_file[path].stat()).st_size} {stat.st_mtime_ns}" for path in there]
    return Truth(there, of, hashlib.sha256("\n".join(stamps).encode()).hexdigest(), bare)


def read_mask(path: Path, classes: int) -> Any:
    """A PNG of class numbers (grey or palette) as int32 ``[H, W]``; 255 and what is beyond the classes becomes -1.

    Raises:
        DataError: it is no such image.
    """
    from PIL import Image as Pillow

    try:
        with Pillow.open(path) as image:
            if image.mode not in ("L", "P", "I;16", "I", "1"):
                raise DataError(f"{path} is an image of mode {image.mode}; a mask has one number per pixel")
            mask = np.array(image).astype(np.int32)
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as a mask: {error}") from error
    wrong = (mask >= classes) & (mask != UNLABELLED)
    if wrong.any():
        raise DataError(
            f"{path} has the class {mask[wrong][0]}; the bundle has 0..{classes - 1}, and 255 for unlabelled"
        )
    mask[mask >= classes] = IGNORE
    return mask
