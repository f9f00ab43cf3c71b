"""Networks that nobody here wrote: timm's families by the walk of bench/networks.py, torchvision's networks."""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from narrowcast.compiler.cuts import CutTable, find_cut, find_cuts
from narrowcast.compiler.cuts.observe import outputs_equal
from narrowcast.compiler.cuts.split import prefix, suffix
from narrowcast.compiler.cuts.trace import trace

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = 60
PASSING = 0.95
# Of many kinds, and quick: convolutions, transformers, both, one that only torch.export takes (vision_transformer).
SAMPLE = [
    "byobnet", "convnext", "edgenext", "efficientnet", "hgnet", "mambaout", "maxxvit", "mobilenetv3", "nfnet", "pit",
    "pvt_v2", "regnet", "resnet", "starnet", "vision_transformer", "vision_transformer_relpos",
]  # fmt: skip
# Of each of torchvision's families of classifiers a small one, and the smallest images that it takes.
CLASSIFIERS = {
    "alexnet": 64, "convnext_tiny": 64, "densenet121": 64, "efficientnet_b0": 64, "efficientnet_v2_s": 64, "googlenet": 64,
    "inception_v3": 96, "maxvit_t": 224, "mnasnet0_5": 64, "mobilenet_v2": 64, "regnet_y_400mf": 64, "resnet18": 64,
    "resnext50_32x4d": 64, "squeezenet1_1": 64, "swin_t": 64, "swin_v2_t": 64, "vgg11_bn": 64, "vit_b_16": 224,
    "wide_resnet50_2": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("choice", "families"),
    [
        pytest.param(["--families", *SAMPLE], len(SAMPLE), id="sample"),
        pytest.param([], FAMILIES, id="all that are quick", marks=pytest.mark.slow),
    ],
)
def test_timm_families_are_cut_and_put_together_again(timm, tmp_path, choice, families, record_property):
    """Head and tail against the whole network, bit for bit. The run's summary has the table, and why a network failed."""
    faulthandler.cancel_dump_traceback_later()  # minutes of work on a busy machine; the bound is the one below
    rows_file = tmp_path / "rows.json"
    walk = [sys.executable, str(ROOT / "bench" / "networks.py"), "--quick", "--json", str(rows_file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*walk, *choice], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500, check=False
    )
    record_property("table", done.stdout)
    assert rows_file.is_file(), done.stderr
    rows = json.loads(rows_file.read_text())
    accepted = [row for row in rows if row["verdict"] != "refused"]
    passed = [row for row in accepted if row["verdict"] == "passed"]
    failures = "\n".join(
        f"{r['family']} ({r['model']}): {r['verdict']}: {r['reason']}" for r in rows if r not in passed
    )
    assert len(accepted) >= families, failures
    assert len(passed) >= PASSING * len(accepted), failures
    assert {row["traced_by"] for row in passed} == {"fx", "export"}
    assert all(row["cuts"] > 0 and row["tried"] for row in passed)
    assert done.returncode == 0


def test_the_walk_knows_every_family_of_timm(timm):
    from narrowcast.transport.structs import parse_toml

    table = parse_toml((ROOT / "bench" / "families.toml").read_text(), "families.toml")
    assert len(table) >= FAMILIES
    families = {family for family in timm.list_modules() if timm.list_models(module=family)}
    assert not families - table.keys(), "families of timm that families.toml does not list"


@pytest.fixture(scope="module")
def torchvision(timm):
    """torchvision, importable once timm is."""
    import torchvision

    return torchvision


def halves_are_the_whole(network: nn.Module, size: int, names: set[str]) -> None:
    torch.manual_seed(0)
    network = network.eval().requires_grad_(False)
    traced = trace(network, (size, size))
    found = find_cuts(traced)
    assert names <= {name for cut in found for name in (cut.name, *cut.aliases)}
    macs = sum(value.macs for value in traced.values.values())
    useful = CutTable("", (size, size), traced.method, macs, 0, found).useful
    for cut in (useful[0], useful[len(useful) // 2], useful[-1]):
        image = torch.randn(1, 3, size, size)
        outputs = suffix(traced, cut.node)(prefix(traced, cut.node)(image))
        assert outputs_equal(outputs, network(image)), cut.name


@pytest.mark.parametrize(
    ("name", "size", "names"),
    [
        ("mobilenet_v3_small", 64, {"features.4"}),
        ("shufflenet_v2_x0_5", 64, {"stage2"}),
        ("deeplabv3_mobilenet_v3_large", 64, {"backbone"}),
        ("lraspp_mobilenet_v3_large", 64, {"backbone.3"}),
    ],
)
def test_torchvisions_classifiers_and_segmenters(torchvision, name, size, names):
    options = {"weights_backbone": None} if name.endswith("_large") else {}
    halves_are_the_whole(torchvision.models.get_model(name, weights=None, **options), size, names)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_of_each_of_torchvisions_families(torchvision, name):
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network = torchvision.models.get_model(name, weights=None, **options)
    halves_are_the_whole(network, CLASSIFIERS[name], set())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50"])
def test_the_larger_segmenters(torchvision, name):
    network = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    halves_are_the_whole(network, 64, {"backbone.layer2"})


class OneStage(nn.Module):
    """What a user wraps around a one-stage detector: backbone and heads, without the choice of boxes."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, x):
        return self.head(list(self.backbone(x).values()))


def test_a_detectors_backbone_and_heads(torchvision):
    detector = torchvision.models.get_model(
        "ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=5
    )
    halves_are_the_whole(OneStage(detector), 96, {"backbone.features.0.5"})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "fcos_resnet50_fpn"])
def test_the_larger_one_stage_detectors(torchvision, name):
    network = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5)
    halves_are_the_whole(OneStage(network), 96, {"backbone.body.layer2"})


def test_a_two_stage_detectors_backbone_gives_its_pyramid(torchvision):
    detector = torchvision.models.get_model(
        "fasterrcnn_mobilenet_v3_large_320_fpn", weights=None, weights_backbone=None
    )
    halves_are_the_whole(detector.backbone, 96, {"body.4"})
    traced = trace(detector.backbone.eval(), (96, 96))
    features = torch.randn(1, *find_cut(traced, "body.4").shape)
    assert set(suffix(traced, find_cut(traced, "body.4").node)(features)) == {"0", "1", "pool"}
