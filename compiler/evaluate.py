"""What a bundle is worth: accuracy and real packet bytes per level, beside the teacher and beside sending the image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from narrowcast.compiler.codecs import CODECS, ImageCodec, available
from narrowcast.compiler.comparison import add_statistics
from narrowcast.compiler.data import choose, digest_of
from narrowcast.compiler.errors import DataError
from narrowcast.compiler.judges import judge_for
from narrowcast.compiler.outcome_cache import OutcomeCache
from narrowcast.compiler.progress import SILENT, Progress
from narrowcast.compiler.scores import By, Evaluation, Score, check_measurable
from narrowcast.compiler.truth import find_truth
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
from narrowcast.transport.bundle import Bundle, TailSpec
from narrowcast.transport.bundle.manifest import Precision
from narrowcast.transport.contract import Image
from narrowcast.transport.errors import FrameError
from narrowcast.transport.frames import read_image
from narrowcast.transport.structs import nearest
from narrowcast.transport.tasks import MAIN

__all__ = ["Evaluation", "Score", "evaluate", "evaluate_frames", "top_class"]

CHUNK = 16
# Prepared frames that wait for others of their size, at most.
MOST_WAITING = 128
# Frames, and each one's truth where there are labels.
Chunk = tuple[Frames, Sequence[Any] | None]


def evaluate(
    bundle: Bundle | str | Path,
    data: str | Path,
    *,
    labels: str | Path | None = None,
    limit: int | None = None,
    precision: Precision = "fp32",
    codecs: Sequence[ImageCodec] = CODECS,
    by: By | None = None,
    tail: str = MAIN,
    work: str | Path | None = None,
    progress: Progress = SILENT,
    allow_unsigned: bool = False,
) -> Evaluation:
    """Runs a bundle on a folder of images.

    Args:
        bundle: opened for any role, or its file; with its ``whole`` part, the teacher and the image codecs are run too.
        data: a folder of images. Labels come from ``labels.csv`` in it (columns ``file`` and ``label``), or from class
            folders where there are as many as classes; boxes from ``annotations.json`` (COCO) in it or beside it, maps of
            classes from a folder ``masks`` beside it.
        labels: another file of labels, or folder of masks.
        limit: use at most so many images.
        precision: of the head, and of the uncut network as it would run on the device.
        codecs: to put beside the split; those that this machine's Pillow lacks are left out and listed.
        by: a figure that must be measurable.
        tail: which one, of a bundle with several.
        work: where the codecs' results are kept, for another bundle of the same teacher on the same images; None keeps none.
        progress: told where it is.
        allow_unsigned: open an unsigned bundle file.

    Raises:
        DataError: no images, or labels that do not fit, or ``by`` cannot be measured with what there is.
        BundleError: the bundle must not be used, or lacks head or tail.
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle, allow_unsigned=allow_unsigned)
    spec, contract = _tail(bundle, tail), bundle.manifest.input
    further = None if tail == MAIN else tail
    truth = find_truth(Path(data), Path(labels) if labels else None, spec.task, _classes(spec))
    truth_of = truth.of
    if by is not None:
        check_measurable(
            by, bundle.manifest.name, labelled=truth_of is not None, teacher=bundle.has("whole", tail=further),
            classes=_classes(spec) is not None or spec.task is not None,
        )  # fmt: skip
    chosen = choose(truth.files, limit, seed=0)
    skipped: list[str] = []

    def chunks() -> Iterator[Chunk]:
        # Frames of one size make a chunk; each size has one under way.
        under_way: dict[tuple[int, ...], list[tuple[Image, Any]]] = {}
        for number, path in enumerate(chosen, 1):
            try:
                prepared = contract.prepare(read_image(path))
            except FrameError as error:
                skipped.append(str(error))
            else:
                known = None if truth_of is None else truth_of(path, prepared.placement)
                under_way.setdefault(prepared.image.shape, []).append((prepared.image, known))
            waiting = sum(map(len, under_way.values()))
            last = number == len(chosen)
            for shape, rows in list(under_way.items()):
                if len(rows) == CHUNK or last or waiting >= MOST_WAITING:
                    frames, labels_known = zip(*under_way.pop(shape), strict=True)
                    yield np.stack(frames), None if truth_of is None else labels_known

    has_teacher = work is not None and bundle.has("whole", tail=further)
    cache = _cache(bundle, spec, chosen, truth.digest, Path(work)) if work is not None and has_teacher else None
    result = _evaluate(bundle, spec, chunks(), len(chosen), truth_of is not None, codecs, precision, progress, cache)
    if result is None:
        raise DataError(f"no image of {data} can be read; the first problem: {skipped[0]}")
    result.skipped, result.unlabelled = skipped, [str(path) for path in truth.unlabelled]
    return result


def evaluate_frames(
    bundle: Bundle,
    frames: Frames,
    labels: Sequence[Any] | Labels | None,
    *,
    codecs: Sequence[ImageCodec] = CODECS,
    precision: Precision = "fp32",
    tail: str = MAIN,
    progress: Progress = SILENT,
) -> Evaluation:
    """:func:`evaluate` on frames uint8 ``[N, H, W, 3]`` that are as the contract wants them, and their truth.

    Labels are int64 ``[N]``; for a detector one :class:`~narrowcast.compiler.judges.Boxes` per frame, for a segmenter one
    map of classes ``[H, W]`` (-1 where nobody is asked).

    Raises:
        DataError: there are no frames.
    """
    chunks = (
        (frames[start : start + CHUNK], None if labels is None else list(labels[start : start + CHUNK]))
        for start in range(0, len(frames), CHUNK)
    )
    spec = _tail(bundle, tail)
    result = _evaluate(bundle, spec, chunks, len(frames), labels is not None, codecs, precision, progress)
    if result is None:
        raise DataError("there are no frames to evaluate on")
    return result


def _evaluate(
    bundle: Bundle,
    spec: TailSpec,
    chunks: Iterator[Chunk],
    count: int,
    labelled: bool,
    codecs: Sequence[ImageCodec],
    precision: Precision,
    progress: Progress,
    cache: OutcomeCache | None = None,
) -> Evaluation | None:
    """All ways on all chunks; None if there are none."""
    further = None if spec.name == MAIN else spec.name
    has_teacher = bundle.has("whole", tail=further)
    judge = judge_for(spec.task, bundle.manifest.input.size)
    there, absent = available(codecs if has_teacher else ())
    # Ways run side by side, one on a core; only where they are few does each get several cores.
    count_ways = bundle.manifest.codec.levels + sum(len(codec.qualities) * len(codec.scales) for codec in there)
    cores = len(os.sched_getaffinity(0))
    workers = min(cores, max(1, count_ways // 2))
    threads = max(1, cores // workers)
    whole = OnnxNetwork(bundle.read("whole", tail=further), threads) if has_teacher else None
    session = HeadSession(bundle, precision=precision, threads=threads)
    tallies = [Tally(way, judge) for way in split_ways(session, threads, further)]
    if session.has_exit and further is None:  # the exit answers as the main tail does
        tallies.append(Tally(exit_way(session), judge))
    sent: list[tuple[ImageCodec, Tally]] = []
    if whole is not None:
        apart = precision != "fp32" and further is None and bundle.has("whole", precision)
        alone = [local_way(bundle, precision, threads)] if apart else []
        tallies = [*(Tally(way, judge) for way in (teacher_way(), *alone)), *tallies]
        sent = [(codec, Tally(way, judge)) for codec in there for way in codec_ways(codec, whole)]
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
    result.metric, result.tail = judge.metric, spec.name
    result.scores = [tally.score() for tally in tallies]
    result.outcomes = [tally.outcome() for tally in tallies]
    add_statistics(result)
    return result


def _cache(bundle: Bundle, spec: TailSpec, files: list[Path], labels: str, work: Path) -> OutcomeCache:
    """Where the codecs' results on these images by this teacher are kept."""
    images = digest_of([path for path in files if path.is_file()], bundle.manifest.input)
    teacher = bundle.manifest.find("whole", tail=None if spec.name == MAIN else spec.name)
    assert teacher is not None
    task = "" if spec.task is None else msgspec.json.encode(spec.task).decode()
    return OutcomeCache(work / "cache" / "codecs", f"{images} [{labels}] {task}", teacher.sha256)


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


def _classes(tail: TailSpec) -> int | None:
    return next((o.shape[0] for o in tail.outputs if len(o.shape) == 1 and o.shape[0] > 1), None)


def _tail(bundle: Bundle, name: str) -> TailSpec:
    tails = {tail.name: tail for tail in bundle.manifest.all_tails()}
    if name not in tails:
        raise DataError(f"{bundle.manifest.name} has no tail {name!r}{nearest(name, list(tails))}")
    return tails[name]
