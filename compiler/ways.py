"""The ways of getting answers that an evaluation puts side by side.

The teacher; the split at each level; the device alone, by its local exit or by the uncut network in a lower precision; image
codecs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from narrowcast.compiler.codecs import ImageCodec
from narrowcast.compiler.judges import ClassJudge, Judge, top_class
from narrowcast.compiler.samples import Hits, Samples, mean_of, restore
from narrowcast.compiler.scores import Outcome, Score
from narrowcast.compiler.verify import OnnxNetwork
from narrowcast.head.session import HeadSession
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.bundle.manifest import Precision
from narrowcast.transport.packet import STREAM_HEADER_BYTES

__all__ = ["Frames", "Labels", "Outputs", "Tally", "Way", "codec_ways", "split_ways", "teacher_way", "top_class"]

Frames = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Outputs = dict[str, npt.NDArray[Any]]
_MOMENTS, _RIGHT, _AGREED = "moments of ", "right ", "agreed "


class Answers(NamedTuple):
    """What a way gives for some frames.

    Attributes:
        outputs: of the task, one row per frame.
        sizes: the bytes that were sent for each frame; None where nothing is.
    """

    outputs: Outputs
    sizes: Sequence[int] | None


class Way(NamedTuple):
    """One way of getting answers.

    Attributes:
        name: see :class:`~narrowcast.compiler.scores.Score`; so are setting and scale.
        setting: the level or the quality.
        scale: the side of the image that is sent, as a part of the network's input.
        answer: takes frames uint8 ``[N, H, W, 3]`` and the teacher's outputs for them (None without a teacher). Called
            from several threads at a time.
    """

    name: str
    setting: int | None
    scale: float | None
    answer: Callable[[Frames, Outputs | None], Answers]


def split_ways(session: HeadSession, threads: int, further: str | None = None) -> list[Way]:
    """The split, level by level: head, coder and tail as on board and server, the tail on ``threads`` threads.

    ``further`` is the tail's name where it is not the main one.
    """
    tail = OnnxNetwork(session.bundle.read("tail", tail=further), threads)

    def at(level: int) -> Way:
        def answer(frames: Frames, _: Outputs | None) -> Answers:
            symbols = np.stack([session.symbols(frame, level) for frame in frames])
            sizes = [len(session.codec.encode(one, level)) + STREAM_HEADER_BYTES for one in symbols]
            return Answers(tail(symbols=symbols, level=np.full(len(frames), level, np.int64)), sizes)

        return Way("split", level, None, answer)

    return [at(level) for level in range(session.levels)]


def exit_way(session: HeadSession) -> Way:
    """The local exit, on the symbols of the highest level: what they would take to send is no matter to it."""
    level = session.levels - 1

    def answer(frames: Frames, _: Outputs | None) -> Answers:
        found = [session.answer(session.symbols(frame, level), level) for frame in frames]
        return Answers({name: np.stack([one[name] for one in found]) for name in found[0]}, None)

    return Way("exit", level, None, answer)


def local_way(bundle: Bundle, precision: Precision, threads: int) -> Way:
    """The uncut network on the device, in a precision."""
    whole = OnnxNetwork(bundle.read("whole", precision), threads)

    def answer(frames: Frames, _: Outputs | None) -> Answers:
        return Answers(whole(image=frames), None)

    return Way("local", None, None, answer)


def teacher_way() -> Way:
    """The teacher on the frames themselves."""

    def answer(_: Frames, reference: Outputs | None) -> Answers:
        assert reference is not None
        return Answers(reference, None)

    return Way("teacher", None, None, answer)


def codec_ways(codec: ImageCodec, whole: OnnxNetwork) -> list[Way]:
    """The teacher on what arrives when images are sent by a codec: one way per scale and quality."""

    def at(quality: int | None, scale: float) -> Way:
        def answer(frames: Frames, reference: Outputs | None) -> Answers:
            arrived, sizes = zip(*(codec.transcode(frame, quality, scale) for frame in frames), strict=True)
            images = np.stack(arrived)
            if reference is not None and np.array_equal(images, frames):
                return Answers(reference, sizes)
            return Answers(whole(image=images), sizes)

        return Way(codec.name, quality, scale, answer)

    return [at(quality, scale) for scale in codec.scales for quality in codec.qualities]


class Tally:
    """Gathers one way's results, chunk by chunk."""

    def __init__(self, way: Way, judge: Judge | None = None) -> None:
        self.way = way
        self.judge: Judge = judge or ClassJudge()
        self.images = 0
        self._sizes: list[npt.NDArray[np.int64]] = []
        self._right: list[Any] = []
        self._agreed: list[Any] = []
        self._moments: dict[str, npt.NDArray[np.float64]] = {}
        self._outcome: Outcome | None = None  # made of the parts, or restored

    def add(self, frames: Frames, reference: Outputs | None, labels: Sequence[Any] | None) -> None:
        """The next frames; ``reference`` are the teacher's outputs, ``labels`` the judge's truth."""
        outputs, sizes = self.way.answer(frames, reference)
        self.images += len(frames)
        if sizes is not None:
            self._sizes.append(np.array(sizes, np.int64))
        judge = self.judge.at((frames.shape[1], frames.shape[2]))
        answers = judge.answers(outputs)
        if answers is not None and labels is not None:
            self._right.append(judge.compare(answers, labels))
        if reference is None:
            return
        wanted = judge.truth(reference)
        if answers is not None and wanted is not None:
            self._agreed.append(judge.compare(answers, wanted))
        for name, values in reference.items():
            if values.dtype.kind == "f":
                self._moments[name] = self._moments.get(name, np.zeros(4)) + _moments(outputs[name], values)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All that was gathered, by name."""
        right, agreed, sizes = self._samples()
        found = {"images": np.array(self.images)} | ({} if sizes is None else {"sizes": sizes})
        for prefix, samples in ((_RIGHT, right), (_AGREED, agreed)):
            found |= {} if samples is None else {prefix + name: values for name, values in samples.arrays().items()}
        return found | {f"{_MOMENTS}{name}": values for name, values in self._moments.items()}

    def restore(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Takes what :meth:`arrays` gave, in place of what was gathered.

        Raises:
            KeyError: something is missing.
        """

        def under(prefix: str) -> dict[str, npt.NDArray[Any]]:
            return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}

        images = int(arrays["images"])
        self._outcome = Outcome(restore(under(_RIGHT)), restore(under(_AGREED)), arrays.get("sizes"))
        self._moments = under(_MOMENTS)
        self.images = images

    def _samples(self) -> tuple[Samples | None, Samples | None, npt.NDArray[np.int64] | None]:
        if self._outcome is None:
            parts = [self.judge.join(found) if found else None for found in (self._right, self._agreed)]
            self._outcome = Outcome(parts[0], parts[1], np.concatenate(self._sizes) if self._sizes else None)
        right, agreed, sizes = self._outcome
        assert not isinstance(right, np.ndarray)
        assert not isinstance(agreed, np.ndarray)
        return right, agreed, sizes

    def outcome(self) -> Outcome:
        """The single images."""
        right, agreed, sizes = self._samples()
        return Outcome(
            right.right if isinstance(right, Hits) else right,
            agreed.right if isinstance(agreed, Hits) else agreed,
            sizes,
        )

    def score(self) -> Score:
        """The figures."""
        right, agreed, sizes = self._samples()
        errors = [
            error / max(squares - total**2 / count, 1e-12) for count, total, squares, error in self._moments.values()
        ]
        return Score(
            way=self.way.name,
            setting=self.way.setting,
            scale=self.way.scale,
            mean_bytes=None if sizes is None else float(sizes.mean()),
            accuracy=mean_of(right),
            agreement=mean_of(agreed),
            output_error=float(np.mean(errors)) if errors else None,
        )


def _moments(outputs: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Of the reference: count, sum, squares; and the squared error."""
    w = wanted.astype(np.float64)
    return np.array([w.size, w.sum(), np.square(w).sum(), np.square(outputs - w).sum()])
