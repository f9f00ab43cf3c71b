"""A vision transformer, cut between its blocks, to a bundle whose ONNX networks answer as torch does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import bundles

from narrowcast.compiler.compile import compile as compile_recipe
from narrowcast.compiler.normalize import Normalize
from narrowcast.compiler.recipe import recipe_from
from narrowcast.compiler.teacher import load_teacher
from narrowcast.compiler.verify import MAX_MOVED_SYMBOLS, MAX_OUTPUT_DIFFERENCE, OnnxNetwork
from narrowcast.head.session import HeadSession
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.frames import read_image

# 32 pixels in patches of 8: 16 tokens, and what the network puts before them.
NETWORKS = {
    "class token": "num_classes=4, class_token=True, reg_tokens=0",
    "registers": "num_classes=4, class_token=True, reg_tokens=4",
}
SOURCE = """
import timm, torch
def network():
    torch.manual_seed(0)
    return timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=4, num_heads=3, {options})
"""


@pytest.mark.parametrize(
    ("bottleneck", "kind", "tokens"),
    [
        ({"preset": "plain", "calibration_images": 16}, "class token", 17),
        (
            {"encoder_macs": "2M", "levels": 2, "channels": 8, "stride": 8, "decoder_width": 16, "trunk": "new"},
            "registers",
            21,
        ),
        pytest.param(
            {"encoder_macs": "4M", "levels": 2, "channels": 8, "stride": 8, "decoder_width": 16, "trunk": "teacher"},
            "registers",
            21,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["plain", "shallow-residual, new trunk", "shallow-residual, teacher's trunk"],
)
def test_a_transformer_compiles_between_its_blocks(timm, photo_folder, tmp_path, bottleneck, kind, tokens):
    (tmp_path / "vit.py").write_text(SOURCE.format(options=NETWORKS[kind]))
    mapping = {
        "teacher": {"model": "vit.py:network"},
        "data": {"train": str(photo_folder), "holdout": 0.2},
        "cut": {"at": "blocks.1"},
        "input": {"size": [32, 32], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
        "bottleneck": bottleneck,
        "train": {"images": 64, "batch": 8},
        "export": {"whole": False},
    }
    recipe = recipe_from(mapping, "vit.toml", "vit", tmp_path)
    result = compile_recipe(recipe, tmp_path / "vit.ncb", key=bundles.KEY, work=tmp_path / "work")
    assert result.verified.moved_symbols <= MAX_MOVED_SYMBOLS
    assert result.verified.output_difference <= MAX_OUTPUT_DIFFERENCE
    bundle = Bundle.open(result.bundle, trusted=[bundles.KEY.public])
    assert [(o.name, o.shape) for o in bundle.manifest.outputs] == [("output", [4])]
    if bottleneck.get("preset") == "plain":
        assert bundle.manifest.codec.shape == (48, tokens, 1)
    session, tail = HeadSession(bundle), OnnxNetwork(bundle.read("tail"))
    teacher = load_teacher("vit.py:network", folder=tmp_path)
    frame = bundle.manifest.input.prepare(read_image(sorted(photo_folder.rglob("*.png"))[0])).image
    output = tail(symbols=session.symbols(frame, 0)[None], level=np.zeros(1, np.int64))["output"]
    wanted = teacher(Normalize(recipe.input)(torch.from_numpy(frame[None].copy()))).numpy()
    assert output.shape == wanted.shape == (1, 4)
    assert np.isfinite(output).all()
    if bottleneck.get("preset") == "plain":  # the learned ones have hardly been trained
        assert np.abs(output - wanted).max() < 0.2 * np.abs(wanted).max()
