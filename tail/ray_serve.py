"""The tail server on Ray Serve: replicas of it, on as many machines as the frames ask for (``docs/scale-out.md``).

::

    RAY_SERVE_ENABLE_HA_PROXY=1 serve run deploy/ray-serve.yaml

Each replica has the servicers and batchers of a server that stands alone, so the same packets give the same bytes. A
stream stays with one replica; it is asked to move once in a while, so that new replicas get their share and those that are
to go become empty.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, cast

import grpc
import msgspec
from grpc_health.v1 import health_pb2
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from narrowcast.tail.access import Context, OpenGate
from narrowcast.tail.batcher import Batcher
from narrowcast.tail.errors import ListenError
from narrowcast.tail.kserve import SERVICE as INFERENCE_SERVICE
from narrowcast.tail.kserve import InferenceService
from narrowcast.tail.models import ModelTable
from narrowcast.tail.observe import FrameRecord, Silent
from narrowcast.tail.ray_bridge import BridgedContext
from narrowcast.tail.server import SERVICE
from narrowcast.tail.service import TailService
from narrowcast.tail.store import load_codecs
from narrowcast.tail.stream import Ageing
from narrowcast.transport.bundle import trusted_keys
from narrowcast.transport.bundle.signing import read_keys
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.rpc.open_inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from narrowcast.transport.rpc.tail_pb2_grpc import add_TailServiceServicer_to_server
from narrowcast.transport.structs import Settings, from_mapping

RATE = "frames_per_second"
_AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
_Positive = Annotated[float, msgspec.Meta(gt=0)]


class ReplicaSettings(Settings, frozen=True):
    """What the application is told: ``args`` in its file.

    Attributes:
        bundles: the folder of bundles, on every machine of the cluster.
        insecure: must be true: Ray Serve's proxy listens on all interfaces, and neither encrypts nor asks who calls.
        trust: files of public keys; those of the keys folder where there are none.
        allow_unsigned: take bundles that carry no signature.
        keep: releases of one model, with different codecs, that are served at once; None for all in the folder.
        max_batch, max_delay_ms, max_queue: see :class:`Batcher`.
        threads: for each model; 0: the library's choice, which is all cores of the machine.
        frames_per_second: what one replica is to answer; more replicas are started above it.
        min_replicas, max_replicas: how many there may be.
        max_streams: of one replica.
        stream_age_s: after so many seconds a stream is asked to move.
        grace_s: how long it then has.
        upscale_delay_s, downscale_delay_s: for how long the rate must be too high or too low.
        look_back_s: over which the rate is averaged; above 10, which is how often Ray Serve takes it.
    """

    bundles: str
    insecure: bool = False
    trust: list[str] = []
    allow_unsigned: bool = False
    keep: _AtLeastOne | None = None
    max_batch: _AtLeastOne = 16
    max_delay_ms: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    max_queue: _AtLeastOne = 1024
    threads: Annotated[int, msgspec.Meta(ge=0)] = 0
    frames_per_second: _Positive = 100.0
    min_replicas: _AtLeastOne = 1
    max_replicas: _AtLeastOne = 4
    max_streams: _AtLeastOne = 256
    stream_age_s: _Positive = 60.0
    grace_s: _Positive = 20.0
    upscale_delay_s: Annotated[float, msgspec.Meta(ge=0)] = 10.0
    downscale_delay_s: Annotated[float, msgspec.Meta(ge=0)] = 300.0
    look_back_s: Annotated[float, msgspec.Meta(gt=10)] = 20.0


class FrameRate(Silent):
    """An observer that measures how many frames a second come, answered or refused."""

    def __init__(self) -> None:
        self._frames = 0
        self._asked = time.monotonic()

    def frame_done(self, record: FrameRecord) -> None:
        """See :class:`narrowcast.tail.observe.Observer`."""
        self._frames += 1

    def take(self) -> float:
        """Frames per second since it was asked last."""
        now = time.monotonic()
        rate = self._frames / max(now - self._asked, 1e-3)
        self._frames, self._asked = 0, now
        return rate


class FrameRatePolicy:
    """How many replicas there are to be: so many that each has its rate of frames, and room for its streams.

    Ray Serve keeps to the least and the most, and to the delays. The rate counts refused frames, so that an overloaded
    replica, which answers no more than it can, does not look as if it had just enough.
    """

    def __init__(self, frames_per_second: float, max_streams: int) -> None:
        self._rate = frames_per_second
        self._streams = max_streams

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas, and nothing to remember."""
        rates = (context.aggregated_metrics or {}).get(RATE, {})
        by_rate = math.ceil(sum(rates.values()) / self._rate)
        by_streams = math.ceil(context.total_num_requests / self._streams)
        return max(1, by_rate, by_streams), {}


class ConnectionGate(OpenGate):
    """Tells clients apart by their connection: behind the proxy they all have its address."""

    def client(self, context: Context) -> str:
        """See :class:`narrowcast.tail.access.Gate`."""
        return context.peer()


class Replica:
    """The servicers of a tail server, as Ray Serve calls them: by the last part of a method's name."""

    async def __init__(self, settings: ReplicaSettings) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        keys = [key for file in settings.trust for key in read_keys(Path(file))] or trusted_keys()
        models = await asyncio.to_thread(
            load_codecs,
            Path(settings.bundles),
            trusted=keys,
            allow_unsigned=settings.allow_unsigned,
            threads=settings.threads,
            keep=settings.keep,
        )
        self._table = ModelTable()
        self._rate = FrameRate()
        for model in models:
            self._table.publish(
                Batcher(
                    model,
                    max_batch=settings.max_batch,
                    max_delay_ms=settings.max_delay_ms,
                    max_queue=settings.max_queue,
                    observer=self._rate,
                )
            )
        gate = ConnectionGate()
        ageing = Ageing(max_age_seconds=settings.stream_age_s, grace_seconds=settings.grace_s)
        self._tail = TailService(self._table, gate=gate, observer=self._rate, ageing=ageing)
        self._inference = InferenceService(self._table, lambda: True, gate=gate, observer=self._rate)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Asked by Ray Serve a few times a second; what :class:`FrameRatePolicy` goes by."""
        return {RATE: self._rate.take()}

    async def Stream(self, requests: Any, grpc_context: Any) -> AsyncIterator[Any]:
        """See ``docs/protocol.md``."""
        context = BridgedContext(grpc_context, requests)
        async for response in context.responses(self._tail.Stream):
            yield response

    async def Infer(self, request: Any, grpc_context: Any) -> Any:
        """See ``docs/protocol.md``."""
        return await self._tail.Infer(request, _bridged(grpc_context))

    async def ListModels(self, request: Any, grpc_context: Any) -> Any:
        """See ``docs/protocol.md``."""
        return await self._tail.ListModels(request, _bridged(grpc_context))

    async def ServerLive(self, request: Any, grpc_context: Any) -> Any:
        """See the Open Inference Protocol."""
        return await self._inference.ServerLive(request, _bridged(grpc_context))

    async def ServerReady(self, request: Any, grpc_context: Any) -> Any:
        """See the Open Inference Protocol."""
        return await self._inference.ServerReady(request, _bridged(grpc_context))

    async def ServerMetadata(self, request: Any, grpc_context: Any) -> Any:
        """See the Open Inference Protocol."""
        return await self._inference.ServerMetadata(request, _bridged(grpc_context))

    async def ModelReady(self, request: Any, grpc_context: Any) -> Any:
        """See the Open Inference Protocol."""
        return await self._inference.ModelReady(request, _bridged(grpc_context))

    async def ModelMetadata(self, request: Any, grpc_context: Any) -> Any:
        """See the Open Inference Protocol."""
        return await self._inference.ModelMetadata(request, _bridged(grpc_context))

    async def ModelInfer(self, request: Any, grpc_context: Any) -> Any:
        """See the Open Inference Protocol."""
        return await self._inference.ModelInfer(request, _bridged(grpc_context))

    async def Check(self, request: health_pb2.HealthCheckRequest, grpc_context: Any) -> Any:
        """See ``grpc.health.v1``: whether a replica can be reached and has the model."""
        if request.service not in ("", SERVICE, INFERENCE_SERVICE, *self._table.names()):
            context = BridgedContext(grpc_context)
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service or model {request.service[:80]!r}")
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


def _bridged(grpc_context: Any) -> Context:
    return cast("Context", BridgedContext(grpc_context))


def add_health_check(servicer: Any, server: Any) -> None:
    """Adds ``grpc.health.v1.Health/Check`` alone: a watch would hold a place among the streams for good."""
    handlers = {
        "Check": grpc.unary_unary_rpc_method_handler(
            servicer.Check,
            request_deserializer=health_pb2.HealthCheckRequest.FromString,
            response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
        )
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers),))


def app(args: dict[str, Any]) -> serve.Application:
    """The application, for ``import_path`` in Ray Serve's configuration.

    Args:
        args: see :class:`ReplicaSettings`.

    Raises:
        ConfigError: an unknown setting, or a value that cannot be.
        ListenError: ``insecure`` is not set.
    """
    settings = from_mapping(ReplicaSettings, args, "the application's args")
    if not settings.insecure:
        raise ListenError(
            "Ray Serve listens on all interfaces, and the traffic is neither encrypted nor authenticated; put it behind "
            "something that does both, or into a network that you trust, and say so with `insecure: true`"
        )
    if not Path(settings.bundles).is_absolute():
        raise ConfigError(f"bundles: {settings.bundles!r} means another folder in every process; give it from / on")
    if settings.max_replicas < settings.min_replicas:
        raise ConfigError(f"{settings.min_replicas} replicas at least, and {settings.max_replicas} at most")
    scaling = AutoscalingConfig(
        min_replicas=settings.min_replicas,
        max_replicas=settings.max_replicas,
        upscale_delay_s=settings.upscale_delay_s,
        downscale_delay_s=settings.downscale_delay_s,
        look_back_period_s=settings.look_back_s,
        policy=AutoscalingPolicy(  # type: ignore[no-untyped-call]
            policy_function=f"{__name__}:{FrameRatePolicy.__name__}",
            policy_kwargs={"frames_per_second": settings.frames_per_second, "max_streams": settings.max_streams},
        ),
    )
    deployment = serve.deployment(
        name="tail",
        # Calls beside the streams (health, lists, single frames) need some places as well.
        max_ongoing_requests=settings.max_streams + 64,
        autoscaling_config=scaling,
        # A replica that is to go takes no new streams; its old ones have moved by then.
        graceful_shutdown_timeout_s=settings.stream_age_s * 1.1 + settings.grace_s + 10,
    )(Replica)
    application: serve.Application = deployment.bind(settings)
    return application


# What Ray Serve's `grpc_servicer_functions` names; each takes a servicer and a server.
add_tail = add_TailServiceServicer_to_server
add_inference = add_GRPCInferenceServiceServicer_to_server
