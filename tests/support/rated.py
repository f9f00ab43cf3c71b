"""A bundle whose levels differ in bytes, with the figures that rate control goes by: 2, 3 and 4 bits a symbol."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from narrowcast.compiler.tables import fit_tables
from narrowcast.transport.bundle import Manifest, describe_part
from narrowcast.transport.codec import CodecSpec
from narrowcast.transport.contract import InputContract
from support import bundles

SIDE = 48
LEVELS = 3
ACCURACY = (0.6, 0.75, 0.85)
# 48 x 48 x 3 symbols of 2, 3 and 4 bits, and a header.
BYTES = (1770.0, 2630.0, 3500.0)


def _head() -> bytes:
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["gains", "level"], ["gain"], axis=0),
        helper.make_node("Mul", ["floats", "gain"], ["scaled"]),
        helper.make_node("Floor", ["scaled"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["symbols"], to=TensorProto.UINT8),
    ]
    inputs = [value("image", TensorProto.UINT8, [1, SIDE, SIDE, 3]), value("level", TensorProto.INT64, [1])]
    gains = np.array([1 / 64, 1 / 32, 1 / 16], np.float32).reshape(LEVELS, 1, 1, 1)
    outputs = [value("symbols", TensorProto.UINT8, [1, 3, SIDE, SIDE])]
    return bundles.onnx_model(nodes, inputs, outputs, [("gains", gains)])


def _sized(model: bytes) -> bytes:
    """A model for symbols of 8 x 8, for those of 48 x 48."""
    proto = onnx.load_from_string(model)
    for dim in proto.graph.input[0].type.tensor_type.shape.dim:
        if dim.dim_value == bundles.SIDE:
            dim.dim_value = SIDE
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def make(*, figures: bool = True) -> bundles.Made:
    """The bundle; without what rate control goes by, if ``figures`` is false."""
    density = np.stack([np.where(np.arange(16) < most, 1.0, 0.002) for most in (4, 8, 16)])
    density = np.repeat((density / density.sum(1, keepdims=True))[:, None], 3, 1)
    tables = fit_tables(density, None, lanes=1).to_bytes()
    codec = CodecSpec(name="rans", shape=(3, SIDE, SIDE), alphabet=16, levels=LEVELS, quantizer="0" * 64)
    contents = {"head.onnx": _head(), "tail.onnx": _sized(bundles.tail_model()), "tables": tables}
    parts = [
        describe_part("head.onnx", contents["head.onnx"], "head", ["device"], precision="fp32"),
        describe_part("tail.onnx", contents["tail.onnx"], "tail", ["server"], precision="fp32"),
        describe_part("tables", tables, "tables", ["device", "server"]),
    ]
    levels = [
        {"level": level, "agreement": agreement, "mean_packet_bytes": size, "output_error": None}
        for level, (agreement, size) in enumerate(zip(ACCURACY, BYTES, strict=True))
    ]
    manifest = Manifest(
        schema=1, name="rated", release=1, created="2026-01-01T00:00:00Z", tool="test",
        input=InputContract(size=(SIDE, SIDE)), codec=codec, fingerprint=codec.fingerprint(tables).hex(),
        outputs=bundles.OUTPUTS, parts=parts, figures={"levels": levels} if figures else {},
    )  # fmt: skip
    return bundles.Made(manifest, contents)


def with_exit(made: bundles.Made) -> bundles.Made:
    """The bundle with a local exit."""
    model = _sized(bundles.exit_model())
    return made.with_part(describe_part("exit.fp32.onnx", model, "exit", ["device"], precision="fp32"), model)


def frames(count: int, seed: int = 0) -> np.ndarray:
    """uint8 [count, 48, 48, 3]: noise."""
    return bundles.random_frames(count, seed, (SIDE, SIDE))
