"""The tail server: bundles in, a gRPC service out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from narrowcast.tail.batcher import Batcher
from narrowcast.tail.errors import ListenError
from narrowcast.tail.models import ModelTable
from narrowcast.tail.service import TailService
from narrowcast.tail.store import Model, ModelStatus, ModelStore, StoreObserver, StoreSettings
from narrowcast.transport.rpc.channels import SERVER_OPTIONS, Address
from narrowcast.transport.rpc.tail_pb2_grpc import add_TailServiceServicer_to_server

log = logging.getLogger(__name__)

SERVICE = "narrowcast.tail.v1.TailService"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class TailServer:
    """Serves models on one address. Must be made and used on one event loop.

    Args:
        models: a folder of bundles, which may change meanwhile; or models by name, from
            :func:`narrowcast.tail.store.load_models`.
        listen: the address; port 0 takes a free one.
        insecure: listen beyond this machine although the traffic is neither encrypted nor authenticated.
        max_batch, max_delay_ms, max_queue: see :class:`Batcher`.
        store_observers: are told what becomes of the folder's models.

    Attributes:
        store: of the folder, once started; None for models that were given.
    """

    def __init__(
        self,
        models: Mapping[str, Model] | StoreSettings,
        listen: Address,
        *,
        insecure: bool = False,
        max_batch: int = 16,
        max_delay_ms: float = 0.0,
        max_queue: int = 1024,
        store_observers: Iterable[StoreObserver] = (),
    ) -> None:
        if not listen.is_loopback and not insecure:
            raise ListenError(
                f"{listen} can be reached from other machines, and the traffic would be neither encrypted nor "
                "authenticated; listen on 127.0.0.1, or pass --insecure on a network that you trust"
            )
        self._models = models
        self._listen = listen
        self._limits = {"max_batch": max_batch, "max_delay_ms": max_delay_ms, "max_queue": max_queue}
        self._server: grpc.aio.Server | None = None
        self._health = health.aio.HealthServicer()
        self._table = ModelTable()
        self._service: TailService | None = None
        self._store_observers = [self, *store_observers]
        self._told_health: set[str] = set()
        self._telling: set[asyncio.Task[None]] = set()
        self.store: ModelStore | None = None

    async def start(self) -> Address:
        """Starts serving.

        Returns:
            the address, with the real port.

        Raises:
            ListenError: the address cannot be listened on.
            StoreError, BundleError: nothing in the folder can be served.
        """
        if isinstance(self._models, StoreSettings):
            backend = replace(self._models.backend, max_batch=int(self._limits["max_batch"]))
            settings = replace(self._models, backend=backend)
            self.store = ModelStore(settings, self._table, self._batcher, self._store_observers)
            await self.store.open()
        else:
            for model in self._models.values():
                self._table.publish(self._batcher(model))
        self._service = TailService(self._table)
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        add_TailServiceServicer_to_server(self._service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        try:
            port = self._server.add_insecure_port(str(self._listen))
        except RuntimeError as error:
            await self._close_models()
            raise ListenError(
                f"cannot listen on {self._listen}: is the port taken? choose another with --listen HOST:PORT"
            ) from error
        await self._server.start()
        for name in ("", SERVICE):
            await self._health.set(name, _SERVING)
        await self._tell_health()
        return Address(self._listen.host, port)

    def models_changed(self, models: Sequence[ModelStatus]) -> None:
        """See :class:`StoreObserver`: the health of models follows what is served."""
        task = asyncio.create_task(self._tell_health())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell_health(self) -> None:
        serving = set(self._table.names())
        for name in serving | self._told_health:
            await self._health.set(name, _SERVING if name in serving else _NOT_SERVING)
        self._told_health |= serving

    def _batcher(self, model: Model) -> Batcher:
        return Batcher(model, **self._limits)  # type: ignore[arg-type]

    async def _close_models(self) -> None:
        if self.store is not None:
            await self.store.close()
        for slot in self._table:
            await slot.batcher.close()

    async def stop(self, drain_seconds: float = 10.0) -> None:
        """Reports not serving, answers what was taken in, and ends, within ``drain_seconds``."""
        if self._server is None or self._service is None:
            return
        await self._health.enter_graceful_shutdown()
        self._service.drain()
        await self._server.stop(drain_seconds)
        await self._close_models()

    async def wait(self) -> None:
        """Returns when the server has ended."""
        if self._server is not None:
            await self._server.wait_for_termination()
