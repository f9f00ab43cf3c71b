"""The uncut network on the device: what a board does that sends nothing and splits nothing. The baseline of all else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from time import perf_counter_ns
from typing import NamedTuple

import msgspec

from narrowcast.head.ahead import Ready, made_ready
from narrowcast.head.backends import Array, Whole, load_whole
from narrowcast.head.choice import PRECISIONS, Choice, Wanted, fastest_first, time_in_turns
from narrowcast.head.errors import BackendError
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.bundle.manifest import Precision
from narrowcast.transport.contract import Image, Placement
from narrowcast.transport.errors import MissingPartError
from narrowcast.transport.selfcheck import reference_frames
from narrowcast.transport.tasks import DetectTask, SegmentTask
from narrowcast.transport.tasks.answers import decode


class LocalAnswer(NamedTuple):
    """What the uncut network gives for a frame.

    Attributes:
        outputs: the task's, by name, without the batch; boxes or a map of classes in their place, where the server would
            send those.
        placement: where the frame lies in the network's input.
        resize_ms: it took to make that of it.
        whole_ms: it took to run, boxes included.
    """

    outputs: dict[str, Array]
    placement: Placement
    resize_ms: float
    whole_ms: float


class WholeSession:
    """A bundle's uncut network, loaded: the fastest of its precisions here, by measurement.

    What lost too much in a lower precision was left out when the bundle was compiled, so any that is there may run.

    Args:
        bundle: opened for the role ``device`` (or ``any``), with its ``whole`` part.
        backend: one, or several, best first: the first that loads the network runs it.
        precision: this one, or ``auto``: the fastest here, measured for a second or two.
        threads: for the backend; 0 for its own choice.

    Attributes:
        choice: the precision and the backend that run, and why.

    Raises:
        MissingPartError: the bundle has no uncut network, or none in that precision.
        BackendError: no backend takes it.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        backend: str | Sequence[str] = "onnxruntime",
        precision: Wanted = "auto",
        threads: int = 0,
    ) -> None:
        self.bundle = bundle
        self.contract = bundle.manifest.input
        present = [name for name in PRECISIONS if bundle.has("whole", name)]
        if not present:
            raise MissingPartError(
                f"{bundle.path.name} has no uncut network: compile with [export] whole = true in the recipe, and take the "
                "whole bundle to the board"
            )
        wanted = present if precision == "auto" else [precision]
        passed_over: dict[str, str] = {}
        for name in [backend] if isinstance(backend, str) else backend:
            try:
                self.network, choice = _load(bundle, name, wanted, threads)
                break
            except BackendError as error:
                passed_over[name] = str(error)
        else:
            raise BackendError("; ".join(passed_over.values()) or "no backend was named")
        self.choice = msgspec.structs.replace(choice, passed_over=passed_over)
        task = bundle.manifest.task
        self._decoded = task if isinstance(task, DetectTask | SegmentTask) and task.decode_on == "server" else None

    def answer(self, frame: Image | Ready) -> LocalAnswer:
        """A frame uint8 ``[H, W, 3]`` RGB of any size, or one that is resized already, to the task's outputs.

        Raises:
            FrameError: not such a frame.
            BackendError: the network failed.
        """
        ready = made_ready(frame, self.contract)
        prepared, resized = ready.prepared, perf_counter_ns()
        outputs = self.network.run(prepared.image)
        if self._decoded is not None:
            outputs = decode(self._decoded, outputs, prepared.image.shape[:2])
        done = perf_counter_ns()
        return LocalAnswer(outputs, prepared.placement, ready.resize_ms, (done - resized) / 1e6)


def _load(bundle: Bundle, backend: str, names: Sequence[Precision], threads: int) -> tuple[Whole, Choice]:
    """The fastest of these precisions on a backend."""
    loaded: dict[Precision, Whole] = {}
    rejected: dict[Precision, str] = {}
    frame = reference_frames(bundle.manifest.input.size, 1)[0]
    for name in names:
        model = bundle.read("whole", name)
        try:
            whole = load_whole(backend, model, threads=threads)
            whole.run(frame)
        except BackendError as error:
            rejected[name] = str(error)
        else:
            loaded[name] = whole
    if not loaded:
        raise BackendError("; ".join(dict.fromkeys(rejected.values())))
    times = _times(loaded, frame) if len(loaded) > 1 else {}
    best = fastest_first(times)[0] if times else next(iter(loaded))
    return loaded[best], Choice(precision=best, backend=loaded[best].name, head_ms=times, rejected=rejected)


def _times(loaded: Mapping[Precision, Whole], frame: Image) -> dict[Precision, float]:
    return time_in_turns({name: partial(whole.run, frame) for name, whole in loaded.items()})
