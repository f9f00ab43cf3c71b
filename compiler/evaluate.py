"""What a bundle is worth: accuracy and real packet bytes per level, beside the teacher and beside sending the image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from narrowcast.compiler.codecs import CODECS, ImageCodec, available
from narrowcast.compiler.comparison import add_statistics
from narrowcast.compiler.data import choose, digest_of, find_images
from narrowcast.compiler.errors import DataError
from narrowcast.compiler.labels import TABLE, class_folders, read_labels
from narrowcast.compiler.outcome_cache import OutcomeCache
from narrowcast.compiler.progress import SILENT, Progress
from narrowcast.compiler.scores import By, Evaluation, Score, check_measurable
from narrowcast.compiler.verify import OnnxNetwork
from narrowcast.compiler.ways import (
    Frames,
    Labels,
    Tally,
    codec_ways,
    exit_way,
    local_way,
    split_ways,
    teacher_way,
    top_class,
)
from narrowcast.head.session import HeadSession
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.bundle.manifest import Precision
from narrowcast.transport.errors import FrameError
from narrowcast.transport.frames import read_image

__all__ = ["Evaluation", "Score", "evaluate", "evaluate_frames", "top_class"]

CHUNK = 16
Chunk = tuple[Frames, Labels | None]


def evaluate(
    bundle: Bundle | str | Path,
    data: str | Path,
    *,
    labels: str | Path | None = None,
    limit: int | None = None,
    precision: Precision = "fp32",
    codecs: Sequence[ImageCodec] = CODECS,
    by: By | None = None,
    work: str | Path | None = None,
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
        precision: of the head, and of the uncut network as it would run on the device.
        codecs: to put beside the split; those that this machine's Pillow lacks are left out and listed.
        by: a figure that must be measurable.
        work: where the codecs' results are kept, for another bundle of the same teacher on the same images; None keeps none.
        progress: told where it is.
        allow_unsigned: open an unsigned bundle file.

    Raises:
        DataError: no images, or labels that do not fit, or ``by`` cannot be measured with what there is.
        BundleError: the bundle must not be used, or lacks head or tail.
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle, allow_unsigned=allow_unsigned)
    files, truth = _labelled(Path(data), Path(labels) if labels else None, _classes(bundle))
    if by is not None:
        check_measurable(
            by, bundle.manifest.name, labelled=truth is not None, teacher=bundle.has("whole"),
            classes=_classes(bundle) is not None,
        )  # fmt: skip
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

    cache = _cache(bundle, chosen, truth, Path(work)) if work is not None and bundle.has("whole") else None
    result = _evaluate(bundle, chunks(), len(chosen), truth is not None, codecs, precision, progress, cache)
    if result is None:
        raise DataError(f"no image of {data} can be read; the first problem: {skipped[0]}")
    result.skipped = skipped
    return result


def evaluate_frames(
    bundle: Bundle,
    frames: Frames,
    labels: Labels | None,
    *,
    codecs: Sequence[ImageCodec] = CODECS,
    precision: Precision = "fp32",
    progress: Progress = SILENT,
) -> Evaluation:
    """:func:`evaluate` on frames uint8 ``[N, H, W, 3]`` that are as the contract wants them, and labels int64 ``[N]``.

    Raises:
        DataError: there are no frames.
    """
    chunks = (
        (frames[start : start + CHUNK], None if labels is None else labels[start : start + CHUNK])
        for start in range(0, len(frames), CHUNK)
    )
    result = _evaluate(bundle, chunks, len(frames), labels is not None, codecs, precision, progress)
    if result is None:
        raise DataError("there are no frames to evaluate on")
    return result


def _evaluate(
    bundle: Bundle,
    chunks: Iterator[Chunk],
    count: int,
    labelled: bool,
    codecs: Sequence[ImageCodec],
    precision: Precision,
    progress: Progress,
    cache: OutcomeCache | None = None,
) -> Evaluation | None:
    """All ways on all chunks; None if there are none."""
    there, absent = available(codecs if bundle.has("whole") else ())
    # Ways run side by side, one on a core; only where they are few does each get several cores.
    count_ways = bundle.manifest.codec.levels + sum(len(codec.qualities) * len(codec.scales) for codec in there)
    cores = len(os.sched_getaffinity(0))
    workers = min(cores, max(1, count_ways // 2))
    threads = max(1, cores // workers)
    whole = OnnxNetwork(bundle.read("whole"), threads) if bundle.has("whole") else None
    session = HeadSession(bundle, precision=precision, threads=threads)
    tallies = [Tally(way) for way in split_ways(session, threads)]
    if session.has_exit:
        tallies.append(Tally(exit_way(session)))
    sent: list[tuple[ImageCodec, Tally]] = []
    if whole is not None:
        alone = (
            [local_way(bundle, precision, threads)] if precision != "fp32" and bundle.has("whole", precision) else []
        )
        tallies = [*(Tally(way) for way in (teacher_way(), *alone)), *tallies]
        sent = [(codec, Tally(way)) for codec in there for way in codec_ways(codec, whole)]
    new = [(codec, tally) for codec, tally in sent if cache is None or not cache.restore(codec, tally)]
    _run([*tallies, *(tally for _, tally in new)], whole, chunks, workers, count, progress)
    if not tallies[0].images:
        return None
    if cache is not None:
        _keep(cache, new, progress)
        if any(tally.images != tallies[0].images for _, tally in sent):
            raise DataError(f"{cache.folder} was written when other images could be read: delete it")
    tallies += [tally for _, tally in sent]
    result = Evaluation(bundle.manifest.name, bundle.manifest.release, tallies[0].images, labelled, absent=absent)
    result.scores = [tally.score() for tally in tallies]
    result.outcomes = [tally.outcome() for tally in tallies]
    add_statistics(result)
    return result


def _cache(bundle: Bundle, files: list[Path], truth: dict[Path, int] | None, work: Path) -> OutcomeCache:
    """Where the codecs' results on these images by this teacher are kept."""
    images = digest_of([path for path in files if path.is_file()], bundle.manifest.input)
    labels = "" if truth is None else " ".join(str(truth[path]) for path in files)
    teacher = bundle.manifest.find("whole")
    assert teacher is not None
    return OutcomeCache(work / "cache" / "codecs", f"{images} [{labels}]", teacher.sha256)


def _keep(cache: OutcomeCache, measured: Sequence[tuple[ImageCodec, Tally]], progress: Progress) -> None:
    try:
        for codec, tally in measured:
            cache.keep(codec, tally)
    except OSError as error:  # minutes of evaluation are worth more than its cache
        progress.note(f"what the codecs did is not kept for the next run: {error}")


def _run(
    tallies: Sequence[Tally],
    whole: OnnxNetwork | None,
    chunks: Iterator[Chunk],
    workers: int,
    count: int,
    progress: Progress,
) -> None:
    """All ways on all chunks, ``workers`` at a time; ``whole`` is the teacher."""
    pool = ThreadPoolExecutor(workers)
    try:
        with progress.task("evaluating", count, "images") as task:
            for frames, labels in chunks:
                reference = None if whole is None else whole(image=frames)
                for done in [pool.submit(tally.add, frames, reference, labels) for tally in tallies]:
                    done.result()
                task.advance(len(frames))
    finally:
        pool.shutdown(cancel_futures=True)


def _classes(bundle: Bundle) -> int | None:
    return next((o.shape[0] for o in bundle.manifest.outputs if len(o.shape) == 1 and o.shape[0] > 1), None)


def _labelled(folder: Path, table: Path | None, classes: int | None) -> tuple[list[Path], dict[Path, int] | None]:
    """The images, and the label of each where there are labels."""
    if table is None and (folder / TABLE).is_file():
        table = folder / TABLE
    if table is not None:
        truth = read_labels(table, folder, classes)
        return sorted(truth), truth
    files = find_images(folder)
    names = class_folders(files, folder)
    if classes is not None and len(names) == classes:
        return files, {path: names.index(path.relative_to(folder).parts[0]) for path in files}
    return files, None
