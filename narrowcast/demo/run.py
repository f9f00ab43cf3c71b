"""The demo's steps: render, train a teacher, compile, serve in another process, stream, evaluate, report."""

from __future__ import annotations

import json
import os
import platform
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from narrowcast.compiler.codecs import ImageCodec, codecs_named
from narrowcast.compiler.compile import compile as compile_recipe
from narrowcast.compiler.evaluate import Evaluation, evaluate_frames, top_class
from narrowcast.compiler.progress import Progress
from narrowcast.demo.render import Rendered, Renderer, save
from narrowcast.devices.stages import StageTimer
from narrowcast.head.client import Client
from narrowcast.head.results import Result
from narrowcast.head.session import HeadSession
from narrowcast.transport.bundle import Bundle, SecretKey
from narrowcast.transport.errors import NarrowcastError
from narrowcast.transport.files import replacing

TRAIN_FRAMES = 8_000
TEST_FRAMES = 300
TEACHER_EPOCHS = (6, 1)  # on crops, on whole frames
QUALITIES = (2, 5, 10, 15, 20, 30, 40, 50, 95)
STREAM_SECONDS = 4.0
SERVER_START_SECONDS = 60.0
MODEL = "demo"

RECIPE = """\
# The demo's recipe, as you would write one for your own network.
[teacher]
model = "teacher.py:load"
weights = "teacher.safetensors"

[data]
train = "train"

[cut]
at = "stages.0"

[input]
size = [96, 96]

[bottleneck]
preset = "shallow-residual"
encoder_macs = "15M"
trunk = "teacher"
levels = 4
channels = 24
rate_weights = [0.3, 6.0]
decoder_width = 48

[train]
images = 10000
batch = 32
learning_rate = 2e-3
"""


class DemoError(NarrowcastError):
    """The demo could not be finished."""


class Watcher(Protocol):
    """Who looks on while frames stream."""

    def frame(self, result: Result, right: bool) -> None:
        """One frame was answered."""


@dataclass
class Streamed:
    """What streaming one level measured."""

    level: int
    frames: int
    accuracy: float
    mean_packet_bytes: float
    socket_up_bytes: float | None
    socket_down_bytes: float | None
    frames_per_second: float
    latency_p50_ms: float
    stages: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class DemoResult:
    """Everything the demo leaves behind."""

    folder: Path
    bundle: Path
    seconds: float
    teacher_macs: int
    head_macs: int
    evaluation: Evaluation
    streamed: list[Streamed]
    test: Rendered
    sample_answers: list[int]
    machine: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "seconds": round(self.seconds, 1),
            "machine": self.machine,
            "bundle": self.bundle.name,
            "teacher_macs": self.teacher_macs,
            "evaluation": self.evaluation.as_dict(),
            "streamed": [msgspec.to_builtins(one) for one in self.streamed],
        }


def run_demo(folder: Path, progress: Progress, watch: Callable[[int], Watcher]) -> DemoResult:
    """Runs the demo; leaves bundle, recipe, data and figures in ``folder``.

    Args:
        folder: is made; files of an earlier demo are overwritten.
        progress: told where it is.
        watch: gives who looks on while a level streams.

    Raises:
        DemoError: the server did not come up.
    """
    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    test = _prepare(folder, progress)
    key = SecretKey.new("demo")
    public = folder / "demo.pub"
    key.public.write(public)
    models = folder / "models"
    models.mkdir(exist_ok=True)
    bundle_file = models / f"{MODEL}.ncb"
    compile_recipe(folder / f"{MODEL}.toml", bundle_file, key=key, work=folder / "work", progress=progress)
    bundle = Bundle.open(bundle_file, trusted=[key.public])
    evaluation = evaluate_frames(bundle, test.frames, test.labels, codecs=_codecs(), progress=progress)
    session = HeadSession(bundle)
    with tail_server(models, public) as address:
        progress.note(f"tail server: a process of its own on {address}")
        streamed = [_stream(session, address, test, level, watch(level)) for level in range(session.levels)]
        answers = _answers(session, address, test, count=12)
    figures = bundle.manifest.figures
    return DemoResult(
        folder, bundle_file, time.perf_counter() - started, figures["teacher_macs"], figures["head_macs"], evaluation,
        streamed, test, answers, _machine(),
    )  # fmt: skip


def _prepare(folder: Path, progress: Progress) -> Rendered:
    """Renders the frames, trains the teacher, writes the recipe; returns the test frames."""
    from safetensors.torch import save as to_safetensors

    from narrowcast.demo import teacher

    with progress.task("rendering frames", TRAIN_FRAMES + TEST_FRAMES, "frames") as task:
        training = Renderer(test=False).render(TRAIN_FRAMES, seed=0)
        task.advance(TRAIN_FRAMES)
        test = Renderer(test=True).render(TEST_FRAMES, seed=1)
        task.advance(TEST_FRAMES)
    save(training, folder / "train")
    save(test, folder / "test")
    with progress.task("training the teacher", sum(TEACHER_EPOCHS) * TRAIN_FRAMES, "images") as task:
        net = teacher.train(*training, epochs=TEACHER_EPOCHS, seed=0, advance=task.advance)
    with replacing(folder / "teacher.safetensors") as out:
        out.write(to_safetensors(net.state_dict()))
    shutil.copyfile(teacher.__file__, folder / "teacher.py")
    (folder / f"{MODEL}.toml").write_text(RECIPE)
    return test


@contextmanager
def tail_server(models: Path, trust: Path) -> Iterator[str]:
    """A tail server in a process of its own, on a free port of this machine; gives its address.

    Raises:
        DemoError: it does not come up.
    """
    command = [
        sys.executable, "-m", "narrowcast", "serve", "--bundles", str(models), "--listen", "127.0.0.1:0", "--json",
        "--trust", str(trust), "--quiet",
    ]  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603
    try:
        assert server.stdout is not None
        ready, _, _ = select.select([server.stdout], [], [], SERVER_START_SECONDS)
        line = server.stdout.readline() if ready else ""
        if not line:
            server.kill()
            raise DemoError(f"the tail server did not come up: {(server.communicate()[1] or 'no word').strip()[-300:]}")
        yield str(json.loads(line)["address"])
    finally:
        server.terminate()
        try:
            server.communicate(timeout=15)
        except subprocess.TimeoutExpired:
            server.kill()
            server.communicate()


def _stream(session: HeadSession, address: str, test: Rendered, level: int, watcher: Watcher) -> Streamed:
    """Streams the test frames, again and again, for a few seconds."""
    timer, latencies, right, packet_bytes = StageTimer(), [], 0, 0
    count = len(test.frames)

    def frames() -> Iterator[Any]:
        until, number = time.perf_counter() + STREAM_SECONDS / session.levels, 0
        while number < 50 or time.perf_counter() < until:
            yield test.frames[number % count]
            number += 1

    with Client(session, address, level=level, window=4) as client:
        client.infer(test.frames[0])  # opens the stream; what follows is the steady state
        before, started = client.socket_bytes(), time.perf_counter()
        for done, result in enumerate(client.stream(frames())):
            is_right = _top(result) == int(test.labels[done % count])
            right += is_right
            packet_bytes += result.packet_bytes
            latencies.append(result.latency_ms)
            timer.add_all(result.times.stages())
            watcher.frame(result, is_right)
        seconds, after = time.perf_counter() - started, client.socket_bytes()
    done = len(latencies)
    on_socket = (
        None if before is None or after is None else (after.sent - before.sent, after.received - before.received)
    )
    return Streamed(
        level=level,
        frames=done,
        accuracy=right / done,
        mean_packet_bytes=packet_bytes / done,
        socket_up_bytes=on_socket[0] / done if on_socket else None,
        socket_down_bytes=on_socket[1] / done if on_socket else None,
        frames_per_second=done / seconds,
        latency_p50_ms=float(np.median(latencies)),
        stages=[stage.as_dict() for stage in timer.summary()],
    )


def _answers(session: HeadSession, address: str, test: Rendered, count: int) -> list[int]:
    with Client(session, address, level=session.levels - 1) as client:
        return [_top(result) for result in client.stream(test.frames[:count])]


def _top(result: Result) -> int:
    if result.error is not None:
        raise DemoError(f"frame {result.frame_id} failed: {result.error}")
    top = top_class({name: values[None] for name, values in result.outputs.items()})
    assert top is not None
    return int(top[0])


def _codecs() -> list[ImageCodec]:
    """PNG, and JPEG and WebP at the qualities where small frames are decided: a matched accuracy wants fine steps."""
    return [
        codec if codec.name == "png" else codec._replace(qualities=QUALITIES, scales=(1.0,))
        for codec in codecs_named("png,jpeg,webp")
    ]


def _machine() -> str:
    return f"{len(os.sched_getaffinity(0))} x {platform.machine()}, {platform.system()}, Python {platform.python_version()}"
