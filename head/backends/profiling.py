"""What ONNX Runtime makes of a network, node by node: operators after its own fusions, shapes, types and times.

Its profiler writes Chrome trace events as JSON; an event of the category ``Node`` with ``_kernel_time`` in its name is one
run of one kernel, in microseconds (onnxruntime.ai, docs/performance/tune-performance/profiling-tools).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import perf_counter_ns, thread_time_ns
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from narrowcast.head.backends import Array
from narrowcast.head.errors import BackendError

NAME = f"onnxruntime {ort.__version__}"
# Layouts of activations with blocks of channels, which ONNX Runtime uses on some processors only.
BLOCKED = "ReorderOutput"
_DTYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8, "tensor(int64)": np.int64}


class Value(NamedTuple):
    """A tensor: ONNX Runtime's name of its type (``float``, ``uint8``), and its shape."""

    dtype: str
    shape: tuple[int, ...]


class Node(NamedTuple):
    """One kernel of a network.

    Attributes:
        op: the operator, after fusions.
        inputs: its inputs, weights among them.
        outputs: its outputs.
        us: the least of its times, microseconds: what it takes when nothing else runs.
    """

    op: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    us: float


class Profile(NamedTuple):
    """A network on this machine.

    Attributes:
        nodes: in the order of execution.
        ms: the least of its whole runs, with the profiler off.
        cpu_ms: the least time of the processor that the calling thread took for one: with one thread the same as ``ms``
            where nothing else runs, and hardly more where something does.
    """

    nodes: tuple[Node, ...]
    ms: float
    cpu_ms: float

    @property
    def blocked(self) -> bool:
        """Whether activations were stored in blocks of channels."""
        return any(node.op == BLOCKED for node in self.nodes)

    def least(self, other: Profile) -> Profile:
        """The least times of two profiles of one network."""
        pairs = zip(self.nodes, other.nodes, strict=True)
        return Profile(
            tuple(a._replace(us=min(a.us, b.us)) for a, b in pairs),
            min(self.ms, other.ms),
            min(self.cpu_ms, other.cpu_ms),
        )


def profile(
    model: bytes, *, runs: int, threads: int = 1, blocked: bool = True, feed: Mapping[str, Array] | None = None
) -> Profile:
    """Runs a network of fixed shapes.

    Args:
        model: ONNX.
        runs: how often, once with the profiler and once without; 2 more to warm up.
        threads: to compute with.
        blocked: allow layouts with blocks of channels, where this processor has kernels for them.
        feed: its inputs; zeros for those that are missing.

    Raises:
        BackendError: ONNX Runtime refuses the network, or its shapes are not fixed.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            plain = _session(model, threads, blocked)
            given = dict(feed or {})
            given |= {entry.name: _zeros(entry) for entry in plain.get_inputs() if entry.name not in given}
            profiled = _session(model, threads, blocked, Path(folder) / "times")
            times, cpu_times = list[float](), list[float]()
            for _ in range(runs + 2):
                started, cpu_started = perf_counter_ns(), thread_time_ns()
                plain.run(None, given)
                cpu_times.append((thread_time_ns() - cpu_started) / 1e6)
                times.append((perf_counter_ns() - started) / 1e6)
                profiled.run(None, given)
            # Weights that a kernel has repacked are gone from what the profiler shows: another session tells their shapes.
            whole = _session(model, threads, blocked, Path(folder) / "shapes", repack=False)
            whole.run(None, given)
            nodes = _nodes(_kernels(profiled), _kernels(whole))
    except BackendError:
        raise
    except Exception as error:  # ONNX Runtime raises exceptions of its own C++ kind
        raise BackendError(f"ONNX Runtime {ort.__version__} cannot profile the network: {error}") from error
    return Profile(tuple(nodes), min(times), min(cpu_times))


def _session(model: bytes, threads: int, blocked: bool, profile_at: Path | None = None, *, repack: bool = True) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if blocked else level.ORT_ENABLE_EXTENDED
    if not repack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if profile_at is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_at)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _zeros(entry: Any) -> Array:
    if entry.type not in _DTYPES or not all(isinstance(side, int) for side in entry.shape):
        raise BackendError(f"the input {entry.name!r} is {entry.type} {entry.shape}: its shape must be fixed")
    return np.zeros(entry.shape, _DTYPES[entry.type])


def _kernels(session: Any) -> dict[str, list[dict[str, Any]]]:
    """The runs of every kernel, by its name and number, in the order of execution."""
    found: dict[str, list[dict[str, Any]]] = {}
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            found.setdefault(f"{event['name']} {event['args'].get('node_index', '')}", []).append(event)
    return found


def _nodes(timed: dict[str, list[dict[str, Any]]], whole: dict[str, list[dict[str, Any]]]) -> Iterator[Node]:
    for name, events in timed.items():
        told = whole.get(name, events)[0]["args"]
        inputs, outputs = (_values(told.get(f"{side}_type_shape", [])) for side in ("input", "output"))
        yield Node(told["op_name"], inputs, outputs, float(min(event["dur"] for event in events)))


def _values(described: list[dict[str, list[int]]]) -> tuple[Value, ...]:
    return tuple(Value(dtype, tuple(shape)) for one in described for dtype, shape in one.items())
