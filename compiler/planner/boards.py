"""Times of a board that is not this machine: predicted from its calibration, or measured there over ssh."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from narrowcast.compiler.errors import BoardError
from narrowcast.devices.calibration import Calibration
from narrowcast.devices.calibration.operations import operation
from narrowcast.head.backends.profiling import profile

SSH_SECONDS = 600.0


class BoardTime(NamedTuple):
    """A network on a board: milliseconds, and millijoules gross and net of idle where the board's power is known."""

    ms: float
    mj: float | None = None
    net_mj: float | None = None


class OtherBoard(Protocol):
    """A board that is not this machine."""

    def time(self, model: bytes, feed: dict[str, npt.NDArray[Any]]) -> BoardTime:
        """What a network takes there.

        Args:
            model: ONNX.
            feed: its inputs; their shapes count, not their values.

        Raises:
            BoardError, BackendError: it cannot be told.
        """

    def describe(self) -> dict[str, Any]:
        """For JSON; ``words`` is for people, and says how sure the times are."""


class CalibratedBoard:
    """Predicts from a calibration: ONNX Runtime says here what it would run there.

    Args:
        calibration: the board's.
        threads: to compute with; must be the calibration's.

    Raises:
        BoardError: it was made for another number of threads.
    """

    def __init__(self, calibration: Calibration, threads: int) -> None:
        if calibration.threads != threads:
            raise BoardError(
                f"the calibration is of {calibration.threads} threads, the plan of {threads}: "
                f"--threads {calibration.threads}, or calibrate with --threads {threads}"
            )
        self._calibration = calibration
        self._unknown: set[str] = set()

    def time(self, model: bytes, feed: dict[str, npt.NDArray[Any]]) -> BoardTime:
        """See :class:`OtherBoard`."""
        found = profile(model, runs=1, blocked=self._calibration.blocked, feed=feed)
        predicted = self._calibration.predict([operation(node.op, node.inputs, node.outputs) for node in found.nodes])
        self._unknown |= set(predicted.unknown)
        return BoardTime(round(predicted.ms, 3), _rounded(predicted.mj), _rounded(predicted.net_mj))

    def describe(self) -> dict[str, Any]:
        """See :class:`OtherBoard`."""
        calibration = self._calibration
        words = f"{calibration}, predicted from its calibration: {calibration.error}"
        if self._unknown:
            words += f"; never measured, and taken for others: {', '.join(sorted(self._unknown))}"
        power = calibration.power
        return {
            "how": "predicted",
            "words": words,
            "error": {
                "median": calibration.error.median,
                "p90": calibration.error.p90,
                "graphs": calibration.error.graphs,
            },
            "unknown_operators": sorted(self._unknown),
            "power": None
            if power is None
            else {"idle_mw": power.idle_mw, "busy_mw": power.busy_mw, "scope": power.scope},
        }


# Runs on the board, on its Python with onnxruntime alone: the request's first line is JSON, and the network follows.
_SCRIPT = """
import json, sys, time
import numpy as np, onnxruntime as ort
request = json.loads(sys.stdin.buffer.readline())
options = ort.SessionOptions()
options.intra_op_num_threads = request["threads"]
options.log_severity_level = 3
session = ort.InferenceSession(sys.stdin.buffer.read(), options, providers=["CPUExecutionProvider"])
random = np.random.default_rng(0)
feed = {}
for name, (dtype, shape) in request["inputs"].items():
    whole = dtype.startswith("uint8")
    values = random.integers(0, 256, shape) if whole else np.zeros(shape)
    feed[name] = values.astype(dtype)
times, began = [], time.perf_counter()
while len(times) < 9 or (len(times) < 53 and time.perf_counter() - began < 0.6):
    started = time.perf_counter()
    session.run(None, feed)
    times.append(1e3 * (time.perf_counter() - started))
print(json.dumps({"ms": float(np.median(times[2:])), "runs": len(times) - 2, "runtime": "onnxruntime " + ort.__version__}))
"""


class SshBoard:
    """Measures on another machine, over ssh; nothing is left there.

    Args:
        destination: as ssh takes it: ``user@host``, or a name of ``~/.ssh/config``.
        threads: to compute with.
        python: there, with onnxruntime.
        ssh: the command.
    """

    def __init__(
        self,
        destination: str,
        threads: int,
        *,
        python: str = "python3",
        ssh: Sequence[str] = ("ssh", "-oBatchMode=yes"),
    ) -> None:
        if destination.startswith("-") or not destination.strip():
            raise BoardError(f"{destination!r} is no destination of ssh; it is written user@host")
        self._destination, self._threads, self._python = destination, threads, python
        self._ssh = [*ssh]
        self._runtime = ""

    def time(self, model: bytes, feed: dict[str, npt.NDArray[Any]]) -> BoardTime:
        """See :class:`OtherBoard`."""
        inputs = {name: [np.asarray(values).dtype.name, list(values.shape)] for name, values in feed.items()}
        request = json.dumps({"threads": self._threads, "inputs": inputs}).encode() + b"\n" + model
        there = f"{self._python} -c {shlex.quote(_SCRIPT)}"
        try:
            done = subprocess.run(  # noqa: S603  (the destination is the user's own, and no option)
                [*self._ssh, self._destination, there],
                input=request,
                capture_output=True,
                timeout=SSH_SECONDS,
                check=False,
            )
        except OSError as error:
            raise BoardError(f"{self._ssh[0]} cannot be run: {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            raise BoardError(f"{self._destination} took more than {SSH_SECONDS:.0f} s for one network") from error
        if done.returncode != 0:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise BoardError(
                f"{self._destination}: {said[-1][:300] if said else f'exit code {done.returncode}'}{_hint(said)}"
            )
        try:
            found = json.loads(done.stdout.splitlines()[-1])
            self._runtime = str(found["runtime"])[:80]
            return BoardTime(round(float(found["ms"]), 3))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise BoardError(f"{self._destination} answered {done.stdout[:100]!r}, which is no measurement") from error

    def describe(self) -> dict[str, Any]:
        """See :class:`OtherBoard`."""
        runtime = f", {self._runtime}" if self._runtime else ""
        return {"how": "measured", "words": f"{self._destination}{runtime}, measured there: medians"}


def _hint(said: Sequence[str]) -> str:
    text = " ".join(said)
    if "No module named" in text:
        return "; the Python there needs onnxruntime and numpy: pip install onnxruntime, or name another by --python"
    if "Permission denied" in text or "Host key" in text:
        return "; ssh must get in without a question: check with `ssh HOST true`"
    return ""


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
