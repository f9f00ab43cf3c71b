"""Detectors, segmenters and several tails on one head: compiled, served, streamed, evaluated."""

from __future__ import annotations

import json
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image as Pillow
from support import bundles, networks
from support.server import serving

from narrowcast.cli import main
from narrowcast.compiler.compile import compile as compile_recipe
from narrowcast.compiler.errors import BottleneckError, RetuneError
from narrowcast.compiler.evaluate import evaluate, evaluate_frames
from narrowcast.compiler.job import CHECKPOINT, remember
from narrowcast.compiler.judges import DetectionJudge
from narrowcast.compiler.retune import retune
from narrowcast.compiler.verify import OnnxNetwork
from narrowcast.head.client import Client
from narrowcast.head.errors import RefusedError
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.frames import read_image
from narrowcast.transport.tasks import Detections, Segmentation
from narrowcast.transport.tasks.boxes import decode_boxes

pytest.importorskip("pycocotools", reason="pycocotools is not installed")

DETECT = {
    "kind": "detect",
    "classes": ["a", "b", "c"],
    "strides": [4, 8],
    "score_threshold": 0.1,
    "agreement_score": 0.3,
}
SEGMENT = {"kind": "segment", "classes": ["ground", "sky"]}
CONTRACT = {"fit": "letterbox"}
TRUSTED = [bundles.KEY.public]


@pytest.fixture(scope="module")
def recipe(recipe_for):
    def make(**tables):
        plain = {"preset": "plain", "bits": 8, "calibration_images": 16}
        dense = {"teacher": {"model": f"{networks.__file__}:dense"}, "task": DETECT}
        return recipe_for(**{**dense, "input": CONTRACT, "bottleneck": plain, **tables})

    return make


TAILS = [
    {"name": "ground", "model": f"{networks.__file__}:maps", "task": SEGMENT, "images": 480, "decoder_width": 8},
    {"name": "kind", "model": f"{networks.__file__}:tiny", "images": 80, "decoder_width": 8, "tune_tail": True},
]


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory):
    """A detector's bundle, and the folder of the work."""
    folder = tmp_path_factory.mktemp("alone")
    compile_recipe(recipe(), folder / "scene.ncb", key=bundles.KEY, work=folder / "work")
    return Bundle.open(folder / "scene.ncb", trusted=TRUSTED), folder


@pytest.fixture(scope="module")
def several(recipe, alone, tmp_path_factory):
    """The same with two tails more, made later from the same work."""
    folder = tmp_path_factory.mktemp("several")
    compile_recipe(recipe(tails=TAILS, release=2), folder / "scene.ncb", key=bundles.KEY, work=alone[1] / "work")
    return Bundle.open(folder / "scene.ncb", trusted=TRUSTED), folder


@contextmanager
def served(folder):
    """The address of a server for the bundles in ``folder``."""
    bundles.KEY.public.write(folder / "test.pub")
    with serving(folder, folder / "test.pub") as server:
        yield server.address


def pictures(photo_folder, count=6):
    return [read_image(path) for path in sorted(photo_folder.rglob("*.png"))[:count]]


def whole_boxes(bundle, frame):
    """What the uncut detector finds in a frame, in the frame's pixels."""
    prepared = bundle.manifest.input.prepare(frame)
    outputs = OnnxNetwork(bundle.read("whole"))(image=prepared.image[None])
    one = {name: values[0] for name, values in outputs.items()}
    boxes, scores, labels = decode_boxes(bundle.manifest.task, one, bundle.manifest.input.size)
    return prepared.placement.boxes_to_source(boxes), scores, labels


def test_a_bundle_knows_its_task(alone):
    manifest = alone[0].manifest
    assert manifest.task.scores == ["scores_0", "scores_1"]
    assert manifest.task.centerness == ["centerness_0", "centerness_1"]
    assert [output.name for output in manifest.outputs][:2] == ["scores_0", "scores_1"]
    assert manifest.figures["metric"] == "mAP50"
    assert manifest.figures["levels"][0]["agreement"] > 0.9


def test_a_tail_added_later_leaves_the_codec_alone(alone, several):
    first, second = alone[0].manifest, several[0].manifest
    assert second.fingerprint == first.fingerprint
    assert second.find("head").sha256 == first.find("head").sha256
    assert [tail.name for tail in second.tails] == ["ground", "kind"]
    assert second.find("tail") == first.find("tail")
    assert second.find("tail", tail="ground").name == "tail.ground.fp32.onnx"
    figures = second.figures["tails"]
    assert figures["ground"]["metric"] == "mIoU"
    assert figures["ground"]["levels"][0]["agreement"] > 0.6
    assert figures["kind"]["metric"] == "top-1"


def test_boxes_come_back_in_the_sources_pixels(alone, photo_folder):
    bundle, folder = alone
    with served(folder) as address, Client(bundle, address) as client:
        for frame in pictures(photo_folder):
            result = client.infer(frame)
            found, (boxes, scores, labels) = result.detections, whole_boxes(bundle, frame)
            assert isinstance(found, Detections)
            assert result.outputs.keys() == {"boxes", "scores", "labels"}
            assert (found.boxes <= [frame.shape[1], frame.shape[0]] * 2).all()
            strong = scores > np.quantile(scores, 0.5)
            assert strong.any()
            for box, label in zip(boxes[strong], labels[strong], strict=True):
                near = np.abs(found.boxes - box).max(1) < 1.0
                assert (found.labels[near] == label).any()


def test_several_tails_answer_together(several, photo_folder):
    bundle, folder = several
    frame = pictures(photo_folder, 1)[0]
    with served(folder) as address:
        with Client(bundle, address) as client:
            both = client.infer(frame)
        assert both.outputs.keys() == {"boxes", "scores", "labels", "ground/mask", "kind/output"}
        assert isinstance(both.answers["ground"], Segmentation)
        assert both.segmentation.to_source().shape == frame.shape[:2]
        with Client(bundle, address, tails=["ground"]) as client:
            one = client.infer(frame)
        assert one.outputs.keys() == {"ground/mask"}
        assert one.detections is None
        assert np.array_equal(one.outputs["ground/mask"], both.outputs["ground/mask"])
        with pytest.raises(ConfigError, match="no tail 'grund'; did you mean 'ground'"):
            Client(bundle, address, tails=["grund"])


def test_a_server_without_the_tail_says_so(alone, several, photo_folder):
    with served(alone[1]) as address, Client(several[0], address, tails=["ground"]) as client:
        with pytest.raises(RefusedError, match="no tail 'ground' in 'test', release 1; it has main"):
            client.infer(pictures(photo_folder, 1)[0])


def test_maps_can_be_decoded_on_the_device(recipe, alone, photo_folder, tmp_path):
    device = recipe(task={**DETECT, "decode_on": "device"})
    compile_recipe(device, tmp_path / "scene.ncb", key=bundles.KEY, work=alone[1] / "work")
    bundle = Bundle.open(tmp_path / "scene.ncb", trusted=TRUSTED)
    frames = pictures(photo_folder, 2)
    with served(alone[1]) as one, served(tmp_path) as other:
        with Client(alone[0], one) as client, Client(bundle, other) as twin:
            for frame in frames:
                there, here = client.infer(frame), twin.infer(frame)
                assert "scores_0" in here.outputs
                for a, b in zip(there.detections[:3], here.detections[:3], strict=True):
                    assert np.array_equal(a, b)


@pytest.fixture(scope="module")
def labelled(alone, photo_folder, tmp_path_factory):
    """Scenes whose boxes are the ones that the uncut detector is sure of, and half sky, half ground."""
    bundle, folder = alone[0], tmp_path_factory.mktemp("labelled")
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    images, annotations = [], []
    for k, frame in enumerate(pictures(photo_folder, 12)):
        Pillow.fromarray(frame).save(folder / "images" / f"{k}.png")
        mask = np.zeros(frame.shape[:2], np.uint8)
        mask[: len(mask) // 2] = 1
        Pillow.fromarray(mask).save(folder / "masks" / f"{k}.png")
        images.append({"id": k, "file_name": f"{k}.png"})
        boxes, scores, labels = whole_boxes(bundle, frame)
        for box, label in zip(boxes[scores > 0.3], labels[scores > 0.3], strict=True):
            corner, side = box[:2].tolist(), (box[2:] - box[:2]).tolist()
            annotations.append({"image_id": k, "category_id": int(label), "bbox": [*corner, *side]})
    categories = [{"id": k, "name": name} for k, name in enumerate("abc")]
    table = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(table))
    return folder


def test_detectors_are_evaluated_by_map50(alone, labelled):
    result = evaluate(alone[0], labelled / "images", codecs=())
    assert (result.metric, result.labelled, result.images) == ("mAP50", True, 12)
    teacher, split = result.of("teacher")[0], result.of("split")[0]
    assert teacher.accuracy == pytest.approx(1.0)  # the truth is its own
    assert 0.8 < split.accuracy <= 1.0
    assert split.accuracy_interval.low <= split.accuracy <= split.accuracy_interval.high
    assert split.accuracy_gain == pytest.approx(split.accuracy - 1.0)
    by_teacher = evaluate(alone[0], labelled / "images", codecs=(), labels=None)
    assert by_teacher.of("split")[0].agreement == pytest.approx(split.accuracy, abs=0.02)


def test_segmenters_are_evaluated_by_miou(several, labelled):
    result = evaluate(several[0], labelled / "images", codecs=(), tail="ground")
    assert (result.metric, result.tail, result.labelled) == ("mIoU", "ground", True)
    whole = OnnxNetwork(several[0].read("whole", tail="ground"))
    contract = several[0].manifest.input
    inside, union = np.zeros(2), np.zeros(2)
    for path in sorted((labelled / "images").glob("*.png")):
        prepared = contract.prepare(read_image(path))
        got = whole(image=prepared.image[None])["output_0"][0].argmax(0).repeat(2, 0).repeat(2, 1)
        truth = np.zeros(prepared.placement.source, int)
        truth[: len(truth) // 2] = 1
        wanted = prepared.placement.mask_to_input(truth, contract.size, -1)
        for k in range(2):
            inside[k] += ((got == k) & (wanted == k)).sum()
            union[k] += (((got == k) | (wanted == k)) & (wanted >= 0)).sum()
    assert result.of("teacher")[0].accuracy == pytest.approx((inside / union).mean())


def test_image_codecs_are_put_beside_a_detector(alone, labelled, tmp_path):
    from narrowcast.compiler.codecs import codecs_named

    codecs = [codec._replace(qualities=(10, 90), scales=(1.0,)) for codec in codecs_named("jpeg")]
    first = evaluate(alone[0], labelled / "images", codecs=codecs, work=tmp_path)
    again = evaluate(alone[0], labelled / "images", codecs=codecs, work=tmp_path)
    assert first.as_dict() == again.as_dict()
    assert list(tmp_path.rglob("jpeg-*.npz"))
    low, high = (score.accuracy for score in first.of("jpeg"))
    assert low < high
    assert first.comparison("jpeg").bytes_there is not None


def test_frames_with_their_truth(alone, photo_folder):
    bundle = alone[0]
    frames = np.stack([bundle.manifest.input.prepare(frame).image for frame in pictures(photo_folder)])
    judge = DetectionJudge(bundle.manifest.task, bundle.manifest.input.size)
    truth = judge.truth(OnnxNetwork(bundle.read("whole"))(image=frames))
    assert evaluate_frames(bundle, frames, truth, codecs=()).of("teacher")[0].accuracy == pytest.approx(1.0)


def test_from_the_command_line(several, labelled, tmp_path, capsys):
    bundle, folder = several
    key = tmp_path / "test.pub"
    bundles.KEY.public.write(key)
    trust = ["--trust", str(key)]
    with served(folder) as address:
        command = [
            "stream",
            str(bundle.path),
            str(labelled / "images"),
            "--to",
            address,
            "--masks",
            str(tmp_path / "m"),
        ]
        assert main([*command, *trust]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 12
    assert lines[0]["detections"][0].keys() == {"box", "score", "class", "label"}
    assert "top" not in lines[0]["outputs"]["scores"]  # those of boxes are no class scores
    top = lines[0]["outputs"]["kind/output"]["top"]
    assert top
    assert "label" not in top[0]  # nor are the detector's classes the other tail's
    assert sum(lines[0]["tails"]["ground"]["segmentation"].values()) == pytest.approx(1.0, abs=1e-3)
    assert lines[0]["masks"] == [str(tmp_path / "m" / "ground" / "0.png")]
    assert Pillow.open(lines[0]["masks"][0]).size == Pillow.open(lines[0]["source"]).size
    command = ["evaluate", str(bundle.path), "--data", str(labelled / "images"), "--codecs", "none", "--tail", "ground"]
    assert main([*command, *trust]) == 0
    assert "mIoU" in capsys.readouterr().out
    assert main(["inspect", str(bundle.path), *trust]) == 0
    out = capsys.readouterr().out
    assert "detect, 3 classes, decoded on the server" in out
    assert "tail ground" in out
    assert main([*command[:-1], "nothing", *trust]) == 1
    assert "no tail 'nothing'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_learned_encoder_with_levels_serves_further_tails(recipe, tmp_path):
    learned = {
        "preset": "shallow-residual",
        "encoder_macs": "1M",
        "levels": 2,
        "channels": 8,
        "stride": 4,
        "decoder_width": 8,
    }
    tables = {"bottleneck": learned, "train": {"images": 16, "batch": 8}, "export": {"whole": False}}
    made = compile_recipe(
        recipe(tails=[{**TAILS[0], "images": 16}], **tables), tmp_path / "s.ncb", work=tmp_path / "work"
    )
    bundle = Bundle.open(made.bundle, allow_unsigned=True)
    symbols = np.zeros((2, *bundle.manifest.codec.shape), np.uint8)
    for tail in (None, "ground"):
        assert OnnxNetwork(bundle.read("tail", tail=tail))(symbols=symbols, level=np.arange(2))


def test_retuning_drops_no_tail(recipe, alone, several, tmp_path):
    with pytest.raises(
        RetuneError, match=r"test has the tail 'ground', and the recipe does not: add its \[\[tails\]\]"
    ):
        retune(recipe(), several[0], tmp_path / "x.ncb", key=bundles.KEY, work=alone[1] / "work")


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"task": {**DETECT, "decode_on": "device"}}, "the tail 'main' would send scores_0"),
        ({"task": {**DETECT, "max_detections": 200}}, r"would send boxes up to \[200, 4\]"),
        ({"task": {**DETECT, "classes": ["a", "c", "b"]}}, "the tail 'main' has other classes than in test"),
        ({"tails": [{**TAILS[0], "task": {**SEGMENT, "decode_on": "device"}}, TAILS[1]]}, "the tail 'ground' would"),
        ({"task": {**DETECT, "score_threshold": 0.2}}, "tunes no tail"),  # all that is wrong with it
    ],
)
def test_retuning_leaves_what_boards_take(recipe, several, tmp_path, tables, message):
    """It is told before the old run is read, of which there is only the name here."""
    run = tmp_path / "work" / "test-0"
    run.mkdir(parents=True)
    (run / CHECKPOINT).touch()
    remember(run, several[0].manifest)
    with pytest.raises(RetuneError, match=message):
        changed = recipe(**{"tails": TAILS, **tables})
        retune(changed, several[0], tmp_path / "x.ncb", key=bundles.KEY, work=tmp_path / "work")


def test_a_codebooks_indices_serve_no_further_tail(recipe, tmp_path):
    with pytest.raises(BottleneckError, match="indices into a codebook"):
        compile_recipe(
            recipe(tails=TAILS[:1], bottleneck={"preset": "codebook", "encoder_macs": "9M", "stride": 4}),
            tmp_path / "x.ncb", work=tmp_path / "work",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            {"task": {**DETECT, "strides": [4, 16]}},
            r"\[task\]: the output 'scores_1' is \[3, 4, 4\]; \[3, 2, 2\] is wanted",
        ),
        ({"tails": [{**TAILS[0], "task": {**SEGMENT, "classes": ["a", "b", "c"]}}]}, r"\[\[tails\]\] 'ground': task"),
    ],
)
def test_tasks_that_do_not_fit_are_told_before_training(recipe, tmp_path, tables, message):
    with pytest.raises(ConfigError, match=message):
        compile_recipe(recipe(**tables), tmp_path / "x.ncb", work=tmp_path / "work")
