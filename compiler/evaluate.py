"""What a bundle is worth: accuracy and real packet bytes per level, beside the teacher and beside sending the image."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowcast.compiler.codecs import CODECS, ImageCodec
from narrowcast.compiler.data import choose, find_images
from narrowcast.compiler.errors import DataError
from narrowcast.compiler.progress import SILENT, Progress
from narrowcast.compiler.verify import OnnxNetwork
from narrowcast.head.session import HeadSession
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.bundle.manifest import Precision
from narrowcast.transport.errors import FrameError
from narrowcast.transport.frames import read_image
from narrowcast.transport.packet import STREAM_HEADER_BYTES

CHUNK = 32
Outputs = dict[str, npt.NDArray[Any]]
Chunk = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64] | None]


@dataclass
class Score:
    """One way of getting answers, on the same images.

    Attributes:
        way: ``teacher``, ``split``, ``png``, ``jpeg``, ``webp``.
        setting: the level or the quality; None where there is none.
        mean_bytes: per frame: a packet with its header, or an image file; None for the teacher.
        accuracy: part of the images with the right top class; None without labels or classes.
        agreement: part with the teacher's top class; None without the teacher or classes.
        output_error: squared error of all outputs as a part of their variance; None without the teacher.
    """

    way: str
    setting: int | None
    mean_bytes: float | None
    accuracy: float | None
    agreement: float | None
    output_error: float | None


@dataclass
class Evaluation:
    """Everything measured on one set of images."""

    model: str
    release: int
    images: int
    labelled: bool
    skipped: list[str] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)

    def of(self, way: str) -> list[Score]:
        """The scores of one way, in the order of its settings."""
        return [score for score in self.scores if score.way == way]

    def bytes_at_accuracy(self, way: str, accuracy: float, *, by: str = "accuracy") -> float | None:
        """The bytes at which an image codec reaches ``accuracy`` (or agreement), linearly between qualities.

        None where it does not at any of them. Never below the smallest file that was tried.
        """
        points: list[tuple[float, float]] = sorted((s.mean_bytes or 0.0, getattr(s, by) or 0.0) for s in self.of(way))
        before: tuple[float, float] | None = None
        for size, reached in points:
            if reached >= accuracy:
                if before is None or reached == before[1]:
                    return size
                return before[0] + (size - before[0]) * (accuracy - before[1]) / (reached - before[1])
            before = (size, reached)
        return None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def evaluate(
    bundle: Bundle | str | Path,
    data: str | Path,
    *,
    labels: str | Path | None = None,
    limit: int | None = None,
    precision: Precision = "fp32",
    progress: Progress = SILENT,
    allow_unsigned: bool = False,
) -> Evaluation:
    """Runs a bundle on a folder of images.

    Args:
        bundle: opened for any role, or its file; with its ``whole`` part, the teacher and the image codecs are run too.
        data: a folder of images. Labels come from ``labels.csv`` in it (columns ``file`` and ``label``), or from class
            folders where there are as many as classes.
        labels: another file of labels.
        limit: use at most so many images.
        precision: of the head.
        progress: told where it is.
        allow_unsigned: open an unsigned bundle file.

    Raises:
        DataError: no images, or labels that do not fit.
        BundleError: the bundle must not be used, or lacks head or tail.
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle, allow_unsigned=allow_unsigned)
    files, truth = _labelled(Path(data), Path(labels) if labels else None, _classes(bundle))
    chosen = choose(files, limit, seed=0)
    skipped: list[str] = []

    def chunks() -> Iterator[Chunk]:
        for start in range(0, len(chosen), CHUNK):
            frames, kept = [], []
            for path in chosen[start : start + CHUNK]:
                try:
                    frames.append(bundle.manifest.input.prepare(read_image(path)).image)
                    kept.append(path)
                except FrameError as error:
                    skipped.append(str(error))
            if frames:
                yield np.stack(frames), None if truth is None else np.array([truth[path] for path in kept])

    result = _evaluate(bundle, chunks(), len(chosen), truth is not None, CODECS, precision, progress)
    result.skipped = skipped
    if not result.images:
        raise DataError(f"no image of {data} can be read; the first problem: {skipped[0]}")
    return result


def evaluate_frames(
    bundle: Bundle,
    frames: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64] | None,
    *,
    codecs: Sequence[ImageCodec] = CODECS,
    precision: Precision = "fp32",
    progress: Progress = SILENT,
) -> Evaluation:
    """:func:`evaluate` on frames uint8 ``[N, H, W, 3]`` that are as the contract wants them, and labels int64 ``[N]``."""
    chunks = (
        (frames[start : start + CHUNK], None if labels is None else labels[start : start + CHUNK])
        for start in range(0, len(frames), CHUNK)
    )
    return _evaluate(bundle, chunks, len(frames), labels is not None, codecs, precision, progress)


def _evaluate(
    bundle: Bundle,
    chunks: Iterator[Chunk],
    count: int,
    labelled: bool,
    codecs: Sequence[ImageCodec],
    precision: Precision,
    progress: Progress,
) -> Evaluation:
    session, tail = HeadSession(bundle, precision=precision), OnnxNetwork(bundle.read("tail"))
    whole = OnnxNetwork(bundle.read("whole")) if bundle.has("whole") else None
    tallies: dict[tuple[str, int | None], _Tally] = {}

    def add(way: str, setting: int | None, *found: Any) -> None:
        tallies.setdefault((way, setting), _Tally()).add(*found)

    with progress.task("evaluating", count, "images") as task:
        for frames, labels in chunks:
            reference = None if whole is None else whole(image=frames)
            if reference is not None:
                add("teacher", None, [], reference, reference, labels)
            for level in range(session.levels):
                symbols = np.stack([session.symbols(frame, level) for frame in frames])
                sizes = [len(session.codec.encode(one, level)) + STREAM_HEADER_BYTES for one in symbols]
                outputs = tail(symbols=symbols, level=np.full(len(frames), level, np.int64))
                add("split", level, sizes, outputs, reference, labels)
            for codec in codecs if whole is not None else ():
                for quality in codec.qualities:
                    decoded, sizes_ = zip(*(codec.transcode(frame, quality) for frame in frames), strict=True)
                    assert whole is not None
                    add(codec.name, quality, sizes_, whole(image=np.stack(decoded)), reference, labels)
            task.advance(len(frames))
    images = max((tally.images for tally in tallies.values()), default=0)
    result = Evaluation(bundle.manifest.name, bundle.manifest.release, images, labelled)
    result.scores = [tally.score(way, setting) for (way, setting), tally in tallies.items()]
    return result


class _Tally:
    """Adds up one way's results, chunk by chunk."""

    def __init__(self) -> None:
        self.images = 0
        self.bytes: int | None = None
        self.right: int | None = None
        self.agreed: int | None = None
        self.moments: dict[str, npt.NDArray[np.float64]] = {}  # count, sum, squares of the reference; squared error

    def add(self, sizes: Sequence[int], outputs: Outputs, reference: Outputs | None, labels: Any) -> None:
        top = top_class(outputs)
        self.images += len(next(iter(outputs.values())))
        if sizes:
            self.bytes = (self.bytes or 0) + sum(sizes)
        if top is not None and labels is not None:
            self.right = (self.right or 0) + int((top == labels).sum())
        if reference is None:
            return
        other = top_class(reference)
        if top is not None and other is not None:
            self.agreed = (self.agreed or 0) + int((top == other).sum())
        for name, wanted in reference.items():
            if wanted.dtype.kind == "f":
                w = wanted.astype(np.float64)
                found = np.array([w.size, w.sum(), np.square(w).sum(), np.square(outputs[name] - w).sum()])
                self.moments[name] = self.moments.get(name, np.zeros(4)) + found

    def score(self, way: str, setting: int | None) -> Score:
        def per_image(total: int | None) -> float | None:
            return None if total is None else total / self.images

        errors = [
            error / max(squares - total**2 / count, 1e-12) for count, total, squares, error in self.moments.values()
        ]
        output_error = float(np.mean(errors)) if errors else None
        return Score(way, setting, per_image(self.bytes), per_image(self.right), per_image(self.agreed), output_error)


def top_class(outputs: Outputs) -> npt.NDArray[np.int64] | None:
    """The top class per image int64 ``[N]``: of the first output that is class scores ``[N, K]``; None without any."""
    for values in outputs.values():
        if values.ndim == 2 and values.shape[1] > 1 and values.dtype.kind == "f":
            top: npt.NDArray[np.int64] = values.argmax(1)
            return top
    return None


def _classes(bundle: Bundle) -> int | None:
    return next((o.shape[0] for o in bundle.manifest.outputs if len(o.shape) == 1 and o.shape[0] > 1), None)


def _labelled(folder: Path, table: Path | None, classes: int | None) -> tuple[list[Path], dict[Path, int] | None]:
    """The images, and the label of each where there are labels."""
    if table is None and (folder / "labels.csv").is_file():
        table = folder / "labels.csv"
    if table is not None:
        truth = _read_labels(table, folder, classes)
        return sorted(truth), truth
    files = find_images(folder)
    names = sorted({path.relative_to(folder).parts[0] for path in files if path.parent != folder})
    if classes is not None and len(names) == classes and all(path.parent != folder for path in files):
        return files, {path: names.index(path.relative_to(folder).parts[0]) for path in files}
    return files, None


def _read_labels(table: Path, folder: Path, classes: int | None) -> dict[Path, int]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as rows:
            truth = {folder / row["file"]: int(row["label"]) for row in csv.DictReader(rows)}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{table} is no table with columns file and label (whole numbers): {error!r}") from error
    if not truth:
        raise DataError(f"{table} lists no images")
    if classes is not None and not 0 <= min(truth.values()) <= max(truth.values()) < classes:
        raise DataError(f"{table} has labels up to {max(truth.values())}; the model has classes 0..{classes - 1}")
    return truth
