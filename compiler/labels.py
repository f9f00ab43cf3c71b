"""Labels of images, for accuracy and for tuning a tail: a table beside the images, or class folders."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from narrowcast.compiler.data import find_images
from narrowcast.compiler.errors import DataError
from narrowcast.compiler.shards import Member
from narrowcast.compiler.streaming import Source

TABLE = "labels.csv"


def read_labels(table: Path, folder: Path, classes: int | None) -> dict[Path, int]:
    """A table with the columns ``file`` (relative to ``folder``) and ``label`` (0 to ``classes - 1``).

    Raises:
        DataError: it is no such table, it is empty, a file has two labels, or labels are outside.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as rows:
            pairs = [(folder / row["file"], int(row["label"])) for row in csv.DictReader(rows)]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(f"{table} is no table with columns file and label (whole numbers): {error!r}") from error
    truth = dict(pairs)
    if not truth:
        raise DataError(f"{table} lists no images")
    for file, label in pairs:
        if truth[file] != label:
            raise DataError(f"{table} gives {file} two labels, {label} and {truth[file]}")
    if classes is not None and not 0 <= min(truth.values()) <= max(truth.values()) < classes:
        raise DataError(
            f"{table} has labels from {min(truth.values())} to {max(truth.values())}; the model has classes 0..{classes - 1}"
        )
    return truth


def class_folders(files: Sequence[Path], folder: Path) -> list[str]:
    """Names of the folders directly under ``folder`` that hold ``files``, sorted; none where a file lies beside them."""
    if any(path.parent == folder for path in files):
        return []
    return sorted({path.relative_to(folder).parts[0] for path in files})


def labels_of(sources: Sequence[Source], folder: Path, classes: int) -> npt.NDArray[np.int64]:
    """The class of each training image, int64 ``[N]``: of files see :func:`training_labels`; of shards, from ``.cls``.

    Raises:
        DataError: an image has no label, or one that is no class.
    """
    members = [source for source in sources if isinstance(source, Member)]
    if not members:
        return training_labels([source for source in sources if isinstance(source, Path)], folder, classes)
    bare = [member for member in members if member.label is None]
    if bare:
        raise DataError(
            f"{bare[0]} and {len(bare) - 1} other images have no .cls beside them; "
            "label_weight wants the label of every image"
        )
    wrong = [member for member in members if not 0 <= (member.label or 0) < classes]
    if wrong:
        raise DataError(f"{wrong[0]} has class {wrong[0].label}; the teacher has classes 0..{classes - 1}")
    return np.array([member.label for member in members], np.int64)


def training_labels(files: Sequence[Path], folder: Path, classes: int) -> npt.NDArray[np.int64]:
    """The class of each file, int64 ``[N]``: from ``labels.csv`` in ``folder``, or from one class folder for each class.

    Class folders are numbered in the order of their names, as torchvision's ``ImageFolder`` does: all that hold images,
    whether or not ``files`` has any of theirs.

    Raises:
        DataError: there is neither, or a file has no label.
    """
    table = folder / TABLE
    if table.is_file():
        truth = read_labels(table, folder, classes)
        missing = [path for path in files if path not in truth]
        if missing:
            raise DataError(f"{table} has no label for {missing[0]} and {len(missing) - 1} other images")
        return np.array([truth[path] for path in files], np.int64)
    names = class_folders(find_images(folder), folder)  # of all images: [data] limit may draw none of a class
    if len(names) != classes:
        there = f"{len(names)} class folders" if names else "images that are not in class folders"
        raise DataError(
            f"{folder} has {there} and no {TABLE}; label_weight wants the label of every image: {classes} class "
            f"folders, one for each class of the teacher in its order, or a {TABLE} with the columns file and label"
        )
    return np.array([names.index(path.relative_to(folder).parts[0]) for path in files], np.int64)
