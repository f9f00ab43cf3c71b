"""The tail server: bundles in, a gRPC service out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from narrowcast.tail.access import Access
from narrowcast.tail.batcher import Batcher
from narrowcast.tail.errors import ListenError
from narrowcast.tail.health import NOT_SERVING, SERVING, Health
from narrowcast.tail.kserve import InferenceService
from narrowcast.tail.models import ModelTable
from narrowcast.tail.observe import Auditor, Observer
from narrowcast.tail.requests import SoundRequests
from narrowcast.tail.service import TailService
from narrowcast.tail.store import Model, ModelStatus, ModelStore, StoreObserver, StoreSettings
from narrowcast.tail.stream import Ageing
from narrowcast.transport.rpc.channels import Address, server_options
from narrowcast.transport.rpc.tail_pb2_grpc import add_TailServiceServicer_to_server

log = logging.getLogger(__name__)

SERVICE = "narrowcast.tail.v1.TailService"
_OF_THE_TIME = 0.9
HEALTH_SERVICE = "grpc.health.v1.Health"
# Adds itself to the server; returns the full names of what it added.
Service = Callable[[grpc.aio.Server], Sequence[str]]


class TailServer:
    """Serves models on one address. Must be made and used on one event loop.

    Args:
        models: a folder of bundles, which may change meanwhile; or models by name, from
            :func:`narrowcast.tail.store.load_models`.
        listen: the address; port 0 takes a free one.
        access: TLS, and who may come; without it the traffic is neither encrypted nor authenticated.
        insecure: listen beyond this machine all the same.
        max_batch, max_delay_ms, max_queue, max_client_queue: see :class:`Batcher`.
        observer: is told what happens.
        ageing: when streams are asked to move; never where it is not said.
        store_observers: are told what becomes of the folder's models.

    Attributes:
        table: the models that are served now.
        health: what the health service says of each of them.
        store: the folder's models; None where models were given.
        state: ``starting``, ``serving``, ``draining`` or ``ended``.
    """

    def __init__(
        self,
        models: Mapping[str, Model] | StoreSettings,
        listen: Address,
        *,
        access: Access | None = None,
        insecure: bool = False,
        max_batch: int = 16,
        max_delay_ms: float = 0.0,
        max_queue: int = 1024,
        max_client_queue: int | None = None,
        observer: Observer | None = None,
        ageing: Ageing | None = None,
        store_observers: Iterable[StoreObserver] = (),
    ) -> None:
        self._access = access or Access()
        self._access.check_listen(listen, insecure=insecure)
        if observer is not None:
            self._access.report(observer)
        self._watching: asyncio.Task[None] | None = None
        self._listen = listen
        self._limits: dict[str, Any] = {
            "max_batch": max_batch, "max_delay_ms": max_delay_ms, "max_queue": max_queue,
            "max_client_queue": max_client_queue, "observer": observer,
        }  # fmt: skip
        self._observer, self._ageing = observer, ageing
        self._server: grpc.aio.Server | None = None
        self._interceptors: list[grpc.aio.ServerInterceptor] = []
        self._services: list[Service] = []
        self._auditor: Auditor | None = None
        self.health = Health()
        self.table = ModelTable()
        self.state = "starting"
        self._service: TailService | None = None
        self.store: ModelStore | None = None
        self._models: Mapping[str, Model] = {}
        if isinstance(models, StoreSettings):
            settings = replace(models, backend=replace(models.backend, max_batch=max_batch))
            self.store = ModelStore(settings, self.table, self._batcher, [*store_observers, self])
        else:
            self._models = models

    @property
    def ready(self) -> bool:
        """Whether a frame would be answered now."""
        return self.state == "serving" and len(self.table) > 0

    def intercept(self, interceptor: grpc.aio.ServerInterceptor) -> None:
        """Adds an interceptor, before :meth:`start`."""
        self._interceptors.append(interceptor)

    def audit_by(self, auditor: Auditor) -> None:
        """Lets clients that consent be asked for sources of frames, before :meth:`start`."""
        self._auditor = auditor

    def add_service(self, service: Service) -> None:
        """Adds a further service on the same port, before :meth:`start`; reflection tells of it too."""
        self._services.append(service)

    async def start(self) -> Address:
        """Starts serving.

        Returns:
            the address, with the real port.

        Raises:
            ListenError: the address cannot be listened on.
            StoreError, BundleError: nothing in the folder can be served.
        """
        if self.store is not None:
            await self.store.open()
        for model in self._models.values():
            self.table.publish(self._batcher(model))
        self._service = TailService(
            self.table, gate=self._access.gate, observer=self._observer, ageing=self._ageing, auditor=self._auditor
        )
        self._server = grpc.aio.server(
            options=server_options(self._access.max_streams),
            interceptors=[*self._access.interceptors, *self._interceptors, SoundRequests()],
        )
        add_TailServiceServicer_to_server(self._service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        names = [SERVICE, HEALTH_SERVICE, reflection.SERVICE_NAME]
        inference = InferenceService(self.table, lambda: self.ready, gate=self._access.gate, observer=self._observer)
        for add in (inference.add_to, *self._services):
            names.extend(add(self._server))
        reflection.enable_server_reflection(names, self._server)
        try:
            port = self._access.add_port(self._server, self._listen)
        except RuntimeError as error:
            await self._close_models()
            raise ListenError(
                f"cannot listen on {self._listen}: is the port taken? choose another with --listen HOST:PORT"
            ) from error
        await self._server.start()
        self._watching = asyncio.create_task(self._access.watch())
        self.state = "serving"
        self.table.on_change.append(self._tell_health)
        self._tell_health()
        return Address(self._listen.host, port)

    async def stop(self, drain_seconds: float = 10.0) -> None:
        """Reports not serving, answers what was taken in, and ends, within ``drain_seconds``."""
        if self._server is None or self._service is None:
            return
        self.state = "draining"
        self.health.drain()
        # Streams that do not heed it are told so before gRPC cuts them off.
        self._service.drain(drain_seconds * _OF_THE_TIME)
        await self._server.stop(drain_seconds)
        if self._watching is not None:
            self._watching.cancel()
        await self._close_models()
        self.state = "ended"

    def _batcher(self, model: Model) -> Batcher:
        return Batcher(model, **self._limits)

    async def _close_models(self) -> None:
        if self.store is not None:
            await self.store.close()
        for slot in self.table:
            await slot.batcher.close()

    async def wait(self) -> None:
        """Returns when the server has ended."""
        if self._server is not None:
            await self._server.wait_for_termination()

    def models_changed(self, models: Sequence[ModelStatus]) -> None:
        """See :class:`~narrowcast.tail.store.StoreObserver`."""
        if self.state == "serving":
            self._tell_health()

    def _tell_health(self) -> None:
        """A model is healthy while it is in the table; the server is while there is any.

        A model that is not in the table, but in the folder, loading or refused, is not serving; any other is unknown.
        """
        served = set(self.table.names())
        rows = [] if self.store is None else self.store.status()
        waiting = {row.name for row in rows if row.name is not None and row.state in ("loading", "failed")}
        for name in ("", SERVICE):
            self.health.set(name, SERVING if served else NOT_SERVING)
        for name in {*self.health.names(), *served, *waiting} - {"", SERVICE}:
            self.health.set(name, SERVING if name in served else NOT_SERVING if name in waiting else None)
