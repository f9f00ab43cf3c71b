"""``codebook`` and pruned channels, from a recipe to a bundle."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support import bundles

from narrowcast.compiler.compile import compile as compile_recipe
from narrowcast.compiler.evaluate import evaluate
from narrowcast.compiler.retune import retune
from narrowcast.head.session import HeadSession
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.frames import read_image

TRUSTED = [bundles.KEY.public]
CODEBOOK = {
    "preset": "codebook", "encoder_macs": "1M", "levels": 2, "stride": 4, "decoder_width": 16,
    "codebooks": 4, "codewords": 16, "dimensions": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def pair(recipe_for, tmp_path_factory):
    """(bundle of packed symbols, with an INT8 head; bundle of the same training with tables)."""
    folder = tmp_path_factory.mktemp("codebook")
    opened = []
    for name, tables in (
        ("packed", {"export": {"precisions": ["fp32", "fp16", "int8"], "max_agreement_loss": 1.0}}),
        ("tables", {"coding": {"tables": "channel"}}),
    ):
        recipe = recipe_for(bottleneck=CODEBOOK, **tables)
        path = folder / f"{name}.ncb"
        compile_recipe(recipe, path, key=bundles.KEY, work=folder / "work")
        opened.append(Bundle.open(path, trusted=TRUSTED))
    return opened


def photos(folder, bundle: Bundle, count: int = 12) -> list[np.ndarray]:
    return [bundle.manifest.input.prepare(read_image(path)).image for path in sorted(folder.rglob("*.png"))[:count]]


def test_every_packet_of_a_level_has_one_size(pair, photo_folder):
    packed, tables = pair
    assert (packed.manifest.codec.name, packed.manifest.codec.shape) == ("packed", (4, 8, 8))
    assert (tables.manifest.codec.name, tables.manifest.codec.levels) == ("rans", 2)
    sizes: dict[str, list[set[int]]] = {}
    for name, bundle in (("packed", packed), ("tables", tables)):
        session = HeadSession(bundle)
        frames = [*photos(photo_folder, bundle), np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)]
        sizes[name] = []
        for level in (0, 1):
            symbols = [session.symbols(frame, level) for frame in frames]
            payloads = [session.codec.encode(one, level) for one in symbols]
            decoded, errors = session.codec.decode_batch(payloads, [level] * len(payloads))
            assert errors == [None] * len(payloads)
            assert np.array_equal(decoded, np.stack(symbols))
            sizes[name].append({len(payload) for payload in payloads})
    assert sizes["packed"] == [{2 * 64 * 4 // 8}, {4 * 64 * 4 // 8}]
    assert all(len(found) > 1 for found in sizes["tables"])
    assert all(min(a) < max(b) for a, b in zip(sizes["tables"], sizes["packed"], strict=True))


def test_more_codebooks_answer_better(pair, photo_folder):
    found = evaluate(pair[0], photo_folder, limit=24)
    low, high = found.of("split")
    assert high.output_error < low.output_error
    assert high.output_error < 0.4
    assert (low.mean_bytes, high.mean_bytes) == (64 + 24, 128 + 24)


def test_all_precisions_pass_their_self_check(pair):
    bundle = pair[0]
    for precision in ("fp32", "fp16", "int8"):
        assert HeadSession(bundle, precision=precision).self_check().passed


def test_the_search_is_left_in_fp32(pair):
    for precision in ("fp16", "int8"):
        graph = onnx.load_from_string(pair[0].read("head", precision)).graph
        producers = {value: node for node in graph.node for value in node.output}
        (search,) = (node for node in graph.node if node.op_type == "ArgMin")
        node = producers[search.input[0]]
        while node.op_type != "Conv":
            node = producers[node.input[0]]
        weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
        assert weights[node.input[1]] == onnx.TensorProto.FLOAT
        assert producers[node.input[0]].op_type not in {"DequantizeLinear", "Cast"}


@pytest.fixture(scope="module")
def dear(recipe_for):
    """A recipe for which bits are so dear that channels die, with all that may lie behind pruning."""
    return recipe_for(
        bottleneck={"channels": 24, "levels": 2, "rate_weights": [64.0, 128.0], "prune": True, "tune_tail": True},
        export={"precisions": ["fp32", "int8"], "max_agreement_loss": 1.0},
    )


@pytest.fixture(scope="module")
def pruned(dear, tmp_path_factory):
    """What it compiles to."""
    folder = tmp_path_factory.mktemp("pruned")
    return compile_recipe(dear, folder / "pruned.ncb", key=bundles.KEY, work=folder / "work")


def test_irrelevant_channels_are_gone_from_all_parts(pruned, photo_folder):
    bundle = Bundle.open(pruned.bundle, trusted=TRUSTED)
    found = bundle.manifest.figures["channels"]
    assert found["start"] == 24
    assert 1 <= found["kept"] < 24
    assert found["saved_macs"] > 0
    assert bundle.manifest.codec.shape == (found["kept"], 8, 8)
    for part in ("head", "tail"):
        shapes = {tuple(tensor.dims) for tensor in onnx.load_from_string(bundle.read(part)).graph.initializer}
        assert not any(24 in shape for shape in shapes)
    for precision in ("fp32", "int8"):
        assert HeadSession(bundle, precision=precision).self_check().passed
    low, high = evaluate(bundle, photo_folder, limit=12).of("split")
    assert low.mean_bytes <= high.mean_bytes


@pytest.mark.slow
def test_a_pruned_bundle_can_be_retuned(pruned, dear, tmp_path):
    old = Bundle.open(pruned.bundle, trusted=TRUSTED)
    new = retune(dear, old, tmp_path / "new.ncb", key=bundles.KEY, work=pruned.work.parent)
    assert new.manifest.fingerprint == old.manifest.fingerprint
    assert new.manifest.codec == old.manifest.codec
