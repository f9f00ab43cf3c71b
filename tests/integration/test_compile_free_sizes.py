"""A detector for images of any size: compiled, served, streamed, evaluated; and what cannot be is refused at once."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from support import bundles, networks
from support.server import serving

from narrowcast.cli import main
from narrowcast.compiler.compile import finish
from narrowcast.compiler.errors import BottleneckError, TeacherError
from narrowcast.compiler.evaluate import evaluate
from narrowcast.compiler.job import Job
from narrowcast.compiler.modules import Head, Tail
from narrowcast.compiler.progress import SILENT
from narrowcast.head.client import Client
from narrowcast.head.session import HeadSession
from narrowcast.tail.answering import answer_batch
from narrowcast.tail.frame import Frame
from narrowcast.tail.store import load_model
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.packet import Kind, Packet
from narrowcast.transport.rpc.tensors import from_tensors
from narrowcast.transport.tasks import sent_outputs
from narrowcast.transport.tasks.boxes import decode_boxes

pytest.importorskip("pycocotools", reason="pycocotools is not installed")

DETECT = {"kind": "detect", "classes": ["a", "b", "c"], "strides": [4, 8], "score_threshold": 0.1}
FREE = {"fit": "free", "max_size": [64, 96], "multiple_of": 16}
SIZES = [(32, 32), (64, 96), (50, 20), (16, 90), (100, 300), (30, 95)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of smooth pictures of several sizes and aspects."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for k in range(12):
        rough = Image.fromarray(random.integers(0, 256, (6, 6, 3)).astype(np.uint8))
        height, width = SIZES[k % len(SIZES)]
        rough.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{k:02}.png")
    return folder


@pytest.fixture(scope="module")
def recipe(recipe_for, pictures):
    def make(**tables):
        usual = {
            "teacher": {"model": f"{networks.__file__}:dense"},
            "data": {"train": str(pictures)},
            "cut": {"at": "fine"},
            "task": DETECT,
            "bottleneck": {"levels": 2, "stride": 8},
            "train": {"images": 160},
            "export": {"precisions": ["fp32", "int8"]},
        }
        return recipe_for(**{**usual, **tables, "input": {**FREE, **tables.get("input", {})}})

    return make


@pytest.fixture(scope="module")
def made(recipe, tmp_path_factory):
    """The job with its trained modules, and its bundle's folder."""
    folder = tmp_path_factory.mktemp("free")
    job = Job(recipe(), folder / "work", SILENT)
    finish(job, folder / "free.ncb", bundles.KEY)
    bundles.KEY.public.write(folder / "test.pub")
    return job, folder


@pytest.fixture
def bundle(made):
    return Bundle.open(made[1] / "free.ncb", trusted=[bundles.KEY.public])


def frames(pictures):
    return [np.asarray(Image.open(path)) for path in sorted(pictures.glob("*.png"))[: len(SIZES)]]


@torch.no_grad()
def in_torch(job, image, level):
    """Head and tail as they were trained: symbols, and the outputs by name."""
    head = Head(job.problem.normalize, job.bottleneck).eval()
    tail = Tail(job.bottleneck, job.problem.after).eval()
    at = torch.tensor([level])
    symbols = head(torch.tensor(image[None]), at)
    names = [output.name for output in job.outputs()]
    return symbols[0].numpy(), dict(zip(names, (output[0].numpy() for output in tail(symbols, at)), strict=True))


def test_the_bundle_says_what_is_free(bundle):
    manifest = bundle.manifest
    assert manifest.codec.shape[1:] == (8, 12)
    assert manifest.codec.step == (2, 2)
    assert manifest.outputs[0].shape == [3, 8, 8]
    assert manifest.outputs[0].follows == ["nothing", "height", "width"]
    assert {part.precision for part in manifest.parts if part.kind == "head"} == {"fp32", "int8"}


def test_a_stream_of_several_sizes_answers_as_torch_does(made, bundle, pictures):
    job, folder = made
    session = HeadSession(bundle, precision="fp32")
    with serving(folder, folder / "test.pub") as server, Client(session, server.address, level=1) as client:
        results = list(client.stream(frames(pictures)))
    assert len({result.placement.input for result in results}) == 5
    for frame, result in zip(frames(pictures), results, strict=True):
        assert result.error is None
        image, place = bundle.manifest.input.prepare(frame)
        _, outputs = in_torch(job, image, 1)
        boxes, scores, labels = decode_boxes(bundle.manifest.task, outputs, place.input)
        found = result.detections
        assert len(found.boxes) == len(boxes) > 0
        np.testing.assert_allclose(np.sort(found.scores), np.sort(scores), atol=1e-3)
        strong = np.argsort(-scores)[:5]
        for box, label in zip(place.boxes_to_source(boxes[strong]), labels[strong], strict=True):
            near = np.abs(found.boxes - box).max(1) < 0.05
            assert (found.labels[near] == label).any()
        assert (found.boxes <= [frame.shape[1], frame.shape[0]] * 2).all()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_heads_of_every_precision_take_every_size(made, bundle, pictures, precision):
    session = HeadSession(bundle, precision=precision)
    assert session.self_check().passed
    for frame in frames(pictures):
        encoded = session.encode(frame, 0)
        wanted, _ = in_torch(made[0], bundle.manifest.input.prepare(frame).image, 0)
        assert encoded.symbols.shape == wanted.shape
        steps = np.abs(encoded.symbols.astype(int) - wanted)
        assert (steps > 0).mean() <= (0.0 if precision == "fp32" else 0.25)
        assert steps.max() <= (0 if precision == "fp32" else 2)
        decoded, errors = session.codec.decode_batch([encoded.payload], [0])
        assert errors == [None]
        assert np.array_equal(decoded[0], encoded.symbols)


def test_images_of_several_sizes_are_answered_in_one_batch_with_symbols(bundle, pictures):
    model, session = load_model(bundle), HeadSession(bundle, precision="fp32")
    encoded = [
        one for frame in frames(pictures) for one in (session.encode_image(frame, quality=95), session.encode(frame, 1))
    ]
    kinds = [Kind.SYMBOLS if one.symbols is not None else Kind.IMAGE for one in encoded]
    packets = [
        Packet(one.codec, one.level, number, 0, one.payload, bytes(16), bytes(16), kind)
        for number, (one, kind) in enumerate(zip(encoded, kinds, strict=True))
    ]
    responses = [response.result for response in answer_batch(model, [Frame(packet) for packet in packets])]
    assert kinds.count(Kind.IMAGE) == len(SIZES)
    for one, result in zip(encoded, responses, strict=True):
        assert result.code == 0, result.message
        boxes = from_tensors(result.outputs, sent_outputs(model.manifest.task, model.manifest.outputs))["boxes"]
        assert len(boxes) > 0
        assert boxes.min() >= 0
        assert (boxes.max(0) <= [*one.placement.input[::-1]] * 2).all()


def test_images_are_evaluated_at_their_own_sizes(bundle, pictures):
    result = evaluate(bundle, pictures, codecs=())
    assert (result.images, result.metric) == (12, "mAP50")
    (teacher,) = result.of("teacher")
    assert teacher.agreement == 1
    session = HeadSession(bundle, precision="fp32")
    for score in result.of("split"):
        sizes = [
            len(session.encode(np.asarray(Image.open(path)), score.setting).payload) + 24 for path in pictures.glob("*")
        ]
        assert score.mean_bytes == pytest.approx(np.mean(sizes))
        assert 0 < score.agreement < 1


def test_from_the_command_line(made, pictures, capsys):
    folder = made[1]
    bundle, trust = str(folder / "free.ncb"), str(folder / "test.pub")
    assert main(["inspect", bundle, "--trust", trust]) == 0
    assert "free, up to 64 x 96, multiples of 16; trained on crops of 32 x 32" in capsys.readouterr().out
    with serving(folder, folder / "test.pub") as server:
        words = ["stream", bundle, str(pictures), "--to", str(server.address), "--trust", trust]
        assert main(words) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum("detections" in line for line in lines) == 12


@pytest.mark.parametrize(
    ("tables", "error", "told"),
    [
        ({"exit": {}}, ConfigError, r"\[input\] fit is 'free'; \[exit\] is for images of one size only"),
        (
            {"tails": [{"name": "more", "model": "x.py:y"}]},
            ConfigError,
            r"\[input\] fit is 'free'; \[\[tails\]\] is for images of one size only",
        ),
        ({"input": {"multiple_of": 4}}, TeacherError, r"a side of the output 'scores_1' is 4, .* raise multiple_of"),
        (
            {"bottleneck": {"levels": 2, "stride": 32}},
            BottleneckError,
            r"give 1 x 1 symbols a channel, which do not grow",
        ),
        (
            {"bottleneck": {"preset": "bottlefit"}, "train": {"images": 8, "batch": 8}},
            BottleneckError,
            r"symbols a channel, which do not grow in steps of multiple_of = 16|for images of 32 x 32 alone",
        ),
    ],
    ids=["exit", "tails", "outputs", "stride", "bottlefit"],
)
def test_what_cannot_be_free_is_refused_before_anything_is_trained(recipe, tmp_path, tables, error, told):
    with pytest.raises(error, match=told):
        Job(recipe(**tables), tmp_path / "work", SILENT)
