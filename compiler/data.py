"""Images to learn from: found, prepared once by the input contract, and kept on disk beside their teacher features."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from narrowcast.compiler.arrays import NUMBER_BYTES, keep_float16, read_index, write_array, write_index
from narrowcast.compiler.bottlenecks import Batch, Problem, Targets
from narrowcast.compiler.distillation import KeptTargets, keep_targets
from narrowcast.compiler.errors import DataError, TeacherError
from narrowcast.compiler.progress import SILENT, Progress
from narrowcast.compiler.shards import SUFFIX as SHARD
from narrowcast.compiler.shards import Member, find_shards, index_shard
from narrowcast.compiler.streaming import Source, StreamedImages, read
from narrowcast.compiler.views import Views
from narrowcast.transport.contract import InputContract
from narrowcast.transport.errors import FrameError
from narrowcast.transport.frames import SUFFIXES
from narrowcast.transport.structs import to_json

FEATURE_BATCH = 32
STEPS_AHEAD = 3

S = TypeVar("S", bound=Source)


@dataclass(frozen=True)
class PreparedImages:
    """Images as the network takes them.

    Attributes:
        images: uint8 ``[N, H, W, 3]``: memory-mapped, or decoded whenever rows are taken.
        sources: where each came from.
        skipped: those that could not be read, and why.
        digest: of the sources, the contract, and which of them could be read.
    """

    images: npt.NDArray[np.uint8] | StreamedImages
    sources: list[Source]
    skipped: list[str]
    digest: str

    @property
    def files(self) -> list[str]:
        """The sources' names."""
        return [str(source) for source in self.sources]

    def __len__(self) -> int:
        return len(self.sources)


def find_sources(text: str, folder: Path) -> tuple[list[Source], list[str]]:
    """What ``[data] train`` names, relative to ``folder``, and what of it cannot be used.

    A folder of images; a folder of tar shards, where it has no images; or shards: ``photos-{000..012}.tar``,
    ``photos-*.tar``, one file.

    Raises:
        DataError: there is nothing of the kind.
    """
    place = folder / text
    if place.is_dir():
        shards = sorted(path for path in place.rglob(f"*{SHARD}") if path.is_file() and not path.name.startswith("."))
        if not shards or _has_images(place):
            return list(find_images(place)), []
    elif SHARD in text or "*" in text:
        shards = find_shards(text, folder)
    else:
        raise DataError(f"no folder {place}, and it names no {SHARD} shards either")
    sources: list[Source] = []
    problems = []
    for shard in shards:
        members, problem = index_shard(shard)
        sources += members
        problems += [] if problem is None else [problem]
    if not sources:
        raise DataError(f"no images in {place} ({len(shards)} shards){': ' + problems[0] if problems else ''}")
    return sources, problems


def _has_images(folder: Path) -> bool:
    try:
        return bool(find_images(folder))
    except DataError:
        return False


def find_images(folder: Path) -> list[Path]:
    """All image files under ``folder``, sorted; hidden files and folders are left out.

    Raises:
        DataError: no such folder, or no images in it.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    if not found:
        raise DataError(f"no images under {folder} ({', '.join(sorted(SUFFIXES))})")
    return found


def choose(files: list[S], limit: int | None, seed: int) -> list[S]:
    """At most ``limit`` of the files, drawn by ``seed``, in their order."""
    if limit is None or limit >= len(files):
        return files
    drawn = np.random.default_rng(seed).choice(len(files), limit, replace=False)
    return [files[k] for k in sorted(drawn)]


def digest_of(files: Sequence[Source], contract: InputContract) -> str:
    """Names files, as they are now, and the contract that prepares them.

    Raises:
        OSError: one is not there.
    """
    shards = {file.shard: _stamp(file.shard) for file in files if isinstance(file, Member)}
    stamps = [
        f"{shards[f.shard]}\0{f.name}\0{f.offset}\0{f.size_bytes}" if isinstance(f, Member) else _stamp(f)
        for f in files
    ]
    return hashlib.sha256("\n".join([to_json(contract).decode(), *stamps]).encode()).hexdigest()[:16]


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"


def prepare_images(
    files: Sequence[Source],
    contract: InputContract,
    cache: Path,
    progress: Progress = SILENT,
    limit_bytes: float = math.inf,
) -> PreparedImages:
    """Decodes and resizes the files by the contract, once: a second call finds them in ``cache``.

    Where they would take more than ``limit_bytes``, all are decoded once to learn which can be, and again whenever they
    are asked for: the same images in the same order, slower.

    Raises:
        DataError: fewer than two could be read.
    """
    digest = digest_of(files, contract)
    data, index = cache / f"images-{digest}.u8", cache / f"images-{digest}.json"
    image_bytes = math.prod(contract.size) * 3
    listed = read_index(index, len(files), data, image_bytes)
    streamed = listed is None and len(files) * image_bytes > limit_bytes
    if streamed:
        index = cache / f"checked-{digest}.json"
        listed = read_index(index, len(files))
    if listed is None or _one_reads_now(files, listed, contract):
        cache.mkdir(parents=True, exist_ok=True)
        rows = _prepared(files, contract, progress)
        if streamed:
            listed = write_index(index, [problem for _, problem in rows])
        else:
            listed = write_array(data, np.uint8, rows, index)
    kept = [file for file, problem in zip(files, listed, strict=True) if problem is None]
    skipped = [f"{file}: {problem}" for file, problem in zip(files, listed, strict=True) if problem is not None]
    if skipped:  # other images, other numbers: what is kept of them is not for these
        numbers = [number for number, problem in enumerate(listed) if problem is None]
        digest = hashlib.sha256(f"{digest} {numbers}".encode()).hexdigest()[:16]
    if len(kept) < 2:
        raise DataError(f"{len(kept)} of {len(files)} images can be read; the first problem: {skipped[0]}")
    if streamed:
        return PreparedImages(StreamedImages(kept, contract), kept, skipped, digest)
    images = np.memmap(data, np.uint8, "r", shape=(len(kept), *contract.size, 3))
    return PreparedImages(images, kept, skipped, digest)


def _one_reads_now(files: Sequence[Source], listed: Sequence[str | None], contract: InputContract) -> bool:
    """Whether an image can be read that could not be: neither its rights nor a disk's bad day show in size and time."""

    def reads(file: Source) -> bool:
        try:
            read(file, contract)
        except FrameError:
            return False
        return True

    return any(reads(file) for file, problem in zip(files, listed, strict=True) if problem is not None)


def _prepared(
    files: Sequence[Source], contract: InputContract, progress: Progress
) -> Iterator[tuple[npt.NDArray[np.uint8] | None, str | None]]:
    def one(file: Source) -> tuple[npt.NDArray[np.uint8] | None, str | None]:
        try:
            return read(file, contract), None
        except FrameError as error:
            return None, str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool, progress.task("images", len(files), "images") as task:
        for start in range(0, len(files), 256):  # in slices, so that finished images do not pile up in memory
            for result in pool.map(one, files[start : start + 256]):
                yield result
                task.advance(1)


class TrainingData:
    """Prepared images with the teacher's features at the cut: kept on disk if they fit, else computed when asked for."""

    def __init__(
        self,
        prepared: PreparedImages,
        indices: npt.NDArray[np.int64],
        problem: Problem,
        seed: int,
        labels: npt.NDArray[np.int64] | None = None,
        flips: bool = False,
    ) -> None:
        self.labels = labels
        self.views = Views(len(prepared), flips)
        self.prepared = prepared
        self.indices = indices
        self.problem = problem
        self.seed = seed
        self._cached: npt.NDArray[np.float16] | None = None
        self._targets: dict[str, KeptTargets] = {}  # by stage
        self._asked = True  # whether anybody looked at the images of the batch before
        self._orders: dict[int, npt.NDArray[np.int64]] = {}  # of the passes that batches are taken from now

    def cache_features(self, folder: Path, teacher_digest: str, limit_bytes: float, progress: Progress) -> bool:
        """Computes the features of all views once; whether they fit within ``limit_bytes``.

        They are kept as float16. Features that float16 cannot hold are computed when asked for; that they are of this kind
        is kept instead.
        """
        shape = (len(self.views), *self.problem.cut.shape)
        if np.prod(shape, dtype=np.float64) * NUMBER_BYTES > limit_bytes:
            return False
        files = folder / f"features-{self._digest(teacher_digest)}"
        self._cached = keep_float16(files, shape, "teacher features", self._compute, progress)
        return self._cached is not None

    def cache_targets(
        self, stage: str, targets: Targets, folder: Path, teacher_digest: str, limit_bytes: float, progress: Progress
    ) -> bool:
        """Computes a stage's distillation targets for all views once; whether they are kept.

        Only behind cached features, and where both fit within ``limit_bytes``; see :func:`keep_targets`.
        """
        if self._cached is None:
            return False
        files = folder / f"targets-{self._digest(teacher_digest, targets.name)}"
        room = limit_bytes - self._cached.nbytes
        kept = keep_targets(targets, self._cached, files, room, self.problem.device, progress)
        if kept is not None:
            self._targets[stage] = kept
        return kept is not None

    def _digest(self, teacher_digest: str, *further: str) -> str:
        """Names what is computed of all views."""
        parts = [self.prepared.digest, teacher_digest, self.problem.cut.name, *further]
        parts += ["flips"] if self.views.flips else []
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]

    def _compute(self) -> Iterator[npt.NDArray[np.float32]]:
        for start in range(0, len(self.views), FEATURE_BATCH):
            rows = np.arange(start, min(start + FEATURE_BATCH, len(self.views)))
            features = self._teacher(self._images(rows), rows).cpu().numpy()
            yield features

    def _images(self, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        self._asked = True
        seen = self.views.seen(rows, self.prepared.images[self.views.image(rows)])
        return torch.from_numpy(seen).to(self.problem.device)

    @torch.no_grad()
    def _teacher(self, images: torch.Tensor, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """The features of ``images``, which are those numbered ``rows``.

        Raises:
            TeacherError: some are no numbers.
        """
        features: torch.Tensor = self.problem.before(self.problem.normalize(images))
        finite = torch.isfinite(features).flatten(1).all(1)
        if not finite.all():
            bad = int(self.views.image(rows)[int(finite.int().argmin())])
            raise TeacherError(
                f"the teacher's features at {self.problem.cut.name!r} are no numbers for {self.prepared.sources[bad]}: "
                "check its weights, and [input] range, mean and std"
            )
        return features.float()

    def batch(self, step: int, size: int, rank: int = 0, ranks: int = 1, stage: str = "") -> Batch:
        """The part that process ``rank`` of ``ranks`` has in the batch of training step ``step``, with the stage's targets.

        It is the same whenever it is asked for, so also in a run that goes on where it was. Every pass over the data has an
        order of its own, which NumPy's generator draws from ``(seed, pass)``; a batch may straddle passes. Parts differ by
        one image at most.
        """
        if isinstance(self.prepared.images, StreamedImages) and self._asked:
            ahead = [self._drawn(step + k, size, rank, ranks) for k in range(STEPS_AHEAD + 1)]
            self.prepared.images.expect(np.unique(self.views.image(np.concatenate(ahead))))
        self._asked = False
        generator = torch.Generator().manual_seed((self.seed + 1) * 1_000_003 + step + (rank << 40))
        return self.rows(self._drawn(step, size, rank, ranks), generator, stage)

    def _drawn(self, step: int, size: int, rank: int, ranks: int) -> npt.NDArray[np.int64]:
        """Which views those are."""
        count = len(self.indices)
        wanted = np.arange(step * size, (step + 1) * size)
        epochs = wanted // count
        rows = np.empty(size, np.int64)
        for epoch in np.unique(epochs).tolist():
            of_epoch = epochs == epoch
            rows[of_epoch] = self._order(epoch)[wanted[of_epoch] % count]
        return rows[rank * size // ranks : (rank + 1) * size // ranks]

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        """The views of one pass over the data, in its order: drawn once, as of the two passes that a batch may straddle."""
        order = self._orders.get(epoch)
        if order is None:
            self._orders = {epoch - 1: self._orders[epoch - 1]} if epoch - 1 in self._orders else {}
            order = self.indices[np.random.default_rng((self.seed, epoch)).permutation(len(self.indices))]
            order = self.views.of_pass(order, epoch, self.seed)
            self._orders[epoch] = order
        return order

    def rows(self, rows: npt.NDArray[np.int64], generator: torch.Generator | None = None, stage: str = "") -> Batch:
        """The views numbered ``rows`` as a batch, with the stage's targets where they are kept."""
        pictures: torch.Tensor | Callable[[], torch.Tensor] = partial(self._images, rows)
        if self._cached is None:
            pictures = self._images(rows)
            features = self._teacher(pictures, rows)
        else:
            features = torch.from_numpy(self._cached[rows].astype(np.float32)).to(self.problem.device)
        labels = None
        if self.labels is not None:
            labels = torch.from_numpy(self.labels[self.views.image(rows)]).to(self.problem.device)
        targets = self._targets[stage].of(rows) if stage in self._targets else None
        return Batch(pictures, features, generator or torch.Generator().manual_seed(self.seed), labels, targets)


def split_holdout(count: int, part: float, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Numbers ``0 .. count - 1`` as (training, held out), drawn by ``seed``; each has at least one."""
    held = min(count - 1, max(1, round(count * part)))
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])
