"""Whether binding memory to ONNX Runtime saves anything over handing it NumPy arrays, which is what the head does.

    python bench/head_input.py [--json FILE]

One convolution of 8 x 8 over a uint8 image, with as little else as there can be, on one thread: of a real head, which
computes a hundred times more, the difference is a smaller part. The ways take turns, frame by frame; figures are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

SIDES = (224, 640)
FRAMES = 600
Way = Callable[[], npt.NDArray[np.uint8]]


def model(side: int) -> bytes:
    weights = np.random.default_rng(0).normal(size=(48, 3, 8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "weights"], ["latent"], strides=[8, 8]),
        helper.make_node("Clip", ["latent", "least", "most"], ["clipped"]),
        helper.make_node("Cast", ["clipped"], ["symbols"], to=TensorProto.UINT8),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, side, side, 3])
    symbols = helper.make_tensor_value_info("symbols", TensorProto.UINT8, [1, 48, side // 8, side // 8])
    constants = [("weights", weights), ("least", np.float32(0)), ("most", np.float32(255))]
    graph = helper.make_graph(
        nodes,
        "head",
        [image],
        [symbols],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 9
    onnx.checker.check_model(made)
    return made.SerializeToString()


def ways(side: int) -> dict[str, Way]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(model(side), options, providers=["CPUExecutionProvider"])
    image = np.random.default_rng(1).integers(0, 256, (1, side, side, 3)).astype(np.uint8)
    kept = np.empty((1, 48, side // 8, side // 8), np.uint8)
    binding = session.io_binding()

    def arrays() -> npt.NDArray[np.uint8]:
        found: npt.NDArray[np.uint8] = session.run(["symbols"], {"image": image})[0]
        return found

    def bound(out: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        binding.bind_input("image", "cpu", 0, np.uint8, image.shape, image.ctypes.data)
        binding.bind_output("symbols", "cpu", 0, np.uint8, out.shape, out.ctypes.data)
        session.run_with_iobinding(binding)
        return out

    return {
        "arrays": arrays,
        "bound, one output for all": lambda: bound(kept),
        "bound, an output each": lambda: bound(np.empty_like(kept)),
    }


def measure(side: int) -> dict[str, float]:
    """Median microseconds of each way."""
    found = ways(side)
    answers = {name: way().copy() for name, way in found.items()}
    assert all(np.array_equal(answers["arrays"], other) for other in answers.values())
    samples: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(FRAMES):
        for name, way in found.items():
            before = time.perf_counter_ns()
            way()
            samples[name].append((time.perf_counter_ns() - before) / 1000)
    return {name: round(statistics.median(values), 1) for name, values in samples.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures as JSON")
    args = parser.parse_args()
    found = {str(side): measure(side) for side in SIDES}
    for side, row in found.items():
        ratios = ", ".join(f"{name} {value:.1f} us ({value / row['arrays']:.3f})" for name, value in row.items())
        print(f"{side} px: {ratios}")
    if args.json:
        args.json.write_text(json.dumps({"onnxruntime": ort.__version__, "median_us": found}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
