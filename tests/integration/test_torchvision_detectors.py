"""torchvision's detectors and segmenters, with random weights: cut in the backbone, the rest used as its users use it."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from narrowcast.compiler.compile import compile as compile_recipe
from narrowcast.compiler.normalize import Normalize
from narrowcast.compiler.recipe import recipe_from
from narrowcast.compiler.verify import OnnxNetwork
from narrowcast.head.session import HeadSession
from narrowcast.transport.bundle import Bundle

pytest.importorskip("pycocotools", reason="pycocotools is not installed")

SIZE = (64, 96)
OPTIONS = {"weights_backbone": None}


@pytest.fixture(scope="module")
def torchvision(timm):
    """torchvision; where its binary does not fit this torch, with a plain non-maximum suppression (it brings its own twin of
    RoIAlign in Python)."""
    import torchvision
    from torchvision import extension
    from torchvision.ops import boxes

    with pytest.MonkeyPatch.context() as patch:
        if not extension._has_ops():
            patch.setattr(boxes, "nms", plain_nms)
            # Its RoIAlign in Python asks for a compiler, which takes a minute for what runs once.
            patch.setattr(torch._dynamo.config, "disable", True)
        yield torchvision


def plain_nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """What torchvision.ops.nms documents."""
    left, kept = scores.argsort(descending=True).tolist(), []
    while left:
        best = left.pop(0)
        kept.append(best)
        low = torch.maximum(boxes[best, :2], boxes[left, :2])
        high = torch.minimum(boxes[best, 2:], boxes[left, 2:])
        inside = (high - low).clamp_min(0).prod(1)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        iou = inside / (areas[best] + areas[left] - inside)
        left = [row for row, overlap in zip(left, iou.tolist(), strict=True) if not overlap > threshold]
    return torch.tensor(kept, dtype=torch.int64)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for k in range(8):
        rough = Pillow.fromarray(random.integers(0, 256, (5, 7, 3)).astype(np.uint8))
        rough.resize((SIZE[1], SIZE[0]), Pillow.Resampling.BICUBIC).save(folder / f"{k}.png")
    return folder


def compiled(tmp_path, photographs, model, cut, **more) -> Bundle:
    """With the plain preset and 8 bits; the weights are those of seed 0, as load_teacher's caller sets it."""
    teacher = {"model": f"torchvision:{model}", "weights": str(tmp_path / "weights.pt"), **more.pop("teacher")}
    mapping = {
        "teacher": teacher, "data": {"train": str(photographs), "holdout": 0.3}, "cut": {"at": cut},
        "input": {"size": list(SIZE)}, "bottleneck": {"preset": "plain", "bits": 8}, "export": {"whole": False}, **more,
    }  # fmt: skip
    result = compile_recipe(recipe_from(mapping, "r.toml", "r", tmp_path), tmp_path / "r.ncb", work=tmp_path / "work")
    return Bundle.open(result.bundle, allow_unsigned=True)


def split(bundle: Bundle, frame: np.ndarray) -> dict[str, torch.Tensor]:
    """The tail's outputs for a frame, by way of real packets' payloads."""
    session = HeadSession(bundle, precision="fp32")
    payload = session.encode(frame, 0).payload
    symbols, errors = session.codec.decode_batch([payload], [0])
    assert errors == [None]
    outputs = OnnxNetwork(bundle.read("tail"))(symbols=symbols, level=np.zeros(1, np.int64))
    return {name: torch.from_numpy(values) for name, values in outputs.items()}


@pytest.mark.slow
def test_faster_rcnn_by_its_backbone(torchvision, photographs, tmp_path):
    """The pyramid of the split, given to the detector's own proposals and heads, gives the uncut detector's boxes."""
    torch.manual_seed(3)
    model = "fasterrcnn_mobilenet_v3_large_320_fpn"
    options = {**OPTIONS, "num_classes": 4, "box_score_thresh": 0.0, "box_detections_per_img": 5}
    options |= {"rpn_pre_nms_top_n_test": 32, "rpn_post_nms_top_n_test": 16}  # RoIAlign's twin in Python is slow
    detector = torchvision.models.get_model(model, weights=None, **options).eval()
    torch.save(detector.state_dict(), tmp_path / "weights.pt")
    bundle = compiled(tmp_path, photographs, model, "body.4", teacher={"options": options, "part": "backbone"})
    names = [output.name for output in bundle.manifest.outputs]
    assert names == ["output_0", "output_1", "pool"]
    frame = np.asarray(Pillow.open(sorted(photographs.glob("*.png"))[0]))
    image = Normalize(bundle.manifest.input)(torch.from_numpy(frame.copy())[None])
    whole = detector.backbone(image)
    pyramid = OrderedDict(zip(whole, split(bundle, frame).values(), strict=True))
    for name, level in whole.items():
        apart = (pyramid[name] - level).square().mean() / level.var()
        assert apart < 1e-3, name

    def found(features):
        images = torchvision.models.detection.image_list.ImageList(image, [SIZE])
        with torch.no_grad():
            proposals, _ = detector.rpn(images, features)
            return detector.roi_heads(features, proposals, [SIZE])[0][0]

    exact, ours = found(whole), found(pyramid)
    assert len(exact["boxes"]) > 0
    ious = [max(iou(box, other) for other in ours["boxes"].tolist()) for box in exact["boxes"].tolist()]
    assert np.median(ious) > 0.9
    assert ours["scores"].max().item() == pytest.approx(exact["scores"].max().item(), abs=0.02)


def iou(a, b) -> float:
    inside = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return inside / max(sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - inside, 1e-9)


@pytest.mark.slow
def test_deeplabv3_with_its_dictionary(torchvision, photographs, tmp_path):
    torch.manual_seed(4)
    model = "deeplabv3_mobilenet_v3_large"
    options = {**OPTIONS, "num_classes": 3, "aux_loss": True}
    network = torchvision.models.get_model(model, weights=None, **options).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    task = {"kind": "segment", "classes": ["a", "b", "c"], "output": "out"}
    bundle = compiled(tmp_path, photographs, model, "backbone.4", teacher={"options": options}, task=task)
    assert [(o.name, o.shape) for o in bundle.manifest.outputs] == [("out", [3, *SIZE]), ("aux", [3, *SIZE])]
    frame = np.asarray(Pillow.open(sorted(photographs.glob("*.png"))[1]))
    with torch.no_grad():
        whole = network(Normalize(bundle.manifest.input)(torch.from_numpy(frame.copy())[None]))
    ours = split(bundle, frame)
    for name in ("out", "aux"):
        assert (ours[name] - whole[name]).square().mean() / whole[name].var() < 0.02, name
    assert (ours["out"].argmax(1) == whole["out"].argmax(1)).float().mean() > 0.95
