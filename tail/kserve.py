"""The Open Inference Protocol (KServe v2) over gRPC, for the clients of other servers (``docs/scale-out.md``).

Symbols that come decoded are coded by the model's own codec, and go the way of every frame from there on: the same rate
limits, queue, deadlines, batches and observers, and the same answers.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

import grpc
import msgspec

from narrowcast.tail.access import Context, Gate, OpenGate
from narrowcast.tail.backends import Array
from narrowcast.tail.batcher import Batcher
from narrowcast.tail.clock import stamp
from narrowcast.tail.errors import InferRequestError
from narrowcast.tail.frame import Frame
from narrowcast.tail.kserve_request import choose_outputs, read_frames, read_parameters
from narrowcast.tail.kserve_tensors import Offered, inputs_metadata, outputs_metadata, to_outputs
from narrowcast.tail.models import ModelTable, Slot
from narrowcast.tail.observe import Observer, Silent, StreamInfo, record_of
from narrowcast.tail.opening import EndedError, admit, rate_refusal, refusal_of
from narrowcast.transport.codec import Codec, CodecSpec
from narrowcast.transport.packet import Packet
from narrowcast.transport.rpc import open_inference_pb2 as pb
from narrowcast.transport.rpc.open_inference_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)
from narrowcast.transport.rpc.tensors import from_tensor

SERVICE = "inference.GRPCInferenceService"
PLATFORM = "narrowcast_tail"
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class InferenceService(GRPCInferenceServiceServicer):
    """Serves models by the Open Inference Protocol. Must be made and used on one event loop.

    Args:
        models: what there is.
        ready: whether the server takes frames now.
        gate: who may use it.
        observer: is told what happens.
    """

    def __init__(
        self,
        models: ModelTable,
        ready: Callable[[], bool],
        *,
        gate: Gate | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._models = models
        self._ready = ready
        self._gate = gate or OpenGate()
        self._observer = observer or Silent()

    def add_to(self, server: grpc.aio.Server) -> Sequence[str]:
        """Adds the service to a server; returns its name."""
        add_GRPCInferenceServiceServicer_to_server(self, server)
        return [SERVICE]

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        """See the specification."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """See the specification."""
        return pb.ServerReadyResponse(ready=self._ready())

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        """See the specification."""
        try:
            installed = version("narrowcast")
        except PackageNotFoundError:
            installed = "unknown"
        return pb.ServerMetadataResponse(name="narrowcast", version=installed)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """See the specification. A model that is not there is not ready."""
        try:
            admit(self._gate, context, request.name)
            self._find(request.name, request.version)
        except EndedError as ended:
            if ended.code is not grpc.StatusCode.NOT_FOUND:
                await context.abort(ended.code, str(ended))
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._ready())

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        """See the specification."""
        try:
            admit(self._gate, context, request.name)
            model = self._find(request.name, request.version).batcher.model
        except EndedError as ended:
            await context.abort(ended.code, str(ended))
        releases = {slot.batcher.model.manifest.release for slot in self._models if slot.name == model.name}
        spec = model.codec.spec
        return pb.ModelMetadataResponse(
            name=model.name,
            versions=[str(release) for release in sorted(releases)],
            platform=PLATFORM,
            inputs=inputs_metadata(spec),
            outputs=outputs_metadata(model.manifest),
            properties={
                "codec_fingerprint": model.codec.fingerprint.hex(),
                "alphabet": str(spec.alphabet),
                "levels": str(spec.levels),
                **_sizes(spec),
            },
        )

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """See the specification. One frame that fails fails the request."""
        arrived, left = time.perf_counter(), context.time_remaining()
        client = ""
        try:
            client = admit(self._gate, context, request.model_name)
            slot = self._find(request.model_name, request.model_version)
            asked = read_parameters(request, slot.fingerprint)
            packets, frame_bytes = await asyncio.to_thread(_packets, request, slot.batcher.model.codec)
            if not self._ready():
                raise EndedError(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
            batcher = slot.batcher
            wanted = choose_outputs(request, batcher.model.manifest)
            if len(packets) > batcher.client_limit:
                raise InferRequestError(
                    f"{len(packets)} frames in a request, and {batcher.client_limit} of a client may wait here "
                    "(--max-client-queue): send fewer at once"
                )
        except (InferRequestError, EndedError) as error:
            code = error.code if isinstance(error, EndedError) else grpc.StatusCode.INVALID_ARGUMENT
            self._observer.refused(client, request.model_name, code.name)
            await context.abort(code, str(error))
        limits = [seconds for seconds in (left, asked.timeout_seconds) if seconds is not None]
        frames = [
            Frame(
                packet,
                frozenset(output.tail for output in wanted),
                client=client,
                priority=self._gate.priority(client, asked.priority),
                deadline=arrived + min(limits) if limits else None,
                packet_bytes=frame_bytes,
                arrived=arrived,
            )
            for packet in packets
        ]
        await self._compute(frames, batcher)
        info = StreamInfo(client, request.model_name, b"")
        for frame in frames:
            if frame.response is None:
                continue  # given up for another
            if not frame.response.result.code:
                stamp(frame.response.result.times, arrived)
            self._observer.frame_done(record_of(info, frame))
        await _check(frames, context)
        return await asyncio.to_thread(_response, request, frames, wanted)

    async def _compute(self, frames: Sequence[Frame], batcher: Batcher) -> None:
        """Returns once every frame has its response, or one is refused; a cancelled call's frames are not computed.

        One refused frame fails the request, so the others would be computed for nothing, at every try anew.
        """
        loop = asyncio.get_running_loop()
        done: list[asyncio.Future[None]] = []
        size = sum(frame.packet_bytes for frame in frames)
        over_the_rate = rate_refusal(self._gate, frames[0].client, size, len(frames))
        for frame in frames:
            refused = over_the_rate or refusal_of(batcher, frame.packet, frame.tails)
            if refused is not None:
                frame.release = batcher.model.manifest.release
                frame.refuse(refused)
        if any(frame.response is not None for frame in frames):
            return
        try:
            for frame in frames:
                answered: asyncio.Future[None] = loop.create_future()
                frame.on_done = functools.partial(_tell, answered)
                batcher.put(frame)
                if frame.response is not None and frame.response.result.code:
                    return  # no place for it
                done.append(answered)
            await asyncio.gather(*done)
        finally:
            for frame in frames:
                frame.drop()  # nothing, where it is answered

    def _find(self, name: str, wanted: str) -> Slot:
        """The slot of a model; of several codecs, the one of the highest release.

        Raises:
            EndedError: no such model, or not in that release.
        """
        slots = [slot for slot in self._models if slot.name == name]
        if not slots:
            there = ", ".join(self._models.names()) or "none at all"
            raise EndedError(grpc.StatusCode.NOT_FOUND, f"no model {name[:80]!r} here; there is {there}")
        by_release = {str(slot.batcher.model.manifest.release): slot for slot in slots}
        if not wanted:
            return max(slots, key=lambda slot: slot.batcher.model.manifest.release)
        if wanted not in by_release:
            there = ", ".join(by_release)
            raise EndedError(
                grpc.StatusCode.NOT_FOUND, f"no version {wanted[:16]!r} of {name!r} here; it has the release {there}"
            )
        return by_release[wanted]


def _sizes(spec: CodecSpec) -> dict[str, str]:
    """Where frames differ in size: which rows and columns there may be."""
    if isinstance(spec.step, msgspec.UnsetType):
        return {}
    return {"symbols_step": "{},{}".format(*spec.step), "symbols_max": "{},{}".format(*spec.shape[1:])}


def _packets(request: pb.ModelInferRequest, codec: Codec) -> tuple[list[Packet], int]:
    """The frames of a request, coded, and how many bytes each came in. Runs off the event loop.

    Raises:
        InferRequestError: see :func:`read_frames`.
    """
    symbols, levels = read_frames(request, codec.spec)
    now = round(time.time() * 1e6)
    stream_id = secrets.token_bytes(16)  # a request is a stream of its own: by this its records are told from others
    packets = [
        Packet(codec.codec_id, int(level), frame_id, now, codec.encode(frame, int(level)), stream_id, codec.fingerprint)
        for frame_id, (frame, level) in enumerate(zip(symbols, levels, strict=True))
    ]
    return packets, symbols[0].nbytes


def _response(
    request: pb.ModelInferRequest, frames: Sequence[Frame], wanted: Sequence[Offered]
) -> pb.ModelInferResponse:
    """The answers of all frames. Runs off the event loop."""
    response = pb.ModelInferResponse(model_name=request.model_name, model_version=str(frames[0].release), id=request.id)
    answers: list[dict[str, Array]] = []
    for frame in frames:
        assert frame.response is not None
        answers.append({tensor.name: from_tensor(tensor) for tensor in frame.response.result.outputs})
    to_outputs(response, answers, wanted, raw=bool(request.raw_input_contents))
    return response


async def _check(frames: Sequence[Frame], context: Context) -> None:
    """Ends the call with the status of the first frame that has no answer."""
    for number, frame in enumerate(frames, 1):
        if frame.response is None:
            continue
        result = frame.response.result
        if result.code:
            if result.retry_after_ms:  # what gRPC's own retries go by
                context.set_trailing_metadata((("grpc-retry-pushback-ms", str(result.retry_after_ms)),))
            await context.abort(_CODES[result.code], f"frame {number} of {len(frames)}: {result.message}")


def _tell(answered: asyncio.Future[None], _: Frame) -> None:
    if not answered.done():
        answered.set_result(None)
