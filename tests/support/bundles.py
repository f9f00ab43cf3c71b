"""A small, real bundle without any training: hand-made ONNX, real tables, real signature.

The head divides pixels by 16 (level 0: by 32), so symbols are small and depend on the image; the tail gives the mean symbol
per colour, plus 100 times the level, so a test can compute every answer by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from narrowcast.compiler.tables import fit_tables
from narrowcast.transport.bundle import (
    Bundle,
    Manifest,
    OutputSpec,
    Part,
    PublicKey,
    SecretKey,
    TailSpec,
    describe_part,
    write_bundle,
)
from narrowcast.transport.codec import CodecSpec, open_codec
from narrowcast.transport.contexts import ContextTables
from narrowcast.transport.contract import InputContract
from narrowcast.transport.selfcheck import SelfCheck, SymbolBound, reference_frames
from narrowcast.transport.structs import to_json
from narrowcast.transport.video import VideoTables

SIDE = 8
SHAPE = (3, SIDE, SIDE)
ALPHABET = 16
LEVELS = 2
OUTPUTS = [OutputSpec(name="output", dtype="float32", shape=[3])]
KEY = SecretKey(b"narrowcast test key, not a secret"[:32], "test")


def onnx_model(nodes: list[onnx.NodeProto], inputs: list, outputs: list, constants: list, opset: int = 17) -> bytes:
    """A checked ONNX model."""
    graph = helper.make_graph(
        nodes, "test", inputs, outputs, [numpy_helper.from_array(a, name) for name, a in constants]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def head_model() -> bytes:
    """image uint8 [1, 8, 8, 3], level int64 [1] -> symbols uint8 [1, 3, 8, 8]."""
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
    gains = np.array([1 / 32, 1 / 16], np.float32).reshape(2, 1, 1, 1)
    constants = [("gains", gains)]
    return onnx_model(nodes, inputs, [value("symbols", TensorProto.UINT8, [1, *SHAPE])], constants)


def tail_model() -> bytes:
    """symbols uint8 [N, 3, 8, 8], level int64 [N] -> output float32 [N, 3]: mean symbol + 100 * level."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Cast", ["symbols"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("Cast", ["level"], ["level_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["level_float", "hundred"], ["offset"]),
        helper.make_node("Unsqueeze", ["offset", "axis"], ["column"]),
        helper.make_node("Add", ["means", "column"], ["output"]),
    ]
    inputs = [value("symbols", TensorProto.UINT8, ["N", *SHAPE]), value("level", TensorProto.INT64, ["N"])]
    constants = [("hundred", np.array(100, np.float32)), ("axis", np.array([1], np.int64))]
    return onnx_model(nodes, inputs, [value("output", TensorProto.FLOAT, ["N", 3])], constants)


def mixing_tail_model() -> bytes:
    """As the tail, with a 1x1 convolution of ones: every output is the sum of the colours' mean symbols."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Cast", ["symbols"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["floats", "ones"], ["mixed"]),
        helper.make_node("ReduceMean", ["mixed"], ["output"], axes=[2, 3], keepdims=0),
    ]
    inputs = [value("symbols", TensorProto.UINT8, ["N", "C", SIDE, SIDE]), value("level", TensorProto.INT64, ["N"])]
    constants = [("ones", np.ones((3, 3, 1, 1), np.float32))]
    return onnx_model(nodes, inputs, [value("output", TensorProto.FLOAT, ["N", 3])], constants)


EXIT_ADDS = 1000


def exit_model() -> bytes:
    """A local exit: symbols uint8 [1, 3, 8, 8], level int64 [1] -> what the tail gives, plus 1000."""
    model = onnx.load_from_string(tail_model())
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    hundred = next(tensor for tensor in model.graph.initializer if tensor.name == "hundred")
    add = next(node for node in model.graph.node if node.op_type == "Add")
    add.input[1] = "moved"
    model.graph.node.insert(len(model.graph.node) - 1, helper.make_node("Add", ["column", "adds"], ["moved"]))
    model.graph.initializer.append(helper.make_tensor("adds", hundred.data_type, [], [float(EXIT_ADDS)]))
    onnx.checker.check_model(model)
    return model.SerializeToString()


def with_exit(made: Made) -> Made:
    """The bundle with a local exit."""
    model = exit_model()
    return made.with_part(describe_part("exit.fp32.onnx", model, "exit", ["device"], precision="fp32"), model)


def whole_model() -> bytes:
    """The uncut network: image uint8 [N, 8, 8, 3] -> what head and tail give at level 1."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "sixteen"], ["scaled"]),
        helper.make_node("Floor", ["scaled"], ["whole"]),
        helper.make_node("ReduceMean", ["whole"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("Add", ["means", "hundred"], ["output"]),
    ]
    constants = [("sixteen", np.array(16, np.float32)), ("hundred", np.array(100, np.float32))]
    inputs = [value("image", TensorProto.UINT8, ["N", SIDE, SIDE, 3])]
    return onnx_model(nodes, inputs, [value("output", TensorProto.FLOAT, ["N", 3])], constants)


def with_whole(made: Made) -> Made:
    """The bundle with the uncut network, which answers images."""
    model = whole_model()
    roles = ["device", "server"]
    return made.with_part(
        describe_part("whole.fp32.onnx", model, "whole", roles, precision="fp32", optional=True), model
    )


# With this change and less, the device skips a frame; by level.
UNCHANGED = (2, 5)


def video_tables() -> VideoTables:
    """A symbol is expected to be what is remembered of its place; anything else is possible."""
    places = LEVELS, SHAPE[0]
    distance = np.abs(np.arange(ALPHABET) - ALPHABET // 2)
    density = np.tile(0.2**distance + 1e-3, (1, 4, 1))
    bank = fit_tables(density / density.sum(2, keepdims=True), None, lanes=1)
    contexts = ContextTables(
        0, np.zeros((*places, 4), np.int16), np.zeros(places, np.int32), np.zeros((*places, 7), np.int16),
        np.zeros(places, np.int32), np.zeros(0, np.uint16), bank,
    )  # fmt: skip
    weights = np.zeros((*places, 5), np.int16)
    weights[..., 0] = 1 << 12
    return VideoTables(np.array(UNCHANGED, np.uint32), weights, contexts)


def with_video(made: Made) -> Made:
    """The bundle with video tables."""
    data = video_tables().to_bytes()
    return made.with_part(describe_part("video", data, "video", ["device", "server"]), data)


def with_second_tail(made: Made) -> Made:
    """The bundle with its tail once more, as the further tail ``second``."""
    model = tail_model()
    part = describe_part("tail.second.onnx", model, "tail", ["server"], precision="fp32", tail="second")
    more = made.with_part(part, model)
    tails = [TailSpec(name="second", outputs=OUTPUTS)]
    return Made(msgspec.structs.replace(more.manifest, tails=tails), more.contents)


def with_codec(made: Made, number: int) -> Made:
    """The bundle with a codec of another fingerprint, as after training anew."""
    spec = CodecSpec("rans", SHAPE, ALPHABET, LEVELS, f"{number:064x}")
    fingerprint = spec.fingerprint(made.contents["tables"]).hex()
    return Made(msgspec.structs.replace(made.manifest, codec=spec, fingerprint=fingerprint), made.contents)


def with_self_check(made: Made, *, moved: int = 0, payload: bytes = b"") -> Made:
    """The bundle with the symbols of one reference frame, each moved by so much; ``payload`` goes in their place."""
    codec = open_codec(made.manifest.codec, tables())
    (frame,) = reference_frames((SIDE, SIDE), 1)
    symbols = [np.minimum((frame // divisor).transpose(2, 0, 1) + moved, ALPHABET - 1) for divisor in (32, 16)]
    payloads = [[payload or codec.encode(one.astype(np.uint8), level)] for level, one in enumerate(symbols)]
    check = SelfCheck(payloads=payloads, bounds={"fp32": [SymbolBound(moved=0.01, step=1)] * LEVELS})
    data = to_json(check)
    return made.with_part(describe_part("selfcheck.json", data, "selfcheck", ["device"]), data)


def expected_output(frame: npt.NDArray[np.uint8], level: int) -> npt.NDArray[np.float64]:
    """What head and tail give for a frame of the contract's size."""
    symbols = frame // (32 if level == 0 else 16)
    return symbols.reshape(-1, 3).mean(0) + 100 * level


def random_frames(count: int, seed: int = 0, size: tuple[int, int] = (SIDE, SIDE)) -> npt.NDArray[np.uint8]:
    """uint8 [count, H, W, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3)).astype(np.uint8)


def spec() -> CodecSpec:
    """The codec's description."""
    return CodecSpec(name="rans", shape=SHAPE, alphabet=ALPHABET, levels=LEVELS, quantizer="0" * 64)


def tables() -> bytes:
    """Uniform enough for every symbol to be likely."""
    density = np.tile(np.linspace(2, 1, ALPHABET) / np.linspace(2, 1, ALPHABET).sum(), (LEVELS, SHAPE[0], 1))
    return fit_tables(density, None, lanes=1).to_bytes()


@dataclass
class Made:
    """A manifest with its parts, not yet written: tests bend it before they write it."""

    manifest: Manifest
    contents: dict[str, bytes]

    def write(self, path: Path, key: SecretKey | None = KEY) -> Path:
        """Writes it."""
        write_bundle(path, self.manifest, self.contents, key)
        return path

    def with_part(self, part: Part, data: bytes) -> Made:
        """The same with a part replaced, or added."""
        parts = [p for p in self.manifest.parts if p.name != part.name] + [part]
        return Made(msgspec.structs.replace(self.manifest, parts=parts), {**self.contents, part.name: data})

    def without(self, name: str) -> Made:
        """The same with a part neither listed nor there."""
        parts = [p for p in self.manifest.parts if p.name != name]
        return Made(
            msgspec.structs.replace(self.manifest, parts=parts), {k: v for k, v in self.contents.items() if k != name}
        )


def make(name: str = "tiny", release: int = 1, figures: dict | None = None) -> Made:
    """A sound bundle."""
    data, codec = tables(), spec()
    contents = {"head.onnx": head_model(), "tail.onnx": tail_model(), "tables": data}
    parts = [
        describe_part("head.onnx", contents["head.onnx"], "head", ["device"], precision="fp32"),
        describe_part("tail.onnx", contents["tail.onnx"], "tail", ["server"], precision="fp32"),
        describe_part("tables", data, "tables", ["device", "server"]),
    ]
    manifest = Manifest(
        schema=1,
        name=name,
        release=release,
        created="2026-01-01T00:00:00Z",
        tool="test",
        input=InputContract(size=(SIDE, SIDE)),
        codec=codec,
        fingerprint=codec.fingerprint(data).hex(),
        outputs=OUTPUTS,
        parts=parts,
        figures=figures or {},
    )
    return Made(manifest, contents)


FREE_STEP, FREE_MOST = 4, (16, 24)


def _free_sides(model: bytes, outputs: list[tuple[str, list]]) -> bytes:
    """A model with free rows and columns, and more of its values as outputs."""
    proto = onnx.load_from_string(model)
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value == SIDE:
                dim.ClearField("dim_value")
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs)
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def make_free() -> Made:
    """A sound bundle for images of up to 16 x 24, sides being multiples of 4; the tail gives the symbols back as well."""
    made, data = make("free"), tables()
    codec = msgspec.structs.replace(spec(), shape=(SHAPE[0], *FREE_MOST), step=(FREE_STEP, FREE_STEP))
    contract = InputContract(size=(SIDE, SIDE), fit="free", max_size=FREE_MOST, multiple_of=FREE_STEP)
    outputs = [
        OutputSpec(name="output", dtype="float32", shape=[3], follows=["nothing"]),
        OutputSpec(name="floats", dtype="float32", shape=list(SHAPE), follows=["nothing", "height", "width"]),
    ]
    head = _free_sides(head_model(), [])
    tail = _free_sides(tail_model(), [("floats", ["N", 3, None, None])])
    manifest = msgspec.structs.replace(
        made.manifest, input=contract, codec=codec, fingerprint=codec.fingerprint(data).hex(), outputs=outputs
    )
    made = Made(manifest, made.contents).with_part(
        describe_part("head.onnx", head, "head", ["device"], precision="fp32"), head
    )
    return made.with_part(describe_part("tail.onnx", tail, "tail", ["server"], precision="fp32"), tail)


def open_made(path: Path, role: str = "any") -> Bundle:
    """Opens a bundle that was signed with :data:`KEY`."""
    return Bundle.open(path, role, trusted=[trusted_key()])


def trusted_key() -> PublicKey:
    """What :data:`KEY` signs is checked with."""
    return KEY.public
