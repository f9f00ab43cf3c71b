"""The Open Inference Protocol's service alone, and calls to it."""

from __future__ import annotations

import contextlib
import threading

import grpc
import numpy as np
import pytest

from narrowcast.tail.batcher import Batcher
from narrowcast.tail.kserve import SERVICE, InferenceService
from narrowcast.tail.models import ModelTable
from narrowcast.tail.observe import Silent
from narrowcast.transport.rpc import open_inference_pb2 as pb
from narrowcast.transport.rpc.open_inference_pb2_grpc import GRPCInferenceServiceStub
from support import bundles

CODE = grpc.StatusCode


class Seen(Silent):
    """Writes down what an observer is told."""

    def __init__(self):
        self.frames, self.refusals = [], []

    def frame_done(self, record):
        self.frames.append(record)

    def refused(self, client, model, code):
        self.refusals.append((client, model, code))


class Rates:
    """A gate that lets so many frames through."""

    def __init__(self, frames):
        self.left = frames

    def client(self, context):
        return "camera"

    def when_full(self, look):
        pass

    def ended(self, context):
        return None

    def check_model(self, client, model):
        pass

    def priority(self, client, wanted):
        return wanted

    def allow_frame(self, client, packet_bytes, frames=1):
        if frames > self.left:
            return 250
        self.left -= frames
        return 0


class Held:
    """A real tail that waits until it may run."""

    name = "held"

    def __init__(self, inner):
        self.inner, self.go, self.batches = inner, threading.Event(), []

    def run(self, symbols, levels):
        self.batches.append(len(symbols))
        assert self.go.wait(20)
        return self.inner.run(symbols, levels)


class Serving:
    """A service with its client's stub."""

    def __init__(self, stub, observer, batchers, state):
        self.stub, self.observer, self.batchers, self.state = stub, observer, batchers, state


@contextlib.asynccontextmanager
async def serving(*models, gate=None, **limits):
    """The service alone, on a port of its own."""
    table, observer, state = ModelTable(), Seen(), {"ready": True}
    batchers = [Batcher(model, **limits) for model in models]
    for batcher in batchers:
        table.publish(batcher)
    service = InferenceService(table, lambda: state["ready"], gate=gate, observer=observer)
    server = grpc.aio.server()
    assert service.add_to(server) == [SERVICE]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Serving(GRPCInferenceServiceStub(channel), observer, batchers, state)
    finally:
        await server.stop(0)
        for batcher in batchers:
            await batcher.close()


def some_symbols(count=3, seed=0):
    return np.random.default_rng(seed).integers(0, bundles.ALPHABET, (count, *bundles.SHAPE)).astype(np.uint8)


def infer_request(symbols, levels, raw=True, **fields):
    request = pb.ModelInferRequest(model_name="tiny", **fields)
    for name, datatype, array in (("symbols", "UINT8", symbols), ("level", "INT64", levels)):
        tensor = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if raw:
            request.raw_input_contents.append(array.tobytes())
        elif name == "symbols":
            tensor.contents.uint_contents.extend(array.ravel().tolist())
        else:
            tensor.contents.int64_contents.extend(array.tolist())
    return request


def expected(symbols, levels):
    return symbols.reshape(*symbols.shape[:2], -1).mean(-1) + 100 * levels[:, None]


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value
