"""Results and drift events on their way out of the server (``docs/results-schema.md``)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from narrowcast.tail.drift.watch import DriftEvent
from narrowcast.tail.observe import FrameRecord, Silent
from narrowcast.transport.bundle import Manifest
from narrowcast.transport.codec import SIZE_BYTES
from narrowcast.transport.images import image_size
from narrowcast.transport.packet import Kind, Packet
from narrowcast.transport.rpc.tensors import from_tensor
from narrowcast.transport.sinks import Outbox, Record, Sink, SinkCounts, summarize
from narrowcast.transport.sinks.records import SCHEMA, record_id

ManifestOf = Callable[[str, int], Manifest | None]
MAX_MANIFESTS = 256


class _Result(NamedTuple):
    record: FrameRecord
    manifest: Manifest | None
    input_size: tuple[int, int]  # of the network's input


_Item = _Result | DriftEvent


class SinkObserver(Silent):
    """Tells sinks what the server answers. Nothing is converted or sent on the event loop.

    Args:
        sinks: where to; each gets a queue and a thread of its own, so that one that hangs delays no other.
        manifest_of: the manifest of a model's release, or None; asked on the event loop.
        raw: with the tensors as they are, too.
        capacity: records that may wait, per sink.
    """

    def __init__(
        self, sinks: Sequence[Sink], manifest_of: ManifestOf, *, raw: bool = False, capacity: int = 10_000
    ) -> None:
        self._manifest_of, self._raw = manifest_of, raw
        self._manifests: OrderedDict[tuple[str, int], Manifest] = OrderedDict()
        self._outboxes: list[Outbox[_Item]] = [
            Outbox(sink, self._told, capacity=capacity, weigh=_held_bytes) for sink in sinks
        ]

    def frame_done(self, record: FrameRecord) -> None:
        """See :class:`~narrowcast.tail.observe.Observer`."""
        slim = record._replace(packet=record.packet._replace(payload=b""), key=None)  # which no sink is told
        manifest = self._manifest(record.stream.model, record.release)
        # The payload alone says a free size, and is not kept.
        size = (0, 0) if manifest is None or record.result.code else _input_size(manifest, record.packet)
        item = _Result(slim, manifest, size)
        for outbox in self._outboxes:
            outbox.put(item)

    def drifted(self, event: DriftEvent) -> None:
        """Told of drift events."""
        for outbox in self._outboxes:
            outbox.put(event)

    @property
    def counts(self) -> dict[str, SinkCounts]:
        """What became of records, by sink."""
        return {outbox.sink.name: outbox.counts for outbox in self._outboxes}

    def close(self, seconds: float = 5.0) -> None:
        """Delivers what waits, for at most so long per sink."""
        for outbox in self._outboxes:
            outbox.close(seconds)

    def _manifest(self, model: str, release: int) -> Manifest | None:
        key = model, release
        found = self._manifest_of(model, release)
        if found is None:  # the last frames of a release that is served no more
            return self._manifests.get(key)
        if self._manifests.get(key) is not found:  # new, or another bundle under the same release
            self._manifests[key] = found
            if len(self._manifests) > MAX_MANIFESTS:
                self._manifests.popitem(last=False)
        return found

    def _told(self, item: _Item) -> Record:
        return _drift(item) if isinstance(item, DriftEvent) else _result(item, self._raw)


def _held_bytes(item: _Item) -> int:
    if isinstance(item, DriftEvent):
        return 0
    record = item.record  # of a skip less is sent than is told
    return record.result.ByteSize() if record.packet.kind is Kind.SKIP else record.result_bytes


def _result(item: _Result, raw: bool) -> Record:
    record, manifest, size = item
    packet, result = record.packet, record.result
    body: dict[str, Any] = {
        "client": record.stream.client,
        "release": record.release,
        "stream_id": packet.stream_id.hex(),
        "frame_id": packet.frame_id,
        "capture_us": packet.capture_us,
        "kind": packet.kind.name.lower(),
        "level": packet.level,
        "packet_bytes": record.packet_bytes,
        "code": result.code,
    }
    if result.code:
        body["message"] = result.message
    elif manifest is not None:
        outputs = {tensor.name: from_tensor(tensor) for tensor in result.outputs}
        body["answers"] = summarize(manifest.all_tails(), outputs, size, raw=raw)
    return Record(SCHEMA, "result", record_id(packet.stream_id, packet.frame_id), record.stream.model, body)


def _input_size(manifest: Manifest, packet: Packet) -> tuple[int, int]:
    """Height and width of the network's input for a packet that was answered: where sizes are free, the packet says them."""
    contract = manifest.input
    if contract.free is None:
        return contract.size
    if packet.kind is Kind.IMAGE:
        return contract.placement(*image_size(packet.payload, packet.codec)).input
    rows, columns = packet.payload[:SIZE_BYTES]
    return rows * contract.free.multiple, columns * contract.free.multiple


def _drift(event: DriftEvent) -> Record:
    camera = event.camera
    body = {
        "client": camera.client,
        "stream_id": camera.stream_id.hex(),
        "frame_id": event.frame_id,
        "level": event.level,
        "time_us": event.time_us,
        "event": event.verdict.value,
        "frames": event.frames,
        "statistic": event.statistic,
        "shift": round(event.shift, 4),
    }
    name = f"{event.verdict.value}-{record_id(camera.stream_id, event.frame_id)}"
    return Record(SCHEMA, "drift", name, camera.model, body)
