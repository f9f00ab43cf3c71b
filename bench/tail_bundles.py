"""The bundles that ``bench/tail.py`` serves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from narrowcast.compiler.tables import fit_tables
from narrowcast.transport.bundle import Bundle, Manifest, OutputSpec, describe_part, write_bundle
from narrowcast.transport.codec import CodecSpec
from narrowcast.transport.contract import InputContract
from narrowcast.transport.packet import Packet

CLASSES = 1000
_RECIPE = """\
[teacher]
model = "resnet50.py:load"
[data]
train = "pictures"
[cut]
at = "layer2"
[input]
size = [224, 224]
[bottleneck]
preset = "shallow-residual"
[train]
images = 64
"""
_TEACHER = """\
import sys
sys.path.insert(0, {folder!r})
from timm_import import import_timm
import torch

def load():
    torch.manual_seed(0)
    return import_timm().create_model("resnet50", pretrained=False).eval()
"""


def blank(folder: Path, shape: tuple[int, int, int], alphabet: int) -> Bundle:
    """A bundle with one small matrix product for its tail, and uniform tables: log2(alphabet) bits a symbol."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = CodecSpec(name="rans", shape=shape, alphabet=alphabet, levels=1, quantizer="0" * 64)
    tables = fit_tables(np.full((1, shape[0], alphabet), 1 / alphabet), None).to_bytes()
    model = matrix(shape)
    parts = [
        describe_part("tail.onnx", model, "tail", ["server"], precision="fp32"),
        describe_part("tables", tables, "tables", ["device", "server"]),
    ]
    manifest = Manifest(
        schema=1, name="blank", release=1, created="2026-01-01T00:00:00Z", tool="bench", input=InputContract(size=(8, 8)),
        codec=spec, fingerprint=spec.fingerprint(tables).hex(), parts=parts,
        outputs=[OutputSpec(name="output", dtype="float32", shape=[CLASSES])],
    )  # fmt: skip
    path = folder / "blank.ncb"
    write_bundle(path, manifest, {"tail.onnx": model, "tables": tables}, None)
    return Bundle.open(path, "server", allow_unsigned=True)


def matrix(shape: tuple[int, int, int]) -> bytes:
    """A tail: symbols and levels to the sums of the channels' means, as class scores."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Cast", ["symbols"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], ["product"]),
        helper.make_node("Cast", ["level"], ["shift"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["shift", "axis"], ["column"]),
        helper.make_node("Add", ["product", "column"], ["output"]),
    ]
    inputs = [value("symbols", TensorProto.UINT8, ["N", *shape]), value("level", TensorProto.INT64, ["N"])]
    constants = [
        numpy_helper.from_array(np.ones((shape[0], CLASSES), np.float32), "weights"),
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
    ]
    graph = helper.make_graph(nodes, "blank", inputs, [value("output", TensorProto.FLOAT, ["N", CLASSES])], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def resnet50(folder: Path) -> Bundle:
    """ResNet-50 cut behind its second stage, with random weights: compiled once, then kept in ``folder``."""
    path = folder / "models" / "resnet50.ncb"
    if not path.exists():
        pictures = folder / "pictures"
        pictures.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(0)
        for k in range(32):
            rough = Image.fromarray(random.integers(0, 256, (9, 9, 3)).astype(np.uint8))
            rough.resize((256, 256), Image.Resampling.BICUBIC).save(pictures / f"{k}.png")
        (folder / "resnet50.py").write_text(_TEACHER.format(folder=str(Path(__file__).resolve().parent)))
        (folder / "resnet50.toml").write_text(_RECIPE)
        path.parent.mkdir(exist_ok=True)
        command = [
            sys.executable, "-m", "narrowcast", "compile", str(folder / "resnet50.toml"), "-o", str(path),
            "--work", str(folder / "work"), "--unsigned",
        ]  # fmt: skip
        subprocess.run(command, check=True)
    return Bundle.open(path, "server", allow_unsigned=True)


def packet(bundle: Bundle, seed: int = 0) -> Packet:
    """A frame of random symbols, really coded."""
    codec = bundle.codec()
    symbols = np.random.default_rng(seed).integers(0, codec.spec.alphabet, codec.spec.shape).astype(np.uint8)
    payload = codec.encode(symbols, codec.spec.levels - 1)
    return Packet(codec.codec_id, codec.spec.levels - 1, 0, 0, payload, bytes(16), codec.fingerprint)


def tail_model(bundle: Bundle) -> onnx.ModelProto:
    """The bundle's tail."""
    return onnx.load_from_string(bundle.read("tail"))
