"""The Open Inference Protocol, over real sockets, with the protocol's own messages (Triton's client: tests/integration)."""

from __future__ import annotations

import asyncio
import re

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support import bundles
from support.kserve_calls import CODE, Held, Rates, expected, infer_request, refused, serving, some_symbols

from narrowcast.tail.access_callers import ByAddress
from narrowcast.tail.access_files import Watched
from narrowcast.tail.access_gate import AccessGate
from narrowcast.tail.access_limits import ClientLimits, Limits
from narrowcast.tail.kserve_request import MAX_FRAMES
from narrowcast.tail.store import Model, load_model
from narrowcast.transport.bundle import OutputSpec, describe_part
from narrowcast.transport.rpc import open_inference_pb2 as pb
from narrowcast.transport.tasks import DetectTask


@pytest.mark.parametrize("raw", [True, False])
async def test_symbols_in_and_outputs_out(tiny, raw):
    symbols, levels = some_symbols(5), np.array([0, 1, 1, 0, 1])
    async with serving(load_model(tiny)) as there:
        response = await there.stub.ModelInfer(infer_request(symbols, levels, raw, id="seven"))
    assert (response.model_name, response.model_version, response.id) == ("tiny", "1", "seven")
    (output,) = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("output", "FP32", [5, 3])
    if raw:
        values = np.frombuffer(response.raw_output_contents[0], "<f4")
    else:
        assert not response.raw_output_contents
        values = np.array(output.contents.fp32_contents, np.float32)
    assert np.allclose(values.reshape(5, 3), expected(symbols, levels), atol=1e-4)
    assert [record.packet.level for record in there.observer.frames] == levels.tolist()
    assert {record.packet_bytes for record in there.observer.frames} == {symbols[0].nbytes}


async def test_frames_are_told_with_their_time_and_ids_of_their_own(tiny):
    """By their ids sinks know records again, and audits draw their sample."""
    async with serving(load_model(tiny)) as there:
        for _ in range(2):
            await there.stub.ModelInfer(infer_request(some_symbols(2), np.zeros(2, np.int64)))
        records = there.observer.frames
    assert len({(one.packet.stream_id, one.packet.frame_id) for one in records}) == 4
    assert len({one.packet.stream_id for one in records}) == 2
    for one in records:
        times = one.result.times
        assert times.total_us >= max(1, times.queue_us + times.tail_us)


async def test_what_the_server_and_its_models_are(tiny):
    async with serving(load_model(tiny)) as there:
        stub = there.stub
        assert (await stub.ServerLive(pb.ServerLiveRequest())).live
        assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
        assert (await stub.ServerMetadata(pb.ServerMetadataRequest())).name == "narrowcast"
        for name, version, ready in (
            ("tiny", "", True),
            ("tiny", "1", True),
            ("tiny", "2", False),
            ("other", "", False),
        ):
            assert (await stub.ModelReady(pb.ModelReadyRequest(name=name, version=version))).ready is ready
        model = await stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny"))
        assert list(model.versions) == ["1"]
        assert [(one.name, one.datatype, list(one.shape)) for one in model.inputs] == [
            ("symbols", "UINT8", [-1, *bundles.SHAPE]), ("level", "INT64", [-1]),
        ]  # fmt: skip
        assert [(one.name, one.datatype, list(one.shape)) for one in model.outputs] == [("output", "FP32", [-1, 3])]
        assert model.properties["codec_fingerprint"] == tiny.manifest.fingerprint
        there.state["ready"] = False
        assert not (await stub.ServerReady(pb.ServerReadyRequest())).ready
        assert not (await stub.ModelReady(pb.ModelReadyRequest(name="tiny"))).ready
        assert (await stub.ServerLive(pb.ServerLiveRequest())).live
        error = await refused(stub.ModelInfer(infer_request(some_symbols(1), np.zeros(1, np.int64))))
        assert error.code() is CODE.UNAVAILABLE


def _bend(what):
    """A sound request, and one thing wrong with it."""
    symbols, levels = some_symbols(2), np.array([0, 1])
    if what == "frames":
        return infer_request(some_symbols(MAX_FRAMES + 1), np.zeros(MAX_FRAMES + 1, np.int64))
    if what == "no frames":
        return infer_request(symbols[:0], levels[:0])
    if what == "alphabet":
        return infer_request(symbols + np.uint8(bundles.ALPHABET), levels)
    if what == "level":
        return infer_request(symbols, levels + 1)
    if what == "negative level":
        return infer_request(symbols, levels - 1)
    if what == "levels":
        return infer_request(symbols, np.zeros(3, np.int64))
    if what == "no uint8":
        return infer_request(symbols.astype(np.int64) + 256, levels, raw=False)
    request = infer_request(symbols, levels, raw=what not in ("typed size", "typed field"))
    if what == "size":
        request.raw_input_contents[0] = request.raw_input_contents[0][:-1]
    elif what == "typed size":
        del request.inputs[0].contents.uint_contents[0]
    elif what == "typed field":
        request.inputs[0].contents.fp32_contents.append(1.0)
    elif what == "both":
        request.inputs[1].contents.int64_contents.append(1)
    elif what == "count":
        del request.raw_input_contents[1]
    elif what == "datatype":
        request.inputs[0].datatype = "FP32"
    elif what == "shape":
        request.inputs[0].shape[1] = 4
    elif what == "huge shape":
        request.inputs[0].shape[0] = 2**62
    elif what == "name":
        request.inputs[0].name = "images"
    elif what == "twice":
        request.inputs[1].name = "symbols"
    elif what == "no symbols":
        del request.inputs[0], request.raw_input_contents[0]
    elif what == "no level":
        del request.inputs[1], request.raw_input_contents[1]
    elif what == "shared memory":
        request.inputs[0].parameters["shared_memory_region"].string_param = "region"
    elif what == "output":
        request.outputs.add(name="logits")
    elif what == "output twice":
        request.outputs.extend([pb.ModelInferRequest.InferRequestedOutputTensor(name="output")] * 2)
    elif what == "classification":
        request.outputs.add(name="output").parameters["classification"].int64_param = 3
    elif what == "sequence":
        request.parameters["sequence_id"].int64_param = 5
    elif what == "codec":
        request.parameters["codec_fingerprint"].string_param = "00" * 16
    elif what == "timeout":
        request.parameters["timeout"].int64_param = -1
    elif what == "priority":
        request.parameters["priority"].string_param = "high"
    return request


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("frames", "65 frames in one request; it takes 1..64"),
        ("no frames", "0 frames in one request"),
        ("alphabet", "outside the alphabet 0..15"),
        ("level", "levels 1..2; the model has 0..1"),
        ("negative level", "levels -1..0; the model has 0..1"),
        ("levels", "2 frames of symbols with 3 levels"),
        ("no uint8", "which is no UINT8"),
        ("size", "'symbols' has 383 bytes; its shape asks for 384"),
        ("typed size", "'symbols' has 383 values; its shape asks for 384"),
        ("typed field", "is UINT8 and has fp32_contents; it takes uint_contents"),
        ("both", "'level' has contents both raw and typed"),
        ("count", "2 inputs with 1 raw contents"),
        ("datatype", "'symbols' is 'FP32'; the model takes UINT8"),
        ("shape", r"\[2, 4, 8, 8\]; the model takes \[-1, 3, 8, 8\]"),
        ("huge shape", "4611686018427387904 frames in one request"),
        ("name", "'images'; a request has 'symbols' and 'level', once each"),
        ("twice", "'symbols'; a request has"),
        ("no symbols", "'symbols' is missing"),
        ("no level", r"'level' is missing; the model has levels 0..1"),
        ("shared memory", "parameters shared_memory_region; tensors travel in the request"),
        ("output", "'logits'; 'tiny' has output, to be named once"),
        ("output twice", "to be named once"),
        ("classification", "outputs come as they are"),
        ("sequence", "there are no sequences"),
        ("codec", "the symbols are of the codec 0000"),
        ("timeout", "'timeout' is '-1'; it is a whole number"),
        ("priority", "'priority' is 'high'; it is a whole number"),
    ],
)
async def test_requests_that_cannot_be_answered(tiny, what, message):
    async with serving(load_model(tiny)) as there:
        error = await refused(there.stub.ModelInfer(_bend(what)))
        assert error.code() is CODE.INVALID_ARGUMENT
        assert re.search(message, error.details()), error.details()
        assert [code for _, _, code in there.observer.refusals] == ["INVALID_ARGUMENT"]
        assert there.observer.frames == []
        assert len((await there.stub.ModelInfer(_bend("nothing"))).raw_output_contents) == 1


def free(tmp_path):
    return bundles.open_made(bundles.make_free().write(tmp_path / "free.ncb"))


@pytest.mark.parametrize("raw", [True, False])
async def test_frames_of_any_size_that_the_codec_takes(tmp_path, raw):
    levels, random = np.array([0, 1, 1]), np.random.default_rng(0)
    async with serving(load_model(free(tmp_path))) as there:
        for rows, columns in ((8, 8), (16, 24), (4, 20), (12, 4)):
            symbols = random.integers(0, bundles.ALPHABET, (3, 3, rows, columns)).astype(np.uint8)
            request = infer_request(symbols, levels, raw)
            request.model_name = "free"
            response = await there.stub.ModelInfer(request)
            assert [list(one.shape) for one in response.outputs] == [[3, 3], [3, 3, rows, columns]]
            if raw:
                output, floats = (np.frombuffer(data, "<f4") for data in response.raw_output_contents)
            else:
                output, floats = (np.array(one.contents.fp32_contents) for one in response.outputs)
            assert np.allclose(output.reshape(3, 3), expected(symbols, levels), atol=1e-4)
            assert np.array_equal(floats.reshape(symbols.shape), symbols)
            assert {record.packet_bytes for record in there.observer.frames[-3:]} == {symbols[0].nbytes}


@pytest.mark.parametrize(
    "shape", [(3, 20, 24), (3, 16, 28), (3, 6, 8), (3, 8, 7), (4, 8, 8), (3, 0, 8), (3, 8), (3, -4, 8)]
)
async def test_sizes_that_the_codec_does_not_take(tmp_path, shape):
    async with serving(load_model(free(tmp_path))) as there:
        request = infer_request(np.zeros((1, 3, 8, 8), np.uint8), np.zeros(1, np.int64))
        request.model_name = "free"
        request.inputs[0].shape[:] = [1, *shape]
        error = await refused(there.stub.ModelInfer(request))
        assert error.code() is CODE.INVALID_ARGUMENT
        assert f"{[1, *shape]}; the model takes [-1, 3, 4..16 in steps of 4, 4..24 in steps of 4]" in error.details()


async def test_metadata_say_which_sides_vary(tmp_path):
    async with serving(load_model(free(tmp_path))) as there:
        model = await there.stub.ModelMetadata(pb.ModelMetadataRequest(name="free"))
    assert [(one.name, list(one.shape)) for one in (*model.inputs, *model.outputs)] == [
        ("symbols", [-1, 3, -1, -1]), ("level", [-1]), ("output", [-1, 3]), ("floats", [-1, 3, -1, -1]),
    ]  # fmt: skip
    assert (model.properties["symbols_step"], model.properties["symbols_max"]) == ("4,4", "16,24")


async def test_models_and_versions_that_are_not_there(tiny):
    async with serving(load_model(tiny)) as there:
        request = infer_request(some_symbols(1), np.zeros(1, np.int64), model_version="7")
        error = await refused(there.stub.ModelInfer(request))
        assert (error.code(), error.details()) == (
            CODE.NOT_FOUND, "no version '7' of 'tiny' here; it has the release 1",
        )  # fmt: skip
        error = await refused(there.stub.ModelMetadata(pb.ModelMetadataRequest(name="other")))
        assert (error.code(), error.details()) == (CODE.NOT_FOUND, "no model 'other' here; there is tiny")


async def test_the_highest_release_answers_where_none_is_named(tiny, tmp_path):
    made = bundles.make(release=2)
    spec = msgspec.structs.replace(made.manifest.codec, quantizer="1" * 64)
    manifest = msgspec.structs.replace(
        made.manifest, codec=spec, fingerprint=spec.fingerprint(made.contents["tables"]).hex()
    )
    other = bundles.open_made(bundles.Made(manifest, made.contents).write(tmp_path / "two.ncb"))
    async with serving(load_model(tiny), load_model(other)) as there:
        metadata = await there.stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny"))
        assert list(metadata.versions) == ["1", "2"]
        for asked, given in (("", "2"), ("1", "1"), ("2", "2")):
            request = infer_request(some_symbols(1), np.zeros(1, np.int64), model_version=asked)
            assert (await there.stub.ModelInfer(request)).model_version == given


async def test_outputs_of_further_tails_are_chosen_by_name(tiny, tmp_path):
    bundle = bundles.open_made(bundles.with_second_tail(bundles.make()).write(tmp_path / "two.ncb"))
    async with serving(load_model(bundle)) as there:
        request = infer_request(some_symbols(2), np.zeros(2, np.int64))
        assert [one.name for one in (await there.stub.ModelInfer(request)).outputs] == ["output", "second/output"]
        request.outputs.add(name="second/output")
        assert [one.name for one in (await there.stub.ModelInfer(request)).outputs] == ["second/output"]
        assert [list(result.result.outputs)[-1].name for result in there.observer.frames[-2:]] == ["second/output"] * 2


def detector(tmp_path):
    """A bundle whose tail finds a box of class k where the mean of channel k is above 0.8: 0 to 3 of them a frame."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Cast", ["symbols"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["means"], axes=[2, 3], keepdims=1),
        helper.make_node("Mul", ["means", "sixteenth"], ["scores"]),
        helper.make_node("Shape", ["scores"], ["all"]),
        helper.make_node("Slice", ["all", "zero", "one"], ["count"]),
        helper.make_node("Concat", ["count", "rest"], ["wanted"], axis=0),
        helper.make_node("Expand", ["half", "wanted"], ["boxes"]),
        helper.make_node("Identity", ["level"], ["unused"]),
    ]
    inputs = [value("symbols", TensorProto.UINT8, ["N", *bundles.SHAPE]), value("level", TensorProto.INT64, ["N"])]
    outputs = [value("scores", TensorProto.FLOAT, ["N", 3, 1, 1]), value("boxes", TensorProto.FLOAT, ["N", 4, 1, 1])]
    constants = [
        ("sixteenth", np.array(1 / 16, np.float32)), ("half", np.array([[[[0.5]]]], np.float32)),
        ("rest", np.array([4, 1, 1])), ("zero", np.array([0])), ("one", np.array([1])),
    ]  # fmt: skip
    tail = bundles.onnx_model(nodes, inputs, outputs, constants)
    assert onnx.load_from_string(tail)
    made = bundles.make().with_part(describe_part("tail.onnx", tail, "tail", ["server"], precision="fp32"), tail)
    task = DetectTask(
        classes=["a", "b", "c"], strides=[8], scores=["scores"], boxes=["boxes"], centerness=[], activation="none",
        score_threshold=0.8,
    )  # fmt: skip
    specs = [
        OutputSpec(name=name, dtype="float32", shape=[sides, 1, 1]) for name, sides in (("scores", 3), ("boxes", 4))
    ]
    manifest = msgspec.structs.replace(made.manifest, outputs=specs, task=task)
    return bundles.open_made(bundles.Made(manifest, made.contents).write(tmp_path / "detector.ncb"))


async def test_frames_with_different_numbers_of_boxes_are_filled_up_and_counted(tmp_path):
    symbols = np.zeros((3, *bundles.SHAPE), np.uint8)
    symbols[1, 2] = 15
    symbols[2] = 14
    async with serving(load_model(detector(tmp_path))) as there:
        metadata = await there.stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny"))
        assert {one.name: (one.datatype, list(one.shape)) for one in metadata.outputs} == {
            "boxes": ("FP32", [-1, -1, 4]), "scores": ("FP32", [-1, -1]), "labels": ("INT32", [-1, -1]),
            "num_detections": ("INT32", [-1]),
        }  # fmt: skip
        response = await there.stub.ModelInfer(infer_request(symbols, np.zeros(3, np.int64), raw=False))
        empty = await there.stub.ModelInfer(infer_request(symbols[:1], np.zeros(1, np.int64)))
    outputs = {one.name: one for one in response.outputs}
    assert list(outputs["num_detections"].contents.int_contents) == [0, 1, 3]
    assert list(outputs["boxes"].shape) == [3, 3, 4]
    scores = np.array(outputs["scores"].contents.fp32_contents).reshape(3, 3)
    assert np.allclose(scores, [[0, 0, 0], [15 / 16, 0, 0], [14 / 16, 14 / 16, 14 / 16]])
    assert list(outputs["labels"].contents.int_contents)[3] == 2
    assert [list(one.shape) for one in empty.outputs] == [[1, 0, 4], [1, 0], [1, 0], [1]]


async def test_rates_are_the_gates_and_say_when_to_come_back(tiny):
    async with serving(load_model(tiny), gate=Rates(3)) as there:
        request = infer_request(some_symbols(2), np.zeros(2, np.int64))
        await there.stub.ModelInfer(request)
        error = await refused(there.stub.ModelInfer(request))
        assert error.code() is CODE.RESOURCE_EXHAUSTED
        assert error.details() == ("frame 1 of 2: camera has used up its rate; send these 2 frames again after 250 ms")
        assert ("grpc-retry-pushback-ms", "250") in [tuple(pair) for pair in error.trailing_metadata()]
        over = CODE.RESOURCE_EXHAUSTED.value[0]
        assert [record.result.code for record in there.observer.frames] == [
            0,
            0,
            over,
            over,
        ]  # none is computed for nothing
        assert {record.stream.client for record in there.observer.frames} == {"camera"}


async def test_a_request_of_more_frames_than_the_rate_is_late_and_not_impossible(tiny):
    now = 1000.0
    limits = ClientLimits(default=Limits(rate=2.0))
    gate = AccessGate(ByAddress(), Watched([], lambda: limits, "limits"), clock=lambda: now)
    request = infer_request(some_symbols(5), np.zeros(5, np.int64))
    async with serving(load_model(tiny), gate=gate) as there:
        await there.stub.ModelInfer(request)
        error = await refused(there.stub.ModelInfer(request))
        (wait_ms,) = (int(value) for key, value in error.trailing_metadata() if key == "grpc-retry-pushback-ms")
        assert wait_ms == 2500  # 3 frames are owed, and the bucket has room for 2
        now += wait_ms / 1000
        await there.stub.ModelInfer(request)


async def _until(done):
    for _ in range(4000):
        if done():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it does not come true")


async def test_deadlines_and_cancelled_calls_are_not_computed(tiny):
    loaded = load_model(tiny)
    held = Held(loaded.backend)
    async with serving(Model(loaded.manifest, loaded.codec, held), max_batch=4) as there:
        request = infer_request(some_symbols(2), np.zeros(2, np.int64))
        first = asyncio.ensure_future(there.stub.ModelInfer(infer_request(some_symbols(1), np.zeros(1, np.int64))))
        await _until(lambda: held.batches)
        late = infer_request(some_symbols(2), np.zeros(2, np.int64))
        late.parameters["timeout"].int64_param = 20_000  # microseconds
        error = await refused(there.stub.ModelInfer(late))
        assert error.code() is CODE.DEADLINE_EXCEEDED
        assert "it was not computed" in error.details()
        cancelled = there.stub.ModelInfer(request)
        (batcher,) = there.batchers
        await _until(lambda: batcher.queued == 2)
        cancelled.cancel()
        await _until(lambda: batcher.queued == 0)
        held.go.set()
        assert len((await first).raw_output_contents) == 1
        await there.stub.ModelInfer(request)
        assert sum(held.batches) == 3


async def test_the_first_frame_without_a_place_fails_the_request_and_nothing_is_computed_for_it(tiny):
    loaded = load_model(tiny)
    held = Held(loaded.backend)
    async with serving(Model(loaded.manifest, loaded.codec, held), max_batch=1, max_client_queue=4) as there:
        first = asyncio.ensure_future(there.stub.ModelInfer(infer_request(some_symbols(1), np.zeros(1, np.int64))))
        await _until(lambda: held.batches)
        (batcher,) = there.batchers
        second = asyncio.ensure_future(there.stub.ModelInfer(infer_request(some_symbols(2), np.zeros(2, np.int64))))
        await _until(lambda: batcher.queued == 2)
        error = await refused(there.stub.ModelInfer(infer_request(some_symbols(4), np.zeros(4, np.int64))))
        assert error.code() is CODE.RESOURCE_EXHAUSTED
        assert "frame 3 of 4" in error.details()
        assert batcher.queued == 2  # those of the other request
        held.go.set()
        await asyncio.gather(first, second)
        assert sum(held.batches) == 3
        assert [one.result.code for one in there.observer.frames] == [CODE.RESOURCE_EXHAUSTED.value[0], 0, 0, 0]


@pytest.mark.parametrize("limits", [{"max_client_queue": 3}, {"max_queue": 3, "max_client_queue": 9}])
async def test_more_frames_than_a_client_may_have_waiting_are_never_taken(tiny, limits):
    async with serving(load_model(tiny), **limits) as there:
        error = await refused(there.stub.ModelInfer(infer_request(some_symbols(4), np.zeros(4, np.int64))))
        assert (error.code(), "3 of a client may wait here" in error.details()) == (CODE.INVALID_ARGUMENT, True)
        await there.stub.ModelInfer(infer_request(some_symbols(3), np.zeros(3, np.int64)))
